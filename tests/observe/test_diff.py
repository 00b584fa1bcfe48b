"""`diff` reports nothing on backends that are right, and names the op that is wrong."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from pyllm2 import backends
from pyllm2.errors import BackendError, UsageError
from pyllm2.inference.language_model import LanguageModel
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.initial import random_weights
from pyllm2.llama2.model import Llama2
from pyllm2.observe.diff import compare, diff
from pyllm2.observe.report import Report
from pyllm2.observe.runs import Prompt, Step
from pyllm2.observe.standard import Standard
from tests.observe.broken import break_op
from tests.observe.models import can_train, fixed, int8, language_models
from tests.support.command import in_process
from tests.support.llama2_files import lay_out
from tests.support.profiles import few
from tests.support.tested import able

IDS = [1, 5, 7, 5, 2, 9]
RIVAL = "c-strict"
needs_c = pytest.mark.skipif(backends.why_not(RIVAL) is not None, reason="needs a C compiler")


@functools.cache
def standard_of(family: str, training: bool) -> Standard:
    model = fixed(family)
    if not training:
        return Standard(model.model, Prompt(IDS))
    return Standard(model.trainable, Step(np.array([IDS[:-1]]), np.array([IDS[1:]])))


def found_by(family: str, training: bool, backend: str) -> Report:
    report = Report("", [backend])
    compare(report, standard_of(family, training), [backend])
    return report


def ops_of_trace(family: str, training: bool) -> list[str]:
    reference = standard_of(family, training).reference
    return sorted({r.op for r in reference} - {"dropout", "residual_backward"})


@few(5)
@given(language_models())
def test_nothing_is_outside_on_any_backend(drawn: Any) -> None:
    """Drawn models, a prompt and a training step; 500 of them in profile soak."""
    model, ids = drawn
    report = diff(model, able(), ids)
    assert report.passed, str(report)
    if len(ids) > 1 and can_train(model):
        report = diff(model, able(), ids, training=True)
        assert report.passed, str(report)


def test_a_group_wider_than_a_row_has_no_scales() -> None:
    """Arrays without elements are compared too."""
    config = Llama2Config(2, 1, 1, 1, 1, 1, 1)
    model = Llama2(config, random_weights(config, True, 0), backends.engine("numpy"))
    assert diff(LanguageModel(int8(model, 2), None, "numpy"), ["numpy"], [0]).passed


def only_local(report: Report) -> set[str]:
    return {op for f in report.faults if f.kind == "local" for op in f.ops}


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("family", ["llama2", "int8", "gpt2"])
def test_a_wrong_op_is_named(family: str, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One element of an op's result is off by a thousandth: that op is the local fault."""
    if family == "int8" and training:
        pytest.skip("int8 models cannot be trained")
    names = ops_of_trace(family, training)
    assert len(names) >= 6
    for op in names:
        with monkeypatch.context() as patch:
            break_op(patch, "numpy", op)
            report = found_by(family, training, "numpy")
        assert only_local(report) == {op}
        assert not report.passed
        assert f"numpy: {op}, first at " in str(report)
        assert any(op in line and line.startswith(">") for line in str(report).splitlines())


