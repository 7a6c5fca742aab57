"""Finding cuBLASLt in NVIDIA's wheels: the core opens it by name, which finds what this process has loaded already."""

import ctypes
import sys
from pathlib import Path


def load_cublas():
    """Loads the newest libcublasLt of a wheel (nvidia-cublas, nvidia-cublas-cu12, ...), if there is one on sys.path."""
    found = [path for folder in sys.path for path in Path(folder or ".").glob("nvidia/*/lib/libcublasLt.so.*")]
    for path in sorted(found, key=lambda path: path.name, reverse=True):
        try:
            return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError:  # of another architecture, or damaged: the system's may do
            continue
    return None
