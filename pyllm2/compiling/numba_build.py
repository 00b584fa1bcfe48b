"""Compiles Python loops to kernels with Numba: builds, threads, the cache on disk.

There is no kernel in this file. With NUMBA_DISABLE_JIT=1 the loops run as plain Python, for a
debugger.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import sys
import threading
import types
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numba
import numpy as np
from numba.core import event

from pyllm2.compiling import dependencies, kernel_cache

log = logging.getLogger("pyllm2")


# ---- the decorators ---------------------------------------------------------------------------


def kernel(*fastmath: str, parallel: bool = False) -> Callable[[Any], Kernel]:
    """Decorator: make a `Kernel` of a function.

    fastmath: "contract", "reassoc"; never "nnan" or "ninf", because a NaN must arrive
    parallel: run `prange` on several threads
    """
    return functools.partial(Kernel, fastmath=fastmath, parallel=parallel)


def device(*fastmath: str) -> Callable[[Any], Any]:
    """Decorator: make a device function, which kernels call and Python does not.

    It is compiled into its kernels and has no cache of its own. Its options are its own too: where
    they are not set, Numba takes those of whichever kernel happens to call it first.

    Numba calls its machine code by its qualified name and the number of functions that the process
    has compiled before. Two closures of one place can so have one name, if two processes compile
    them; who then loads both kernels from the cache runs one closure's code in both. So the name
    tells them apart.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        place = function.__module__, function.__qualname__
        _closures[place] += 1
        if _closures[place] > 1:
            function.__qualname__ += f"_{_closures[place]}"
        return numba.njit(**_flags(fastmath, False))(function)

    return decorate


_closures: Counter[tuple[str, str]] = Counter()  # device functions by module and qualified name


def _flags(fastmath: Collection[str], parallel: bool) -> dict[str, Any]:
    # error_model: division as in C, no check for zero
    return {"fastmath": set(fastmath), "parallel": parallel, "error_model": "numpy"}


class Kernel:
    """A function called from Python, compiled at its first call and then kept on disk.

    Numba's cache tells kernels apart by file, line and name. So the name has the options in it,
    and a digest of every file of ours that the function can reach: a stale kernel is never found.
    """

    def __init__(
        self, function: Callable[..., Any], fastmath: Collection[str] = (), parallel: bool = False
    ) -> None:
        functools.update_wrapper(self, function)
        self.py_func: Any = function
        self._fastmath, self._parallel = tuple(fastmath), parallel
        dependencies.read_files(function.__module__)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if not self._parallel:
            return self._compiled(*arguments, **named)
        with _turn():
            return self._compiled(*arguments, **named)

    @functools.cached_property
    def cache_name(self) -> str:
        """The name by which Numba's cache knows the kernel."""
        options = [*self._fastmath, *(["parallel"] if self._parallel else [])]
        digest = dependencies.digest(self.py_func, _flags)  # the flags are set in this file
        return "_".join([self.py_func.__name__, *options, digest])

    @functools.cached_property
    def _compiled(self) -> Any:
        _announce_compiling()
        f = self.py_func
        twin = types.FunctionType(
            f.__code__, f.__globals__, f.__name__, f.__defaults__, f.__closure__
        )
        twin.__qualname__, twin.__module__ = self.cache_name, f.__module__
        built = numba.njit(**_flags(self._fastmath, self._parallel))(twin)
        if built is not twin:  # it is with NUMBA_DISABLE_JIT
            kernel_cache.enable(built, twin)
        return built


class _Announcer(event.Listener):
    """Logs once per process that kernels are being compiled, which takes seconds."""

    said = False

    def on_start(self, _: Any) -> None:
        if not _Announcer.said:
            _Announcer.said = True
            log.info("compiling the Numba kernels (first run only)")

    def on_end(self, _: Any) -> None:
        pass


@functools.cache
def _announce_compiling() -> None:
    event.register("numba:compile", _Announcer())


# ---- plain ops in several builds --------------------------------------------------------------

