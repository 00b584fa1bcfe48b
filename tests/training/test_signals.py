"""Signals: the first asks a run to stop, the second ends the process."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pyllm2.training.signals import SIGNALS, stop_requests
from tests.support.command import interruptible

WAIT = """
import signal, sys, time
from pyllm2.training.signals import stop_requests
with stop_requests() as stop:
    print("ready", flush=True)
    while not stop():
        time.sleep(0.01)
    print(f"asked {stop.number}", flush=True)
    time.sleep(30 if sys.argv[1:] else 0)
"""


@pytest.fixture(autouse=True)
def not_ignored() -> Iterator[None]:
    """SIGINT and SIGHUP with their usual handlers: tests that run under `nohup` ignore both."""
    before = [signal.getsignal(n) for n in SIGNALS]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda n: n.name)
def test_the_first_signal_is_a_stop_request(number: signal.Signals) -> None:
    """The signal is recorded and nothing is interrupted; the old handlers are restored."""
    before = [signal.getsignal(n) for n in SIGNALS]
    with stop_requests() as stop:
        assert not stop()
        signal.raise_signal(number)
        assert stop()
        assert stop.number == number
    assert [signal.getsignal(n) for n in SIGNALS] == before


@pytest.mark.parametrize("second", ["SIGINT", "SIGTERM"])
def test_a_second_signal_ends_the_process(second: str) -> None:
    """A second SIGINT or SIGTERM has its default action."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT, "stay"], stdout=subprocess.PIPE, preexec_fn=interruptible
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == f"asked {signal.SIGTERM:d}\n".encode()
    process.send_signal(signal.Signals[second])
    assert process.wait(20) == -signal.Signals[second]
    process.stdout.close()


def test_a_second_hangup_is_ignored() -> None:
    """A closing terminal may send SIGHUP twice: itself and through its shell."""
    with stop_requests() as stop:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        assert stop.number == signal.SIGHUP


def test_an_ignored_hangup_stays_ignored() -> None:
    """SIGHUP does not stop a run that was started with `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
