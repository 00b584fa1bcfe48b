"""SIGTERM and SIGHUP end a command as Ctrl-C does: its temporary files are removed first.

`noticed` is for a wait in readline, which a signal alone may not end.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NUMBERS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def _end(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # the second one ends the process at once
    raise SystemExit(128 + number)


@contextmanager
def handled() -> Iterator[None]:
    """The first SIGTERM or SIGHUP raises SystemExit with code 143 or 129.

    A signal that is ignored (`nohup`) or has a handler stays as it is, and so do all of them in
    another thread than the main one.
    """
    caught = [number for number in NUMBERS if signal.getsignal(number) is signal.SIG_DFL]
    with _handlers(caught, _end):
        yield


@contextmanager
def immediate() -> Iterator[None]:
    """These signals end the process at once again: for a library that Python cannot interrupt."""
    caught = [number for number in NUMBERS if signal.getsignal(number) is _end]
    with _handlers(caught, signal.SIG_DFL):
        yield


@contextmanager
def noticed() -> Iterator[None]:
    """Inside the `with`, a signal ends `input`, whenever it comes and whichever thread takes it.

    A signal leaves a mark, and Python's handler runs once the main thread is back from readline.
    One that comes just before readline waits for a key, or that another thread takes, does not
    bring it back. So a thread that hears of the signal says SIGWINCH to the main thread until the
    `with` is over: at that one readline does nothing but draw its line anew and look for marks.
    It must be no signal with a handler in Python: two such at once make `input` a SystemError.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard, told = os.pipe()
    over = threading.Event()

    def insist() -> None:
        if os.read(heard, 1):  # nothing: it is over
            while not over.wait(0.05):
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGWINCH)

    thread = threading.Thread(target=insist, daemon=True)
    os.set_blocking(told, False)
    before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        os.close(told)
        thread.join()
        os.close(heard)


@contextmanager
def _handlers(numbers: list[int], handler: object) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
