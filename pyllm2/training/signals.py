"""Ctrl-C and its kin during training: the step is finished and saved first."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Which signal asked to stop, if any: called, it says whether; `number` says which."""

    number: int | None = None

    def __call__(self) -> bool:
        return self.number is not None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catch the first SIGINT or SIGTERM; a second SIGINT ends the process at once.

    The system then does it itself, so that it works within a long kernel, too.
    """
    request = StopRequest()

    def catch(number: int, frame: FrameType | None) -> None:
        request.number = number
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    before = {number: signal.signal(number, catch) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
