"""The build: what the extension exports and loads, and what importing it does to the process."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rwkvtune
from rwkvtune import _rwkvcore

ROOT = Path(__file__).resolve().parents[2]
LINUX = sys.platform.startswith("linux")


def run_python(code, **environment):
    """What `code` prints in a fresh interpreter."""
    env = {**os.environ, **environment}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_one_version():
    assert importlib.metadata.version("rwkvtune") == rwkvtune.__version__


def test_info_says_what_was_chosen():
    info = rwkvtune.info()
    assert info["isa"] in info["isa_available"]
    assert "scalar" in info["isa_available"]
    assert info["threads"] >= 1
    assert info["cuda_built"] or info["cuda_devices"] == 0
    assert info["cuda_devices"] or info["cuda_reason"]


@pytest.mark.skipif(not LINUX or not shutil.which("nm"), reason="reads an ELF symbol table")
def test_extension_exports_only_its_init_function():
    table = subprocess.run(["nm", "-D", "--defined-only", _rwkvcore.__file__], capture_output=True, text=True, check=True).stdout
    names = {line.split()[-1] for line in table.splitlines()} - {"_init", "_fini"}
    assert names == {"PyInit__rwkvcore"}


@pytest.mark.skipif(not LINUX or not shutil.which("nm"), reason="reads an ELF symbol table")
def test_objects_of_a_tier_export_only_their_table():
    objects = sorted(ROOT.glob("build/objects/*/csrc/kernels/isa_*.o"))
    if not objects:
        pytest.skip("no objects kept here: the package was not built in this tree")
    for path in objects:
        tier = re.match(r"isa_(\w+)\.c\.o", path.name)[1]
        table = subprocess.run(["nm", "--defined-only", "--extern-only", path], capture_output=True, text=True, check=True).stdout
        assert {line.split()[-1] for line in table.splitlines()} <= {f"rk_kernels_{tier}"}, path


def test_import_leaves_the_process_as_it_was():
    code = """
import sys, numpy
tiny = numpy.float32(1e-40)
before = tiny * numpy.float32(0.5)
import rwkvtune; rwkvtune.info()
assert before == tiny * numpy.float32(0.5) != 0, "small numbers are flushed to zero"
print(*sorted(m for m in ("torch", "matplotlib", "tqdm", "wandb", "multiprocessing") if m in sys.modules))
"""
    assert run_python(code) == ""


@pytest.mark.parametrize("value, threads", [("1", 1), ("3", 3), ("256", 256)])
def test_number_of_threads_from_the_environment(value, threads):
    assert run_python("import rwkvtune; print(rwkvtune.info()['threads'])", RWKVTUNE_NUM_THREADS=value) == str(threads)


def test_no_number_of_threads_means_all_processors():
    code = "import rwkvtune; i = rwkvtune.info(); print(i['threads'] - min(i['cpus'], 256))"
    assert run_python(code, RWKVTUNE_NUM_THREADS="") == "0"


@pytest.mark.parametrize(
    "name, value",
    [("RWKVTUNE_NUM_THREADS", value) for value in ("0", "many", "-2", "100000")] + [("RWKVTUNE_ISA", "avx99")],
)
def test_a_misspelt_setting_is_refused(name, value):
    run = subprocess.run([sys.executable, "-c", "import rwkvtune; rwkvtune.info()"], env={**os.environ, name: value},
                         capture_output=True, text=True)  # fmt: skip
    assert run.returncode and "ValueError" in run.stderr and value in run.stderr


def test_works_after_fork():
    code = """
import os, rwkvtune
rwkvtune.set_num_threads(2)
config = rwkvtune.ModelConfig(model_type="x070", n_layer=1, n_embd=64, vocab_size=50, ctx_len=32)
model = rwkvtune.RWKV(config, seed=0)
ids = [[1, 2, 3, 4, 5, 6, 7, 8]] * 4
want = model(ids).logits.tobytes()
child = os.fork()
if child == 0:
    os._exit(0 if model(ids).logits.tobytes() == want else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run_python(code) == "0"


@pytest.mark.skipif(not LINUX, reason="reads /proc")
def test_idle_threads_sleep():
    code = """
import os, rwkvtune, time
from pathlib import Path
rwkvtune.set_num_threads(4)
model = rwkvtune.RWKV(rwkvtune.ModelConfig(model_type="x070", n_layer=1, n_embd=64, vocab_size=50, ctx_len=32), seed=0)
model([[1] * 32] * 4)
def states():
    return [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in Path("/proc/self/task").iterdir()
            if task.name != str(os.getpid())]
deadline = time.monotonic() + 20
while set(states()) != {"S"} and time.monotonic() < deadline:
    time.sleep(0.05)
print(len(states()) >= 3, *set(states()))
"""
    assert run_python(code) == "True S"


@pytest.mark.parametrize("name, value", [("RWKVTUNE_CUDA", "yes"), ("RWKVTUNE_SANITIZE", "2"), ("RWKVTUNE_NATIVE", "on")])
def test_build_switches_are_checked(name, value):
    run = subprocess.run([sys.executable, "setup.py", "--name"], cwd=ROOT, env={**os.environ, name: value}, capture_output=True, text=True)
    assert run.returncode != 0
    assert f"{name}='{value}': expected one of" in run.stderr


def check_includes(root):
    run = subprocess.run([sys.executable, ROOT / "tools" / "check_includes.py", root], capture_output=True, text=True)
    return run.returncode, run.stdout


def test_include_rule_holds():
    code, out = check_includes(ROOT / "csrc")
    assert code == 0, out


@pytest.mark.parametrize(
    "path, text, problem",
    [
        ("ops/a.c", "#include <stddef.h>\n#include <Python.h>\n", ":2: Python.h belongs to py/"),
        ("ops/a.c", "# include <cuda_runtime.h>\n", ":1: cuda_runtime.h belongs to .cu files"),
        ("base/a.c", '#include "ops/known.h"\n', ":1: base/ may not include from ops/"),
        ("data/a.c", '#include "ops/known.h"\n', ":1: data/ may not include from ops/"),
        ("ops/a.c", '#include "ops/gone.h"\n', ":1: no such file"),
        ("ops/known.c", '#include <stddef.h>\n#include "ops/known.h"\n', "its own header ops/known.h must be its first include"),
        ("base/known.h", "", "known.h: the name is used 2 times"),
        ("more/a.c", "", "the folder more/ has no place"),
    ],
)
def test_include_rule_finds(tmp_path, path, text, problem):
    (tmp_path / "ops").mkdir()
    (tmp_path / "ops" / "known.h").touch()
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text(text)
    code, out = check_includes(tmp_path)
    assert code == 1
    assert problem in out
    assert len(out.splitlines()) == 1
