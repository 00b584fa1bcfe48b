"""`check_op` and `check_ops`: what they refuse, what they find, and how they say it."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis.errors import Flaky

from pyllm2 import backends
from pyllm2.testing import Bounded, assert_all_close, assert_close, check_op, check_ops, tables

EPS = np.float32(1e-5)


def rmsnorm(x: Any, weight: Any) -> Any:
    return weight * (x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS))


def failure(name: str, function: Any, model: str | None = None) -> AssertionError:
    """The error that `check_op` raises."""
    with pytest.raises(AssertionError) as caught:
        check_op(name, function, model)
    return caught.value


# ---- names ----------------------------------------------------------------------------------


def test_a_name_that_two_models_have_is_refused() -> None:
    """The message says what to pass; with it, the op of that model is meant."""
    ops = backends.ops("numpy", package="llama2")
    with pytest.raises(ValueError, match="pass model='llama2' or model='gpt2'"):
        check_op("matmul_backward", ops.matmul_backward)
    check_op("matmul_backward", ops.matmul_backward, model="llama2")
    assert "2 results, expected a tuple of 3" in str(
        failure("matmul_backward", ops.matmul_backward, "gpt2")
    )


@pytest.mark.parametrize("model", [None, "llama2"])
def test_an_unknown_name_is_refused(model: str | None) -> None:
    """The message names those that exist."""
    expected = r"'rmsnrom' does not exist \(did you mean rmsnorm.*\): llama2 has emb"
    with pytest.raises(ValueError, match=expected):
        check_op("rmsnrom", rmsnorm, model)


def test_an_unknown_model_is_refused() -> None:
    """The message names those that exist."""
    for check in (lambda: check_op("rmsnorm", rmsnorm, "gpt3"), lambda: check_ops(1, "gpt3")):
        with pytest.raises(ValueError, match="'gpt3' does not exist: choose from llama2, gpt2"):
            check()


# ---- errors ---------------------------------------------------------------------------------


def test_a_correct_function_passes() -> None:
    """The five lines of the package's docstring."""
    check_op("rmsnorm", rmsnorm)


def test_a_changed_input_is_reported_before_wrong_values() -> None:
    """Both are wrong here, and the first explains the second."""

    def in_place(x: Any, weight: Any) -> Any:
        x *= 2
        return rmsnorm(x, weight) + 1

    assert str(failure("rmsnorm", in_place)) == "rmsnorm wrote into its input x"


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "rmsnorm: NoneType, expected an array"),
        (np.zeros((1, 0)), "rmsnorm: shape (1, 0), expected (1, 2)"),
        (np.zeros((1, 2)), "rmsnorm: dtype float64, expected float32"),
        (np.zeros((1, 2), np.float32), "rmsnorm: values are off: element (0, 1) is 0.0"),
    ],
)
def test_what_is_wrong_comes_first(found: Any, message: str) -> None:
    """Type, shape, dtype, then values."""
    bounded = Bounded(np.array([[0.0, 1.0]]), np.full((1, 2), 1e-7))
    with pytest.raises(AssertionError) as caught:
        assert_all_close(found, bounded, "rmsnorm")
    assert str(caught.value).startswith(message)


def test_an_error_is_a_multiple_of_its_bound_on_the_smallest_inputs() -> None:
    """Epsilon outside of the root: seen on one element, given as code."""

    def outside(x: Any, weight: Any) -> Any:
        return weight * (x / (np.sqrt((x * x).mean(-1, keepdims=True)) + EPS))

    error = failure("rmsnorm", outside)
    assert str(error).startswith("rmsnorm: values are off: element (0, 0) is ")
    assert " times its bound of " in str(error)
    assert "1 of 1 elements are off" in str(error)
    (note,) = error.__notes__
    inputs: dict[str, Any] = {}
    exec(note.partition("\n")[2], {"np": np}, inputs)  # the lines can be pasted
    x, weight = inputs["x"], inputs["weight"]
    assert x.shape == (1, 1)
    with pytest.raises(AssertionError):
        assert_close(outside(x, weight), tables["llama2"]["rmsnorm"].bound(x, weight))


def test_a_broken_law_is_named() -> None:
    """One array twice where two are promised."""
    error = failure("residual_backward", lambda dout: (dout.copy(),) * 2)
    assert str(error).startswith("residual_backward breaks the law results_do_not_alias")


