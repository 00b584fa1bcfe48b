"""The toy's shards, written once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ..tested import ops_of
from .toy import write_shards

Ready = Callable[[str], None]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train_0.bin, train_1.bin and val.bin; not to be written to."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder)
    return folder


@pytest.fixture
def ready() -> Ready:
    """Skips, with the reason, where a backend cannot train here."""

    def check(backend: str) -> None:
        for package in ("gpt2", "training"):
            ops_of(backend, package)

    return check