@needs_c
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("family", ["llama2", "gpt2"])
def test_the_stretch_of_a_wrong_whole_pass_is_named(
    family: str, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plain ops are right; the op that is wrong in the whole pass is in the stretch."""
    if family == "gpt2" and not training:
        pytest.skip("GPT-2 has no whole pass of inference")
    for op in ops_of_trace(family, training):
        if op == "rope_tables":
            continue
        with monkeypatch.context() as patch:
            break_op(patch, RIVAL, op, whole=True)
            report = found_by(family, training, RIVAL)
        (fault,) = report.faults or pytest.fail(f"{op}: nothing is outside")
        assert (fault.kind, fault.backend) == ("whole", RIVAL)
        assert op in fault.ops, fault.text
        assert "the plain ops of this stretch are all inside" in fault.text


@needs_c
@pytest.mark.parametrize(
    ("family", "op"),
    [("llama2", "rope"), ("llama2", "attention"), ("llama2", "swiglu"), ("gpt2", "gelu_forward")],
)
def test_the_stretch_of_nan_in_a_whole_pass_is_named(
    family: str, op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of zero do not stop NaN, so the probes of a stretch may not end before its origin."""
    break_op(monkeypatch, RIVAL, op, whole=True, factor=np.nan)
    (fault,) = found_by(family, family == "gpt2", RIVAL).faults
    assert fault.kind == "whole"
    assert op in fault.ops, fault.text


def test_a_tie_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tokens with the same row of the classifier: either is right."""
    model = fixed("llama2")
    table = model.model.weights.token_embedding
    logits = model.logits(IDS)
    best = int(logits[-1].argmax())
    table[(best + 1) % 30] = table[best]
    table[best, 0] = np.nextafter(table[best, 0], np.float32(9))
    report = diff(model, able(), IDS)
    assert report.passed, str(report)


def test_a_large_difference_of_logits_is_no_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first other token, with its margin."""
    from tests.observe import broken

    patch = broken.Broken(backends.ops("numpy"), "attention", lambda out: -out)
    monkeypatch.setattr(backends, "engine", lambda *_, **__: backends.Engine(patch, name="numpy"))
    report = diff(fixed("llama2"), ["numpy"], IDS)
    assert not all(check.inside for check in report.tokens)
    assert "allowed" in str(report)


def test_a_kernel_that_raises_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(_: Any) -> Any:
        raise IndexError("out of range")

    from tests.observe import broken

    patch = broken.Broken(backends.ops("numpy"), "swiglu", raises)
    monkeypatch.setattr(backends, "engine", lambda *_, **__: backends.Engine(patch, name="numpy"))
    report = diff(fixed("llama2"), ["numpy"], IDS)
    assert only_local(report) == {"swiglu"}
    assert "raises IndexError: out of range" in str(report)


def test_a_specification_that_raises_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyllm2.llama2 import ops

    def raises(*_: Any) -> Any:
        raise TypeError("no")

    monkeypatch.setattr(ops, "residual", raises)
    report = diff(fixed("llama2"), ["numpy"], IDS)
    assert only_local(report) == {"residual"}
    assert "at layer 0 residual of wo: raises TypeError: no; " in str(report)


def test_results_in_the_wrong_order_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the op after it, which raises because of the shape."""
    from pyllm2.gpt2 import ops

    right = ops.layernorm_forward
    monkeypatch.setattr(ops, "layernorm_forward", lambda *a: right(*a)[::-1])
    report = diff(fixed("gpt2"), ["numpy"], IDS, training=True)
    assert only_local(report) == {"layernorm_forward"}


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(BackendError, match="backend 'cuda' does not exist"):
        diff(fixed("llama2"), ["cuda"], IDS)
    with pytest.raises(UsageError, match="at least 2 tokens"):
        diff(fixed("llama2"), ["numpy"], [1], training=True)


def test_the_command_prints_a_table_or_json(tmp_path: Path) -> None:
    """Exit code 0 inside; formula and source places are in the report of a fault."""
    lay_out(tmp_path)
    words = ["diff", "m.bin", "--backends", "numpy", "--ids", "1,5,7"]
    outcome = in_process(words, tmp_path)
    assert (outcome.code, outcome.err) == (0, b"")
    assert outcome.out.decode().endswith("everything is inside its bound\n")
    outcome = in_process([*words, "--json", "--backward"], tmp_path)
    found = json.loads(outcome.out)
    assert found["passed"] is True
    assert {e["kind"] for e in found["entries"]} == {"local", "carried"}


def test_the_command_says_what_is_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_op(monkeypatch, "numpy", "rope")
    lay_out(tmp_path)
    outcome = in_process(["diff", "m.bin", "--backends", "numpy", "--ids", "1,5,7"], tmp_path)
    text = outcome.out.decode()
    assert outcome.code == 1
    assert "OUTSIDE: numpy: rope, first at layer 0 rope of wq: " in text
    for place in ("NumPy  pyllm2/llama2/ops.py:", "Numba  pyllm2/llama2/ops_numba.py:", "C      "):
        assert place in text
    assert "(a, b)  ->  (a·cos - b·sin, a·sin + b·cos)" in text