def test_wrong_values_come_with_the_laws_that_they_break() -> None:
    """A mask that is off by one breaks causality; the law says more than the numbers."""

    def unmasked(q: Any, k: Any, v: Any) -> Any:
        scores = np.einsum("thi,shi->hts", q, np.repeat(k, q.shape[1] // k.shape[1], axis=1))
        att = np.exp(scores / np.float32(math.sqrt(q.shape[2])))
        att /= att.sum(axis=-1, keepdims=True)
        out = np.einsum("hts,shi->thi", att, np.repeat(v, q.shape[1] // v.shape[1], axis=1))
        return out.reshape(len(q), -1).astype(np.float32)

    first, second = str(failure("attention", unmasked)).splitlines()
    assert first.startswith("attention: values are off")
    assert second == "broken laws: future_does_not_change_the_past"


def test_an_exception_of_the_function_is_raised_with_its_inputs() -> None:
    """As the function raised it."""

    def raises(x: Any, weight: Any) -> Any:
        raise IndexError("beyond the end")

    with pytest.raises(IndexError, match="beyond the end") as caught:
        check_op("rmsnorm", raises)
    assert "x = np.array([[" in caught.value.__notes__[0]


def test_results_that_differ_from_call_to_call_are_reported_as_such() -> None:
    """Hypothesis finds that a failure does not repeat; no inputs are blamed."""
    calls = []

    def racing(x: Any, weight: Any) -> Any:
        calls.append(1)
        return rmsnorm(x, weight) * np.float32(1.5 if len(calls) == 1 else 1)

    with pytest.raises(Flaky) as caught:
        check_op("rmsnorm", racing)
    assert "smallest inputs" not in "".join(getattr(caught.value, "__notes__", []))


def test_several_results_are_several_arrays() -> None:
    """A single array, or one too few, is no tuple of two."""
    bounded = (Bounded(np.zeros(2), np.zeros(2)),) * 2
    zeros = np.zeros(2, np.float32)
    assert_all_close((zeros, zeros), bounded)
    for found in (zeros, (zeros,), None):
        with pytest.raises(AssertionError, match="expected"):
            assert_all_close(found, bounded)


@pytest.mark.parametrize(
    ("found", "value", "error", "passes"),
    [
        (1.0, 1.0, 0.0, True),
        (1.0, 1.5, 0.5, True),
        (1.0, 1.5, 0.4, False),
        (np.nan, 1.0, 1e30, False),
        (np.nan, np.nan, 0.0, True),
        (1.0, np.nan, 1e30, False),
        (np.inf, np.inf, 0.0, True),
        (1.0, np.inf, 1e30, False),
        (np.inf, 1.0, 1e30, False),
        (np.nan, 1.0, np.inf, True),
    ],
)
def test_closeness_of_numbers_that_are_not_finite(
    found: float, value: float, error: float, passes: bool
) -> None:
    """NaN and infinity only where they are expected; an infinite error accepts everything."""
    arguments: Any = np.array([found], np.float32), Bounded(np.array([value]), np.array([error]))
    if passes:
        assert_close(*arguments)
    else:
        with pytest.raises(AssertionError, match="values are off"):
            assert_close(*arguments)


# ---- a whole module -------------------------------------------------------------------------


def test_a_complete_module_passes() -> None:
    """Every op of the table is there and passes."""
    report = check_ops(backends.ops("numpy", package="training"), "adamw", complete=True)
    assert report.passed == list(tables["adamw"])
    assert str(report) == "adamw: 2 of 2 ops pass, 0 fail"


def test_missing_ops_are_reported_and_may_be_refused() -> None:
    """A rival that is not finished yet."""
    mine = SimpleNamespace(rmsnorm=rmsnorm, helper=1, matmul=None)
    report = check_ops(mine, "llama2")
    assert report.passed == ["rmsnorm"]
    assert report.missing == [name for name in tables["llama2"] if name != "rmsnorm"]
    assert "matmul: missing" in str(report).splitlines()
    with pytest.raises(AssertionError, match="1 of 22 ops pass"):
        check_ops(mine, "llama2", complete=True)


def test_a_module_without_any_op_is_refused() -> None:
    """It would pass for nothing."""
    with pytest.raises(ValueError, match="no op of gpt2: expected functions with the names enc"):
        check_ops(SimpleNamespace(rmsnorm=rmsnorm), "gpt2")


def test_all_failing_ops_are_reported_at_once() -> None:
    """One by its values, one by what it raises."""

    def raises(x: Any, y: Any) -> Any:
        raise IndexError("beyond the end")

    mine = SimpleNamespace(rmsnorm=lambda x, weight: x, residual=raises, swiglu=None)
    with pytest.raises(AssertionError) as caught:
        check_ops(mine, "llama2")
    lines = str(caught.value).splitlines()
    assert lines[0] == "llama2: 0 of 22 ops pass, 2 fail"
    assert any(line.startswith("rmsnorm: values are off") for line in lines)
    assert "IndexError('beyond the end')" in lines
