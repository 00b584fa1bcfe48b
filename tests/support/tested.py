"""Backends under test: all, or those in $PYLLM2_TEST_BACKENDS (comma-separated)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from pyllm2 import backends

_named = os.environ.get("PYLLM2_TEST_BACKENDS")
BACKENDS = tuple(_named.split(",")) if _named else backends.NAMES


def engine_of(backend: str, family: str = "llama2") -> backends.Engine:
    """The engine of a backend; skips the test, with the reason, if it cannot run here."""
    _skip_if_it_cannot_run(backend)
    return backends.engine(backend, family=family)


def ops_of(backend: str, package: str = "llama2") -> Any:
    """The ops of a backend; skips the test, with the reason, if it cannot run here."""
    _skip_if_it_cannot_run(backend)
    return backends.ops(backend, package=package)


def able() -> list[str]:
    """The backends that can run here; skips where none can."""
    found = [backend for backend in BACKENDS if backends.why_not(backend) is None]
    if not found:
        pytest.skip(f"none of these backends can run: {', '.join(BACKENDS)}")
    return found


def functions_of(name: str, package: str = "llama2") -> dict[str, Callable[..., Any]]:
    """An op on every backend that can run here, by a label for error messages."""
    return {
        f"{name} on {backend}": getattr(backends.ops(backend, package=package), name)
        for backend in able()
    }


def _skip_if_it_cannot_run(backend: str) -> None:
    reason = backends.why_not(backend)
    if reason is not None:
        pytest.skip(f"backend {backend} {reason}")
