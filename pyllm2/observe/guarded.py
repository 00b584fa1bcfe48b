"""A comparison in a process of its own: an op that ends it is named.

A wrong kernel in C may write where nothing is and end its process by a signal. Forked before any
kernel is loaded, the child says in shared memory what it is at; the parent reports the op.
"""

from __future__ import annotations

import json
import mmap
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from pyllm2.errors import PyLLM2Error
from pyllm2.observe.judge import wrong
from pyllm2.observe.report import Fault, Report

SIZE = 4096
_board: mmap.mmap | None = None


class ChildError(RuntimeError):
    """The comparison itself failed in the child: a bug of ours, or memory that an op damaged."""


def at(kind: str, run: str, backend: str, op: str, place: str) -> None:
    """Say which op of which backend begins; nothing outside of `in_child`."""
    if _board is not None:
        text = json.dumps([kind, run, backend, op, place[:500]]).encode()
        _board[: len(text) + 1] = text + b"\0"


class Announced:
    """Ops that say that they begin."""

    def __init__(self, ops: Any, kind: str, run: str, backend: str) -> None:
        self._ops, self._where = ops, (kind, run, backend)

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._ops, name)
        if not callable(function):
            return function

        def announced(*arguments: Any, **keywords: Any) -> Any:
            at(*self._where, name, "the whole pass")
            found = function(*arguments, **keywords)
            at(*self._where, "", "the whole pass")
            return found

        return announced


def can_fork() -> bool:
    """Whether this process has no threads of kernels, which a child would not have."""
    numba = sys.modules.get("numba.np.ufunc.parallel")
    started = bool(getattr(numba, "_is_initialized", False))
    return hasattr(os, "fork") and not started and "pyllm2.compiling.c_library" not in sys.modules


def in_child(compare: Callable[[], Report], empty: Report) -> Report:
    """The report of `compare`, run in a child if this process can fork.

    empty: a report without entries, for the fault of an op that ends the child

    Raises PyLLM2Error, ChildError.
    """
    global _board
    if not can_fork():
        return compare()
    board = mmap.mmap(-1, SIZE)
    read, write = os.pipe()
    if sys.stdout is not None:  # None: the process was started with `>&-`
        sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _board = board
        os.close(read)
        os._exit(_send(compare, write))
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        data = stream.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if data and status == 0:
        found, says, code = pickle.loads(data)
        if found is None:
            error = PyLLM2Error(says)
            error.exit_code = code
            raise error
        return found
    if status >= 0:
        raise ChildError(f"the comparison ended with exit code {status}")
    if -status in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        raise KeyboardInterrupt
    empty.faults.append(_fault(bytes(board).partition(b"\0")[0], signal.Signals(-status).name))
    return empty


def _send(compare: Callable[[], Report], write: int) -> int:
    """In the child: write the report, or the error, to the pipe; the exit code."""
    try:
        try:
            message = pickle.dumps((compare(), "", 0))
        except PyLLM2Error as error:
            message = pickle.dumps((None, str(error), error.exit_code))
        with os.fdopen(write, "wb") as stream:
            stream.write(message)
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt):
            traceback.print_exc()
        return 70
    return 0


def _fault(text: bytes, name: str) -> Fault:
    kind, run, backend, op, place = json.loads(text or b'["local", "", "", "", "the beginning"]')
    says = f"{backend}: {op or 'a pass'}, at {place}: ends the process, {name}"
    ops = (op,) if op else ()
    return Fault(kind, run, backend, ops, place, wrong(name), says)
