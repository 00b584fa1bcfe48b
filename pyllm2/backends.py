"""Backend names and the ops modules behind them, loaded on demand."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from pyllm2.errors import BackendError


def _numpy() -> Any:
    return importlib.import_module("pyllm2.llama2.ops")


def _c(build: str) -> Any:
    return importlib.import_module("pyllm2.llama2.ops_c").Ops(build)


# name -> what gives the ops of the Llama half. Best first; a strict one is never the default.
_OPS: dict[str, Callable[[], Any]] = {
    "numpy": _numpy,
    "c": lambda: _c("fast"),
    "c-strict": lambda: _c("strict"),
}

NAMES = tuple(_OPS)


def default() -> str:
    """The best backend that can run here."""
    return next(name for name in NAMES if why_not(name) is None)


def why_not(name: str) -> str | None:
    """One line that says why a backend cannot run here, fit to follow its name; None if it can."""
    if name.startswith("c"):
        from pyllm2 import native

        return native.why_not()
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
    return _OPS[name]()
