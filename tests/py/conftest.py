"""Shared fixtures."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest


class _OtherCore:
    """Finds the compiled core at RWKVTUNE_TEST_CORE in place of the installed one: that of build/cuda_host, for example."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        return importlib.util.spec_from_file_location(name, os.environ["RWKVTUNE_TEST_CORE"]) if name == "rwkvtune._rwkvcore" else None


if os.environ.get("RWKVTUNE_TEST_CORE"):
    sys.meta_path.insert(0, _OtherCore)


@pytest.fixture(scope="session")
def shared():
    """The folder of reference data beside the checkout (RWKVTUNE_SHARED overrides); skips where there is none."""
    root = Path(os.environ.get("RWKVTUNE_SHARED", Path(__file__).resolve().parents[3] / "shared"))
    if not (root / "golden").is_dir():
        pytest.skip("no reference data here (set RWKVTUNE_SHARED)")
    return root
