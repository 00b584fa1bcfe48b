"""An op that ends its process is named by `diff`."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from pyllm2 import backends
from pyllm2.errors import UsageError
from pyllm2.observe import guarded, isolated, judge
from pyllm2.observe.diff import diff, prepared
from pyllm2.observe.isolated import compare_safely
from pyllm2.observe.report import Report
from pyllm2.observe.runs import on_engine
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


def test_an_op_after_which_the_comparison_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Damaged memory may make NumPy raise in our own lines; a process of its own shows the op."""
    damaged = []

    def damages(out: Any) -> Any:
        damaged.append(1)
        return out

    def measure(*arguments: Any) -> Any:
        if damaged:
            raise ValueError("shape (8002998321837831849,)")
        return right(*arguments)

    right = judge.measure
    monkeypatch.setattr(judge, "measure", measure)
    broken = Broken(backends.ops("numpy"), "rope", damages)
    monkeypatch.setattr(backends, "engine", lambda *_, **__: backends.Engine(broken, name="numpy"))
    standard, title = prepared(fixed("llama2"), ["numpy"], IDS)
    report = compare_safely(standard, ["numpy"], title)
    assert [(fault.kind, fault.ops) for fault in report.faults] == [("local", ("rope",))]
    assert "it damages the memory" in str(report)


def test_a_bug_of_the_comparison_itself_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is raised where no op and no pass has to do with it."""
    standard, title = prepared(fixed("llama2"), ["numpy"], IDS)
    monkeypatch.setattr(isolated, "compare", lambda *_: 1 / 0)
    with pytest.raises(guarded.ChildError):
        isolated.compare_safely(standard, ["numpy"], title)


@pytest.mark.parametrize("single", [False, True], ids=["prompt", "token"])
def test_the_pass_in_one_piece_that_ends_the_process_is_named(
    single: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ops = backends.ops("numpy")

    def forward(model: Any, ids: Any, *rest: Any) -> Any:
        if (len(ids) == 1) == single:
            os.kill(os.getpid(), signal.SIGKILL)
        return on_engine(model, backends.Engine(ops)).forward(ids, *rest)

    engine = backends.Engine(ops, forward=forward, name="numpy")
    monkeypatch.setattr(backends, "engine", lambda *_, **__: engine)
    standard, title = prepared(fixed("llama2"), ["numpy"], [1, 5, 7, 5])
    report = compare_safely(standard, ["numpy"], title)
    (fault,) = report.faults
    assert (fault.kind, fault.where.split()[-1]) == ("whole", "token" if single else "prompt")
    assert "attention" in fault.ops
    assert "SIGKILL" in str(report)


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
