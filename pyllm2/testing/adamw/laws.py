"""Laws of AdamW and the gradient norm: functions of (op, *inputs) that raise AssertionError."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyllm2.testing.adamw import bounds
from pyllm2.testing.bounds import Bounded
from pyllm2.testing.op import Array, assert_close, assert_near, assert_same


def updated(function: Any, w: Array, dw: Array, m: Array, v: Array, *hyper: Any) -> Any:
    """w, m and v after an update of copies; the op writes into its arguments."""
    given = dw.copy()
    w, m, v = w.copy(), m.copy(), v.copy()
    assert function(w, given, m, v, *hyper) is None, "the op updates in place and returns None"
    assert_same(given, dw, "the gradient is only read")
    return w, m, v


def first_step_is_lr_times_the_sign(
    op: Any, w: Array, dw: Array, m: Array, v: Array, t: int, lr: float, *others: Any
) -> None:
    """From zero moments, with a tiny epsilon: w - lr · sign(gradient), for any β."""
    g = np.where(np.abs(dw) < 1e-3, np.copysign(np.float32(1), dw), dw)
    zero = np.zeros_like(w)
    inputs = w, g, zero, zero, 1, lr, others[0], others[1], 1e-30, 0.0, 1.0
    error = bounds.adamw_update(*inputs)[0].error
    expected = w.astype(np.float64) - float(np.float32(lr)) * np.sign(g)
    assert_close(updated(op, *inputs)[0], Bounded(expected, error), "w - lr·sign(g)")


def zero_gradient_leaves_only_weight_decay(
    op: Any, w: Array, dw: Array, m: Array, v: Array, t: int, lr: float, *others: Any
) -> None:
    """Zero moments stay 0, to the bit, and w shrinks by the factor 1 - lr · decay."""
    zero = np.zeros_like(w)
    inputs = w, zero, zero, zero, t, lr, *others
    found = updated(op, *inputs)
    assert_same(found[1], zero, "m")
    assert_same(found[2], zero, "v")
    w64, decay = w.astype(np.float64), float(np.float32(others[3]))
    error = bounds.adamw_update(*inputs)[0].error
    expected = w64 - float(np.float32(lr)) * decay * w64
    assert_close(found[0], Bounded(expected, error), "w·(1 - lr·decay)")


def scale_multiplies_the_gradient(
    op: Any, w: Array, dw: Array, m: Array, v: Array, t: int, lr: float, *others: Any
) -> None:
    """Scale ¼ gives the result of ¼ of the gradient with the default scale, 1, within rounding."""
    smaller = w, dw / np.float32(4), m, v, t, lr, *others[:-1]
    scaled = updated(op, w, dw, m, v, t, lr, *others[:-1], 0.25)
    bounded = bounds.adamw_update(*smaller)
    for found, expected, bound in zip(scaled, updated(op, *smaller), bounded, strict=True):
        assert_near(found, expected, 2 * bound.error, "scale · dw")


def zero_learning_rate_leaves_w_unchanged(
    op: Any, w: Array, dw: Array, m: Array, v: Array, t: int, lr: float, *others: Any
) -> None:
    """A rate of 0 changes no bit of w; the moments do not depend on the rate."""
    found = updated(op, w, dw, m, v, t, 0.0, *others)
    assert_same(found[0], w, "lr = 0")
    for moment, expected in zip(
        found[1:], updated(op, w, dw, m, v, t, lr, *others)[1:], strict=True
    ):
        assert_same(moment, expected, "moments")


def norm_of_2x_is_2_norm_of_x(op: Any, dw: Array) -> None:
    """Twice the vector has twice the norm, exactly; the norm of -x is that of x, of (3, 4) 5."""
    assert op(2 * dw) == 2 * op(dw), "|2x| = 2|x|"
    assert op(-dw) == op(dw), "|-x| = |x|"
    assert op(np.array([3, 4], np.float32)) == 5, "|(3, 4)| = 5"
    assert op(np.zeros_like(dw)) == 0, "|0| = 0"
