"""How loops written in Python become kernels: builds, threads, caches. No kernel is in here.

A kernel calls compiled code of its own file only: Numba's cache does not notice an edit elsewhere.

With NUMBA_DISABLE_JIT=1 the loops run as plain Python, for a debugger.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import types
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numba
import numpy as np
from numba.core import event

log = logging.getLogger("pyllm2")

_FASTMATH = {
    "fast": ("contract", "reassoc"),  # not nnan or ninf: a NaN must arrive
    "strict": (),
    "ordered": (),  # strict, but in parallel
}


class Ops:
    """One build of each function, as an ops module; compiled at its first call.

    build: "fast" or "strict"   ordered: functions whose roundings are kept even by "fast"
    threads: how many the fast build may use (None: all that Numba has)
    """

    def __init__(
        self,
        functions: Collection[Callable[..., Any]],
        build: str,
        threads: int | None = None,
        ordered: Collection[Callable[..., Any]] = (),
    ) -> None:
        self.build = build
        _announce_compiling()
        for function in functions:
            keeps = build == "fast" and function in ordered
            kernel = _compiled(function, "ordered" if keeps else build)
            if build == "fast" and _shares_work(function):
                kernel = _in_parallel(kernel, _compiled(function, "strict"), threads)
            setattr(self, function.__name__, kernel)


def _shares_work(function: Callable[..., Any]) -> bool:
    return "prange" in function.__code__.co_names


forked = False  # in a child of a process that has run parallel kernels, another would abort


def _after_fork() -> None:
    global forked
    forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _in_parallel(
    parallel: Callable[..., Any], serial: Callable[..., Any], threads: int | None
) -> Callable[..., Any]:
    """A kernel on so many threads; in a forked child the serial one."""

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
    """So many threads for the kernels inside a `with`; more than there are is all of them."""
    usual = numba.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        numba.set_num_threads(usual)


def with_one_signature(kernel: Callable[..., Any], function: Callable[..., Any]) -> Any:
    """A kernel for arrays without gaps, indices of int64 and no defaults, given whatever there is.

    Numba compiles anew for every combination of layouts, integer types and arguments left out.
    """
    names, defaults = inspect.getfullargspec(function).args, function.__defaults__ or ()
    optional = list(enumerate(names))[len(names) - len(defaults) :]

    def call(*arguments: Any, **named: Any) -> Any:
        for (position, name), default in zip(optional, defaults, strict=True):
            if position >= len(arguments):
                named.setdefault(name, default)
        named = {name: _in_order(argument) for name, argument in named.items()}
        return kernel(*map(_in_order, arguments), **named)

    return call


def _in_order(argument: Any) -> Any:
    if not isinstance(argument, np.ndarray):
        return argument
    return np.ascontiguousarray(argument, np.int64 if argument.dtype.kind in "iu" else None)


class _Announcer(event.Listener):
    """Says once that kernels are being compiled: it takes seconds, and only the first time."""

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


def _compiled(function: Callable[..., Any], build: str) -> Any:
    """The jitted twin of a function, kept on disk where that is possible.

    Numba's cache tells entries apart by file and qualified name, not by options, and does not
    notice an edit of this file: the options become part of the name.
    """
    fastmath = _FASTMATH[build]
    parallel = build != "strict" and _shares_work(function)
    twin = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__
    )
    options = [*fastmath, "parallel"] if parallel else [*fastmath]
    twin.__qualname__ = "_".join([function.__name__, *options])
    twin.__module__ = function.__module__
    # error_model: division as in C, no check for zero
    flags: dict[str, Any] = {
        "fastmath": set(fastmath), "parallel": parallel, "error_model": "numpy",
    }  # fmt: skip
    try:
        return numba.njit(cache=True, **flags)(twin)
    except RuntimeError:  # "cannot cache function": no folder can be written
        return numba.njit(**flags)(twin)
