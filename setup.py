"""Builds the extension rwkvtune._rwkvcore from every C file of csrc/; the rest of the package is in pyproject.toml.

Environment switches:
  RWKVTUNE_CUDA=auto|0|1|host compile csrc/**/*.cu where a working nvcc is found (auto), never, or insist; host: for the
                              processor, to test the kernels without a GPU (tests/cuda_host/README.md)
  RWKVTUNE_CUDA_ARCHS=80;90   compute capabilities to compile for; PTX of the last one serves newer devices
  RWKVTUNE_SANITIZE=1         AddressSanitizer and UndefinedBehaviorSanitizer
  RWKVTUNE_NATIVE=1           tune for this processor; the result may not run on another
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import warnings
from multiprocessing.pool import ThreadPool
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
X86 = platform.machine().lower() in ("x86_64", "amd64")

FLAGS = ("-std=c11 -D_GNU_SOURCE -O3 -g0 -ffp-contract=fast -fno-math-errno -fno-trapping-math -fvisibility=hidden "
         "-fno-lto -Wall -Wextra -Wshadow -Werror=implicit-function-declaration -Werror=int-conversion").split()
TIER_FLAGS = {  # kernels/isa_<tier>.c, on x86-64; each file is empty on the other architectures
    "isa_avx2": "-mavx2 -mfma -mf16c".split(),
    "isa_avx512": "-mavx512f -mavx512vl -mavx512bw -mavx512dq -mfma -mf16c -mavx2".split(),
    **dict.fromkeys(("isa_avx512vnni", "isa_amx"), "-mavx512f -mavx512vl -mavx512bw -mavx512dq -mavx512vnni -mfma -mf16c -mavx2".split()),
}
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g"]
NVCC_FLAGS = ("-O3 -std=c++17 -cudart=static -Werror all-warnings "
              "-Xcompiler -fPIC,-fvisibility=hidden,-Wall").split()
HOST_FLAGS = ("-std=c++17 -O1 -ffp-contract=fast -fno-math-errno -fvisibility=hidden -fPIC -Wall -Wextra -Werror -Wno-unknown-pragmas "
              "-Itests/cuda_host/include -Icsrc -x c++").split()
CUDA_LIBRARIES = ["cudart_static", "stdc++", "dl", "rt", "pthread"]


def switch(name, default, allowed):
    value = os.environ.get(name, default)
    if value not in allowed:
        raise SystemExit(f"{name}={value!r}: expected one of {', '.join(allowed)}")
    return value


CUDA = switch("RWKVTUNE_CUDA", "auto", ("auto", "0", "1", "host"))
ARCHS = os.environ.get("RWKVTUNE_CUDA_ARCHS", "80;90").replace(",", ";").split(";")
EXTRA = SANITIZE if switch("RWKVTUNE_SANITIZE", "0", ("0", "1")) == "1" else []
NATIVE = ["-march=native"] if switch("RWKVTUNE_NATIVE", "0", ("0", "1")) == "1" else []


def find_nvcc():
    """The compiler command for .cu files, or None. It must compile an empty file, not merely be there: an nvcc too
    old for this host compiler, or for the architectures asked for, is found out here."""
    if CUDA == "0":
        return None
    if CUDA == "host":
        return [os.environ.get("CXX", "g++"), *EXTRA, *HOST_FLAGS]
    homes = [os.environ[k] + "/bin" for k in ("CUDA_HOME", "CUDA_PATH") if k in os.environ]
    nvcc = shutil.which("nvcc", path=os.pathsep.join([*homes, os.environ.get("PATH", ""), "/usr/local/cuda/bin"]))
    problem = "nvcc was not found (looked in CUDA_HOME, CUDA_PATH, PATH and /usr/local/cuda)"
    if nvcc:
        codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHS]
        command = [nvcc, *NVCC_FLAGS, *codes, f"-gencode=arch=compute_{ARCHS[-1]},code=compute_{ARCHS[-1]}", "-Icsrc"]
        with tempfile.TemporaryDirectory() as tmp:
            probe = Path(tmp, "probe.cu")
            probe.write_text("__global__ void probe() {}\n")
            run = subprocess.run([*command, "-c", probe, "-o", probe.with_suffix(".o")], capture_output=True, text=True)
        if run.returncode == 0:
            return command
        problem = f"{nvcc} cannot compile an empty kernel:\n{run.stderr}"
    if CUDA == "1":
        raise SystemExit(f"RWKVTUNE_CUDA=1, but {problem}")
    if nvcc:
        warnings.warn(f"building without CUDA: {problem}")
    return None


def cuda_library_dirs(nvcc):
    run = subprocess.run([nvcc, "-dryrun", "-c", "any.cu"], capture_output=True, text=True)
    return re.findall(r'"-L([^"]+)"', run.stderr)


def up_to_date(obj):
    """Whether the object is newer than every file its depfile names."""
    try:
        built = obj.stat().st_mtime_ns
        files = obj.with_suffix(".d").read_text().replace("\\\n", " ").split(":", 1)[1].split()
        return all(Path(f).stat().st_mtime_ns < built for f in files)
    except (OSError, IndexError):
        return False


def compile_one(job):
    command, source, obj = job
    if not up_to_date(obj):
        obj.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([*command, "-MMD", "-MF", obj.with_suffix(".d"), "-c", source, "-o", obj], check=True)
    return str(obj)


class BuildExt(build_ext):
    def build_extension(self, ext):
        if os.name != "posix":
            raise SystemExit("rwkvtune builds on Linux and macOS; on Windows use it in WSL")
        import numpy

        os.chdir(ROOT)
        nvcc = find_nvcc()
        cc = [*self.compiler.compiler_so, *FLAGS, *EXTRA, "-Icsrc", *(["-DRK_HAVE_CUDA"] if nvcc else [])]
        python = [f"-I{sysconfig.get_path('include')}", f"-I{numpy.get_include()}"]

        def command_for(source):
            if source.suffix in (".cu", ".cpp"):
                return nvcc
            tier = (TIER_FLAGS.get(source.stem, []) if X86 else []) if source.stem.startswith("isa_") else NATIVE
            return [*cc, *tier, *(python if source.parts[1] == "py" else [])]

        # Objects of one configuration share a folder named after everything that decides them but the sources.
        if not shutil.which(cc[0]):
            raise SystemExit(f"no C compiler: {cc[0]} was not found (Debian, Ubuntu: apt install build-essential; "
                             "macOS: xcode-select --install), or set CC")
        version = subprocess.run([cc[0], "--version"], capture_output=True, text=True).stdout

        def folder_of(source):
            what = (cc, NATIVE, version, sys.version) if source.suffix == ".c" else nvcc
            return hashlib.sha1(repr(what).encode() + Path("setup.py").read_bytes()).hexdigest()[:12]

        sources = sorted(s for s in Path("csrc").rglob("*.c*") if s.suffix == ".c" or (nvcc and s.suffix == ".cu"))
        if CUDA == "host":
            sources = [s for s in sources if s.name != "blas.cu"] + sorted(Path("tests/cuda_host").glob("*.cpp"))
        jobs = [(command_for(s), s, Path("build", "objects", folder_of(s), s.with_suffix(s.suffix + ".o"))) for s in sources]
        try:
            with ThreadPool(os.cpu_count()) as pool:
                objects = pool.map(compile_one, jobs, chunksize=1)
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"compiling {error.cmd[-3]} failed (see the compiler's message above)")
        self.link(ext, objects, nvcc)

    def link(self, ext, objects, nvcc):
        path = Path("build", "cuda_host", self.get_ext_filename("_rwkvcore")) if CUDA == "host" else Path(self.get_ext_fullpath(ext.name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # a new file: a running process may still have the old one mapped
        cuda_libraries = ["stdc++"] if CUDA == "host" else CUDA_LIBRARIES
        self.compiler.link_shared_object(
            objects, str(path), libraries=[*(cuda_libraries if nvcc else []), "m", "pthread"],
            library_dirs=cuda_library_dirs(nvcc[0]) if nvcc and CUDA != "host" else [],
            extra_postargs=[*EXTRA, "-fno-lto"], build_temp=self.build_temp)


setup(ext_modules=[Extension("rwkvtune._rwkvcore", [])], cmdclass={"build_ext": BuildExt})
