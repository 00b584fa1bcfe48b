"""Backend names and the ops modules behind them, loaded on demand."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import types
from collections.abc import Callable
from typing import Any

from pyllm2.errors import BackendError


@functools.cache
def _numpy(package: str, threads: int | None) -> Any:
    """The module itself, or, where a second one has the ops of training, the names of both."""
    ops = importlib.import_module(f"{package}.ops")
    if importlib.util.find_spec(f"{package}.ops_backward") is None:
        return ops
    backward = importlib.import_module(f"{package}.ops_backward")
    return types.SimpleNamespace(**{**vars(backward), **vars(ops)})


def _c(build: str, package: str, threads: int | None) -> Any:
    return importlib.import_module(f"{package}.ops_c").Ops(build, threads)


def _numba(build: str, package: str, threads: int | None) -> Any:
    import numba

    steps_in_python = getattr(numba.config, "DISABLE_JIT", 0)  # which vector code cannot
    has_engine = package != "pyllm2.training"  # an optimizer is plain ops, nothing more
    if build == "fast" and has_engine and not steps_in_python:
        return importlib.import_module(f"{package}.engine_numba").FastOps(threads)
    return importlib.import_module(f"{package}.ops_numba").Ops(build, threads)


# name -> what gives the ops of a package. Best first; a strict one is never the default.
_OPS: dict[str, Callable[[str, int | None], Any]] = {
    "numba": functools.partial(_numba, "fast"),
    "c": functools.partial(_c, "fast"),
    "numpy": _numpy,
    "numba-strict": functools.partial(_numba, "strict"),
    "c-strict": functools.partial(_c, "strict"),
}

NAMES = tuple(_OPS)


def default() -> str:
    """The best backend that can run here."""
    return next(name for name in NAMES if why_not(name) is None)


def why_not(name: str) -> str | None:
    """One line that says why a backend cannot run here, fit to follow its name; None if it can."""
    family = name.removesuffix("-strict")
    if family == "c":
        from pyllm2 import native

        return native.why_not()
    if family == "numba":
        return _why_not_numba()
    return None


@functools.cache
def _why_not_numba() -> str | None:
    if importlib.util.find_spec("numba") is None:
        return "needs the numba package: pip install 'pyllm2[numba]'"
    wanted = os.environ.get("NUMBA_NUM_THREADS", "1")
    if not (wanted.isascii() and wanted.isdigit() and 1 <= int(wanted) <= 2**16):
        return f"cannot be loaded: NUMBA_NUM_THREADS = {wanted!r}: expected 1 to {2**16}"
    try:
        importlib.import_module("numba")
    except Exception as error:  # of an environment variable out of range, ValueError and others
        return f"cannot be loaded: {str(error).splitlines()[0] if str(error) else error!r}"
    return None


def ops(name: str, threads: int | None = None, package: str = "llama2") -> Any:
    """The ops of a backend: of `llama2`, of `gpt2`, or of `training` (the optimizer).

    threads: how many numba and c may use (None: all processors, fewer for a small model). NumPy's
    BLAS takes its number from OPENBLAS_NUM_THREADS, before NumPy is imported.

    Raises what `require` raises.
    """
    require(name)
    return _OPS[name](f"pyllm2.{package}", threads)


def require(name: str) -> None:
    """Raises BackendError for a name that does not exist or a backend that cannot run here."""
    if name not in _OPS:
        raise BackendError(f"backend {name!r} does not exist: choose from {', '.join(NAMES)}")
    reason = why_not(name)
    if reason is not None:
        raise BackendError(f"backend {name!r} {reason}")
