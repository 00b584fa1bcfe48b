"""Fixtures: the shards of the toy model, and a check that a backend can train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tested import ops_of
from tests.support.toy_training import write_shards

RequireBackend = Callable[[str], None]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A read-only folder with train_0.bin, train_1.bin and val.bin."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder)
    return folder


@pytest.fixture
def require_backend() -> RequireBackend:
    """Skip a test, with the reason, if a backend cannot train here."""

    def check(backend: str) -> None:
        for package in ("gpt2", "training"):
            ops_of(backend, package)

    return check
