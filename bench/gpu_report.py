"""What the compiler made of every CUDA kernel, as one table; needs nvcc, but no GPU.

    python bench/gpu_report.py [--arch 90] [--only TEXT] [--sass FOLDER]

Registers, spilled bytes and static shared memory are ptxas's. "Warps" is how many of the 64 of an SM the registers allow. The counts of
instructions are those that stand in the machine code (nvdisasm of CUDA's toolkit or of `pip install nvidia-cuda-nvdisasm`; without it they are
missing): loads and stores of 16 bytes and of less, products on tensor cores, loads of 16 bytes from shared memory, barriers.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REGISTERS, WARPS = 65536, 64  # of an SM
COUNTED = {
    "LDG.128": r"\bLDG\.\S*128", "LDG": r"\bLDG\b(?!\S*128)", "STG.128": r"\bSTG\.\S*128", "STG": r"\bSTG\b(?!\S*128)", "cp.async": r"\bLDGSTS\b",
    "HMMA": r"\bHMMA\.", "HGMMA": r"\bHGMMA\.", "LDS.128": r"\bLDS\.\S*128", "LDSM": r"\bLDSM\b", "BAR": r"\bBAR\.",
}  # fmt: skip


def tool(name):
    """The path of a program of CUDA's toolkit, or of NVIDIA's wheels, or None."""
    wheels = [str(path) for path in Path(sysconfig.get_path("purelib"), "nvidia").glob("*/bin")]
    homes = [os.environ[key] + "/bin" for key in ("CUDA_HOME", "CUDA_PATH") if key in os.environ]
    return shutil.which(name, path=os.pathsep.join([*homes, os.environ.get("PATH", ""), "/usr/local/cuda/bin", *wheels]))


def readable(name):
    """A kernel's name with its template's arguments, of a mangled one."""
    run = subprocess.run(["c++filt", name], capture_output=True, text=True)
    plain = run.stdout.strip() or name
    plain = plain.replace("(anonymous namespace)::", "").replace("__nv_bfloat16", "bf16").replace("__half", "fp16")
    plain = re.sub(r"\((int|bool)\)|^void ", "", plain)
    return plain[: plain.index("(")] if "(" in plain else plain


def compiler_facts(text):
    """{mangled name: (registers, spilled bytes, static shared bytes)} of ptxas -v."""
    facts = {}
    for part in re.split(r"Compiling entry function '", text)[1:]:
        name = part[: part.index("'")]
        spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)
        shared = re.search(r"(\d+) bytes smem", part)
        facts[name] = int(re.search(r"Used (\d+) registers", part)[1]), int(spilled[1]) if spilled else 0, int(shared[1]) if shared else 0
    return facts


def instruction_counts(text):
    """{mangled name: {what: count}} of nvdisasm's code."""
    parts = re.split(r"^\.text\.(\S+):$", text, flags=re.M)
    return {name: {what: len(re.findall(pattern, code)) for what, pattern in COUNTED.items()} for name, code in zip(parts[1::2], parts[2::2])}


def warps_of(registers):
    """Warps of an SM that have their registers, which are given to warps by 256."""
    return min(WARPS, REGISTERS // (-(-registers * 32 // 256) * 256))


def kernels_of(source, arch, nvcc, nvdisasm, sass):
    """[(name, file, facts, counts)] of one .cu file."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "out.cubin")
        command = [nvcc, "-O3", "-std=c++17", f"-arch=sm_{arch}", "-Xptxas", "-v", "-Icsrc", "-cubin", source, "-o", cubin]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if run.returncode:
            sys.exit(f"compiling {source} failed:\n{run.stderr}")
        code = subprocess.run([nvdisasm, "-c", cubin], capture_output=True, text=True, check=True).stdout if nvdisasm else ""
    if sass and code:
        Path(sass, source.stem + ".sass").write_text(code)
    counts = instruction_counts(code)
    return [(readable(name), source.name, facts, counts.get(name, {})) for name, facts in compiler_facts(run.stderr).items()]


def table(kernels):
    """The lines of a Markdown table."""
    columns = ["kernel", "registers", "spilled", "shared", "warps", *COUNTED]
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for name, _, (registers, spilled, shared), counts in sorted(kernels, key=lambda kernel: (kernel[1], kernel[0])):
        cells = [f"`{name}`", registers, spilled or "", shared or "", warps_of(registers), *(counts.get(what, "") or "" for what in COUNTED)]
        yield "| " + " | ".join(map(str, cells)) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="90", help="compute capability, default 90")
    parser.add_argument("--only", default="", metavar="TEXT", help="kernels whose name or file contains it")
    parser.add_argument("--sass", metavar="FOLDER", help="write the machine code of each file there")
    args = parser.parse_args()
    nvcc, nvdisasm = tool("nvcc"), tool("nvdisasm")
    if not nvcc:
        sys.exit("nvcc was not found (looked in CUDA_HOME, CUDA_PATH, PATH and /usr/local/cuda)")
    if args.sass:
        Path(args.sass).mkdir(parents=True, exist_ok=True)
    sources = sorted((ROOT / "csrc").rglob("*.cu"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda source: kernels_of(source.relative_to(ROOT), args.arch, nvcc, nvdisasm, args.sass), sources)
        kernels = [kernel for kernels in found for kernel in kernels if args.only in kernel[0] or args.only in kernel[1]]
    print("\n".join(table(kernels)))
    if not nvdisasm:
        print("nvdisasm was not found: no counts of instructions (pip install nvidia-cuda-nvdisasm)")


if __name__ == "__main__":
    main()
