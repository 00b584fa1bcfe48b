"""Backends by name: their ops and their engines, imported on demand."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyllm2.compiling.processors import processors
from pyllm2.errors import BackendError

# Best first. A strict backend is never the default.
NAMES = ("numba", "c", "numpy", "numba-strict", "c-strict")
MOST_THREADS = 1024  # the stacks of 100,000 threads exhaust memory: OpenMP dies of that

log = logging.getLogger("pyllm2")


@dataclass(frozen=True)
class Engine:
    """What runs a model: ops, and whole passes where a backend has them as one kernel.

    ops has the functions of a specification (`pyllm2.llama2.ops`, `pyllm2.gpt2.ops`) by the same
    names. `forward`, `losses` and `add_gradient` are whole passes, called with the model and then
    the arguments of its method of that name; None: the model composes the pass of ops. Tests
    check that every whole pass equals the composition.

    columns: `forward` feeds so many tokens at once, or fewer, with the bits of one after the other
    """

    ops: Any
    forward: Callable[..., Any] | None = None  # (model, tokens, pos, cache, last_only)
    losses: Callable[..., Any] | None = None  # (model, tokens, targets)
    add_gradient: Callable[..., Any] | None = None  # (model, tokens, targets, dloss, grads, fresh)
    name: str = ""  # of the backend
    forward_each: Callable[..., Any] | None = None  # (model, tokens, positions, caches)
    columns: int = 1


def default() -> str:
    """Name of the best backend that can run here."""
    return next(name for name in NAMES if why_not(name) is None)


def why_not(name: str) -> str | None:
    """Why a backend cannot run here, in words that follow its name; None if it can run."""
    kind = name.removesuffix("-strict")
    if kind == "c":
        from pyllm2.compiling import c_build

        too_many = _too_many_threads("OMP_NUM_THREADS") if name == "c" else None
        return c_build.why_not() or too_many
    if kind == "numba":
        return _why_not_numba()
    return None


@functools.cache
def _why_not_numba() -> str | None:
    if importlib.util.find_spec("numba") is None:
        return "needs the numba package: pip install 'pyllm2[numba]'"
    wanted = os.environ.get("NUMBA_NUM_THREADS", "1")
    if not (wanted.isascii() and wanted.isdigit() and int(wanted[:9]) > 0):
        return f"cannot be loaded: NUMBA_NUM_THREADS = {wanted!r}: expected 1 to {MOST_THREADS}"
    if (reason := _too_many_threads("NUMBA_NUM_THREADS")) is not None:
        return reason
    try:
        importlib.import_module("numba")
    except Exception as error:  # an environment variable out of range raises ValueError and others
        return f"cannot be loaded: {str(error).splitlines()[0] if str(error) else error!r}"
    return None


def _too_many_threads(variable: str) -> str | None:
    """OpenMP's variable may be a list of numbers; it ignores one that is none."""
    value = os.environ.get(variable, "")
    if all(int(digits[:9]) <= MOST_THREADS for digits in re.findall("[0-9]+", value)):
        return None
    return f"cannot be loaded: {variable} = {value!r}: expected 1 to {MOST_THREADS}"


def _check_threads(name: str, threads: int | None) -> None:
    """Refuse an impossible number, and log a note of one that is larger than it helps."""
    variable = {"c": "OMP_NUM_THREADS", "numba": "NUMBA_NUM_THREADS"}.get(name, "")
    if threads is None:
        threads = max(map(int, re.findall("[0-9]+", os.environ.get(variable, ""))), default=1)
    if not 1 <= threads <= MOST_THREADS:
        raise BackendError(f"threads = {threads}: expected 1 to {MOST_THREADS}")
    if threads > processors():
        _note_many_threads(threads)


@functools.cache
def _note_many_threads(threads: int) -> None:
    log.info("%d threads, but %d processors: fewer may be faster", threads, processors())


@functools.cache
def ops(name: str, threads: int | None = None, package: str = "llama2") -> Any:
    """The plain ops of a backend: of `llama2`, of `gpt2`, or of `training` (the optimizer).

    threads: most threads that numba and c use, at most MOST_THREADS (None: one per processor,
    fewer for a small model).
    NumPy's BLAS reads its number from OPENBLAS_NUM_THREADS when NumPy is imported.

    Raises what `require` raises, and BackendError for an impossible number of threads.
    """
    require(name)
    _check_threads(name, threads)
    kind, _, strict = name.partition("-")
    if kind == "numpy":
        return importlib.import_module(f"pyllm2.{package}.ops")
    module = importlib.import_module(f"pyllm2.{package}.ops_{kind}")
    return module.Ops(strict or "fast", threads)


def engine(name: str, threads: int | None = None, family: str = "llama2") -> Engine:
    """The engine of a backend for a model of a family, `llama2` or `gpt2`.

    threads: see `ops`. Raises what `require` raises.
    """
    plain = ops(name, threads, family)
    if name in ("c", "c-strict"):
        forward = plain.forward if family == "llama2" else None
        return Engine(plain, forward, plain.losses, plain.add_gradient, name)
    if name == "numba" and not _jit_is_disabled():
        if family == "llama2":
            from pyllm2.fast.llama2.decode import COLUMNS
            from pyllm2.fast.llama2.engine import Decoding, training_step

            step, decoding = training_step(plain, threads), Decoding(plain, threads)
            passes = decoding.forward, step.losses, step.add_gradient
            return Engine(plain, *passes, name, decoding.forward_each, COLUMNS)
        from pyllm2.fast.gpt2 import engine as gpt2

        step = gpt2.training_step(plain, threads)
        return Engine(plain, None, step.losses, step.add_gradient, name)
    return Engine(plain, name=name)


def _jit_is_disabled() -> bool:
    """Whether kernels run as plain Python, for a debugger, which vector code cannot."""
    import numba

    return bool(getattr(numba.config, "DISABLE_JIT", 0))


def require(name: str) -> None:
    """Check that a backend exists and can run here. Raises BackendError."""
    if name not in NAMES:
        raise BackendError(f"backend {name!r} does not exist: choose from {', '.join(NAMES)}")
    reason = why_not(name)
    if reason is not None:
        raise BackendError(f"backend {name!r} {reason}")
