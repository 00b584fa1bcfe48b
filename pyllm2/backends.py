"""Backend names and the ops modules behind them, loaded on demand."""

from __future__ import annotations

import importlib
from typing import Any

from pyllm2.errors import BackendError

# name -> the ops module of the Llama half. In order of preference, the best first.
_OPS = {
    "numpy": "pyllm2.llama2.ops",
}

NAMES = tuple(_OPS)


def default() -> str:
    """The best backend that can run here."""
    return next(name for name in NAMES if why_not(name) is None)


def why_not(name: str) -> str | None:
    """One line that says why a backend cannot run here; None if it can."""
    return None


def ops(name: str) -> Any:
    """The ops module of a backend.

    Raises BackendError for a name that does not exist or a backend that cannot run here.
    """
    if name not in _OPS:
        raise BackendError(f"backend {name!r} does not exist: choose from {', '.join(NAMES)}")
    reason = why_not(name)
    if reason is not None:
        raise BackendError(f"backend {name!r} {reason}")
    return importlib.import_module(_OPS[name])
