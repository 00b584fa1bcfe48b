"""An op that ends its process is named by `diff`."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from pyllm2 import backends
from pyllm2.errors import UsageError
from pyllm2.observe import guarded
from pyllm2.observe.diff import diff, prepared
from pyllm2.observe.isolated import compare_safely
from pyllm2.observe.report import Report
from tests.observe.broken import Broken
from tests.observe.models import fixed

IDS = [1, 5, 7]


@pytest.fixture(autouse=True)
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy's ops alone run here, which need no threads of kernels."""
    monkeypatch.setattr(guarded, "can_fork", lambda: True)


def test_an_op_that_ends_the_process_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def crashes(_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    broken = Broken(backends.ops("numpy"), "swiglu", crashes)
    monkeypatch.setattr(backends, "engine", lambda *_, **__: backends.Engine(broken, name="numpy"))
    model = fixed("llama2")
    report = guarded.in_child(lambda: diff(model, ["numpy"], IDS), Report("", ["numpy"]))
    (fault,) = report.faults
    assert (fault.kind, fault.ops, fault.where) == ("local", ("swiglu",), "layer 0 swiglu of w3")
    assert "ends the process, SIGKILL" in str(report)
    assert not report.passed


def test_the_op_that_damaged_the_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends in another op, later."""
    damaged = []

    def damages(out: Any) -> Any:
        damaged.append(1)
        return out * 2

    def dies(out: Any) -> Any:
        if damaged:
            os.kill(os.getpid(), signal.SIGKILL)
        return out

    broken = Broken(Broken(backends.ops("numpy"), "rope", damages), "swiglu", dies)
    monkeypatch.setattr(backends, "engine", lambda *_, **__: backends.Engine(broken, name="numpy"))
    standard, title = prepared(fixed("llama2"), ["numpy"], IDS)
    report = compare_safely(standard, ["numpy"], title)
    assert [fault.ops for fault in report.faults] == [("rope",)]
    assert "each op was then tried in a process of its own" in str(report)


def test_a_report_comes_back_as_it_is() -> None:
    model = fixed("gpt2")
    report = guarded.in_child(lambda: diff(model, ["numpy"], IDS), Report("", []))
    assert str(report) == str(diff(model, ["numpy"], IDS))


def test_an_error_of_the_user_comes_back() -> None:
    def refuses() -> Report:
        raise UsageError("no")

    with pytest.raises(Exception, match="no") as found:
        guarded.in_child(refuses, Report("", []))
    assert getattr(found.value, "exit_code", None) == 2


def test_a_bug_of_ours_is_one(capfd: pytest.CaptureFixture[str]) -> None:
    """Its traceback is printed."""
    with pytest.raises(RuntimeError, match="exit code 70"):
        guarded.in_child(lambda: 1 / 0, Report("", []))  # type: ignore[arg-type, return-value]
    assert "ZeroDivisionError" in capfd.readouterr().err
