"""Checks the include rule of csrc/. A folder includes from itself and from the folders below it:

    base <- cuda <- kernels <- ops <- mixers <- model <- train <- py,    base <- data <- py

and besides: a source file includes its own header first; file names are unique in the tree; Python.h and NumPy belong
to py/, CUDA's headers to .cu files and cuda/. Prints offending lines; exits 1 if there are any.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

BELOW = {
    "base": "",
    "cuda": "base",
    "kernels": "base",
    "ops": "base cuda kernels",
    "mixers": "base kernels ops",
    "model": "base kernels ops mixers",
    "train": "base kernels ops mixers model",
    "data": "base",
    "py": "base cuda kernels ops mixers model train data",
}
INCLUDE = re.compile(r'^\s*#\s*include\s*(<[^>]+>|"[^"]+"|\S+)')


def included(path):
    """(line number, text between the quotes or brackets, is quoted) of every include."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = INCLUDE.match(line)
        if match:
            yield number, match[1].strip('<>"'), match[1].startswith('"')


def system_header_problem(path, folder, name):
    if (name == "Python.h" or name.startswith("numpy/")) and folder != "py":
        return f"{name} belongs to py/"
    if re.match(r"(cuda|cublas|nccl|curand|nv)\w*\.h", name) and path.suffix != ".cu" and folder != "cuda":
        return f"{name} belongs to .cu files and cuda/"
    return None


def own_header_problem(root, path, includes):
    own = path.with_suffix(".h")
    name = own.relative_to(root).as_posix()
    if own.exists() and (not includes or includes[0][1] != name):
        return f"its own header {name} must be its first include"
    return None


def check(root):
    problems, places = [], defaultdict(list)
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".c", ".h", ".cu", ".cuh")):
        places[path.name].append(path)
        folder, includes = path.relative_to(root).parts[0], list(included(path))
        if folder not in BELOW:
            problems.append(f"{path}: the folder {folder}/ has no place in the include rule")
            continue
        for number, name, quoted in includes:
            problem = None if quoted else system_header_problem(path, folder, name)
            if quoted:
                target = name.split("/")[0]
                if not (root / name).is_file():
                    problem = f"no such file below {root}: {name}"
                elif target != folder and target not in BELOW[folder].split():
                    problem = f"{folder}/ may not include from {target}/"
            if problem:
                problems.append(f"{path}:{number}: {problem}")
        if path.suffix in (".c", ".cu"):
            problem = own_header_problem(root, path, includes)
            if problem:
                problems.append(f"{path}: {problem}")
    for name, paths in places.items():
        if len(paths) > 1:
            problems.append(f"{name}: the name is used {len(paths)} times: {', '.join(map(str, paths))}")
    return problems


if __name__ == "__main__":
    found = check(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / "csrc")
    print("\n".join(found) if found else "includes: in order")
    sys.exit(bool(found))