_FASTMATH = {
    "fast": ("contract", "reassoc"),
    "strict": (),
    "ordered": (),  # strict, but in parallel
}


class Ops:
    """One build of each function, as an ops module.

    build: "fast" or "strict"
    threads: at most so many for the fast build (None: all that Numba has)
    ordered: functions whose order of roundings "fast" keeps too
    """

    def __init__(
        self,
        functions: Collection[Callable[..., Any]],
        build: str,
        threads: int | None = None,
        ordered: Collection[Callable[..., Any]] = (),
    ) -> None:
        self.build = build
        for function in functions:
            keeps = build == "fast" and function in ordered
            built: Callable[..., Any] = _built(function, "ordered" if keeps else build)
            if build == "fast" and _has_prange(function):
                built = _in_parallel(built, _built(function, "strict"), threads)
            setattr(self, function.__name__, built)


def public_functions(module: str) -> list[Callable[..., Any]]:
    """The functions that a module defines, in its order, without those that begin with `_`."""
    return [
        found
        for name, found in vars(sys.modules[module]).items()
        if isinstance(found, types.FunctionType)
        and found.__module__ == module
        and not name.startswith("_")
    ]


@functools.cache  # loading a kernel takes 20 ms: once per process, however many models there are
def _built(function: Callable[..., Any], build: str) -> Kernel:
    parallel = build != "strict" and _has_prange(function)
    return Kernel(function, _FASTMATH[build], parallel)


def _has_prange(function: Callable[..., Any]) -> bool:
    return "prange" in function.__code__.co_names


def with_one_signature(kernel: Callable[..., Any], function: Callable[..., Any]) -> Any:
    """A call of the kernel with contiguous arrays, int64 indices and every argument filled in.

    Numba compiles anew for each combination of layouts, integer types and arguments left out.
    """
    names, defaults = inspect.getfullargspec(function).args, function.__defaults__ or ()
    optional = list(enumerate(names))[len(names) - len(defaults) :]

    def call(*arguments: Any, **named: Any) -> Any:
        for (position, name), default in zip(optional, defaults, strict=True):
            if position >= len(arguments):
                named.setdefault(name, default)
        named = {name: _contiguous(argument) for name, argument in named.items()}
        return kernel(*map(_contiguous, arguments), **named)

    return call


def _contiguous(argument: Any) -> Any:
    if not isinstance(argument, np.ndarray):
        return argument
    indices = argument.dtype.kind in "iu" and argument.dtype != np.uint8  # those are bytes
    return np.ascontiguousarray(argument, np.int64 if indices else None)


# ---- threads ----------------------------------------------------------------------------------

forked = False  # True in a forked child, where a parallel kernel would abort the process


def _after_fork() -> None:
    global forked, _lock
    forked, _lock = True, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


_lock = threading.Lock()
_no_lock = contextlib.nullcontext()
_layer = ""  # what Numba runs threads with, once it has chosen


def _turn() -> contextlib.AbstractContextManager[Any]:
    """What a thread of Python holds while it runs a parallel kernel.

    Numba's layer "workqueue", which it takes where there is neither OpenMP nor TBB, aborts the
    process if two threads run parallel kernels at once.
    """
    global _layer
    if not _layer:
        try:
            _layer = numba.threading_layer()
        except ValueError:  # not chosen yet
            return _lock
    return _lock if _layer == "workqueue" else _no_lock


def _in_parallel(
    parallel: Callable[..., Any], serial: Callable[..., Any], threads: int | None
) -> Callable[..., Any]:
    """A call of the parallel kernel on `threads` threads, or of the serial one in a fork."""

    def call(*arguments: Any, **named: Any) -> Any:
        if forked:
            return serial(*arguments, **named)
        if threads is None:
            return parallel(*arguments, **named)
        with on_threads(threads):
            return parallel(*arguments, **named)

    return call


@contextlib.contextmanager
def on_threads(threads: int) -> Iterator[None]:
    """Inside the `with`, kernels run on `threads` threads, or on all if there are fewer."""
    usual = numba.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        numba.set_num_threads(usual)
