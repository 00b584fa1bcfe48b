"""Signals during training: Ctrl-C, SIGTERM and SIGHUP finish the step and save it first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = [getattr(signal, n) for n in "SIGINT SIGTERM SIGHUP".split() if hasattr(signal, n)]


class StopRequest:
    """True once a signal has asked the run to stop; `number` is that signal."""

    number: int | None = None

    def __call__(self) -> bool:
        return self.number is not None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catch the first SIGINT, SIGTERM or SIGHUP; a second SIGINT or SIGTERM ends the process.

    The second one has the system's default handler, which also interrupts a long kernel. A closing
    terminal may send SIGHUP twice: after the first it is ignored. A signal that was ignored before
    (`nohup`) stays ignored.
    """
    request = StopRequest()
    caught = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread():
        caught = []  # only the main thread can have handlers

    def catch(number: int, frame: FrameType | None) -> None:
        request.number = number
        for again in caught:
            hangup = again == getattr(signal, "SIGHUP", None)
            signal.signal(again, signal.SIG_IGN if hangup else signal.SIG_DFL)

    before = {number: signal.signal(number, catch) for number in caught}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
