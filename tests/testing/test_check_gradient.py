"""`check_gradient` and `gradcheck FILE.py:NAME`: an op that has no name here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyllm2.testing import check_gradient, check_op
from tests.support.command import in_process

X = np.linspace(-1, 2, 6, dtype=np.float32).reshape(2, 3)
W = np.arange(1, 4, dtype=np.float32)


def scaled(x: Any, w: Any, n: int) -> Any:
    return np.tanh(x) * w * n


def scaled_backward(dout: Any, x: Any, w: Any, n: int) -> Any:
    return dout * w * n * (1 - np.tanh(x) ** 2), (dout * np.tanh(x) * n).sum(axis=0)


def test_a_right_gradient_passes() -> None:
    """Inputs that are no arrays of floats are passed on; the error found is returned."""
    found = check_gradient(scaled, scaled_backward, X, W, 2)
    assert found.passed
    assert found.relative < 1e-6  # differences are good to nine digits


@pytest.mark.parametrize(
    ("backward", "message"),
    [
        (lambda d, x, w, n: (d * w * n, (d * np.tanh(x) * n).sum(0)), "the gradient of input 0"),
        (lambda d, x, w, n: (scaled_backward(d, x, w, n)[0], d.sum(0)), "the gradient of input 1"),
        (lambda d, x, w, n: d, "1 gradients, expected 2"),
        (lambda d, x, w, n: (None, d), "gradient of input 0: NoneType, expected an array"),
        (lambda d, x, w, n: (d.astype(np.float32), d), "float32 from float64 inputs"),
        (lambda d, x, w, n: (d, d), r"gradient of input 1: shape \(2, 3\), expected \(3,\)"),
        (lambda d, x, w, n: x.sort() or (d, d), "wrote into input 0"),
    ],
)
def test_what_is_wrong_is_said(backward: Any, message: str) -> None:
    """The first fault, with the number of the input."""
    x = X[:, ::-1].copy()
    with pytest.raises(AssertionError, match=message):
        check_gradient(scaled, backward, x, W, 2)


OWN = """
import numpy as np
def square(x): return x * x
def square_backward(dout, x): return {} * dout * x
def square_inputs(random): return (random.standard_normal(4),)
"""


@pytest.mark.parametrize(
    ("factor", "code", "line"),
    [("2", 0, "square: 3 examples, largest relative error"), ("3", 1, "square_backward: the gra")],
)
def test_the_command_checks_a_function_of_a_file(
    factor: str, code: int, line: str, tmp_path: Path
) -> None:
    """Exit code 1 for a wrong gradient."""
    (tmp_path / "own.py").write_text(OWN.format(factor))
    outcome = in_process("gradcheck own.py:square --examples 3".split(), tmp_path)
    assert outcome.code == code
    assert outcome.out.decode().startswith(line)
    (tmp_path / "broken.py").write_text("1 / 0")
    outcome = in_process(["gradcheck", "broken.py:x"], tmp_path)
    assert b"broken.py: cannot be run: ZeroDivisionError: division by zero" in outcome.err
    outcome = in_process(["gradcheck", "own.py:cube"], tmp_path)
    expected = "own.py: has no function cube, cube_backward, cube_inputs"
    assert outcome.err.decode() == f"pyllm2: error: {expected}\n"


# ---- check_op ---------------------------------------------------------------------------------


def rmsnorm(x: Any, weight: Any) -> Any:
    return weight * (x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(1e-5)))


def test_success_is_a_small_report() -> None:
    """Examples, and the largest share of the bound."""
    held = check_op("rmsnorm", rmsnorm)
    assert held.examples > 1
    assert 0 < held.share <= 1
    assert str(held).startswith(f"rmsnorm: {held.examples} examples, at most 0.")


def test_another_number_of_arguments_is_one_sentence() -> None:
    """With the arguments of the op."""
    with pytest.raises(AssertionError, match=r"rmsnorm is called with \(x, weight\): too many"):
        check_op("rmsnorm", lambda x: x)


def test_the_nearest_names_are_said() -> None:
    with pytest.raises(ValueError, match=r"'rmsnrom' does not exist \(did you mean rmsnorm"):
        check_op("rmsnrom", rmsnorm)


def test_a_warning_of_the_function_comes_once() -> None:
    """However many examples there are."""
    import warnings

    def noisy(x: Any, weight: Any) -> Any:
        warnings.warn("hm", UserWarning, stacklevel=1)
        return rmsnorm(x, weight)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_op("rmsnorm", noisy)
    assert [str(w.message) for w in caught] == ["hm"]
