"""The wrong programs of `wrong.py`, compiled once per session of tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conform.wrong import build


@pytest.fixture(scope="session")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run.c itself."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler named cc")
    return build(None, tmp_path_factory.mktemp("run"))
