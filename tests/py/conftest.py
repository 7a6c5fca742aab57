"""Shared fixtures."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared():
    """The folder of reference data beside the checkout (RWKVTUNE_SHARED overrides); skips where there is none."""
    root = Path(os.environ.get("RWKVTUNE_SHARED", Path(__file__).resolve().parents[3] / "shared"))
    if not (root / "golden").is_dir():
        pytest.skip("no reference data here (set RWKVTUNE_SHARED)")
    return root
