"""The table of the optimizer's ops: inputs, bound, laws."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyllm2.testing import training_bounds as bounds
from pyllm2.testing import training_strategies as strategies
from pyllm2.testing.bounds import Bounded
from pyllm2.testing.op import Array, Op, assert_all_close, assert_close, assert_same


def updated(function: Any, w: Array, dw: Array, m: Array, v: Array, *hyper: Any) -> Any:
    """w, m and v after an update, which writes into what it is given; here that is copies."""
    given = dw.copy()
    w, m, v = w.copy(), m.copy(), v.copy()
    assert function(w, given, m, v, *hyper) is None, "it writes, and returns nothing"
    assert_same(given, dw, "the gradient is only read")
    return w, m, v


def normed(function: Any, dw: Array) -> Any:
    """A norm as a 0-dimensional array, which is what a bound speaks of."""
    norm = function(dw)
    assert isinstance(norm, float), f"{type(norm)}, expected a float"
    return np.array(norm)


# ---- laws -----------------------------------------------------------------------------------


def the_first_step_is_the_sign(
    op: Any, w: Array, dw: Array, m: Array, v: Array, t: int, lr: float, *others: Any
) -> None:
    """From zero moments, with a tiny epsilon: lr against the sign of the gradient, whatever β."""
    g = np.where(np.abs(dw) < 1e-3, np.copysign(np.float32(1), dw), dw)
    zero = np.zeros_like(w)
    inputs = w, g, zero, zero, 1, lr, others[0], others[1], 1e-30, 0.0, 1.0
    error = bounds.adamw_update(*inputs)[0].error
    expected = w.astype(np.float64) - float(np.float32(lr)) * np.sign(g)
    assert_close(updated(op, *inputs)[0], Bounded(expected, error), "w - lr·sign(g)")


def without_gradient_only_decay_acts(
    op: Any, w: Array, dw: Array, m: Array, v: Array, t: int, lr: float, *others: Any
) -> None:
    """Moments stay 0, to the bit, and w shrinks by lr times the decay."""
    zero = np.zeros_like(w)
    inputs = w, zero, zero, zero, t, lr, *others
    found = updated(op, *inputs)
    assert_same(found[1], zero, "m")
    assert_same(found[2], zero, "v")
    w64, decay = w.astype(np.float64), float(np.float32(others[3]))
    error = bounds.adamw_update(*inputs)[0].error
    expected = w64 - float(np.float32(lr)) * decay * w64
    assert_close(found[0], Bounded(expected, error), "w·(1 - lr·decay)")


def scale_is_a_smaller_gradient(
    op: Any, w: Array, dw: Array, m: Array, v: Array, t: int, lr: float, *others: Any
) -> None:
    """A quarter as the scale is a quarter of the gradient, within the bound of either."""
    once = updated(op, w, dw, m, v, t, lr, *others[:-1], 0.25)
    smaller = dw / np.float32(4)
    assert_all_close(once, bounds.adamw_update(w, smaller, m, v, t, lr, *others[:-1]))


def standing_still_leaves_w(
    op: Any, w: Array, dw: Array, m: Array, v: Array, t: int, lr: float, *others: Any
) -> None:
    """A rate of 0 changes no bit of w, and the moments as ever."""
    found = updated(op, w, dw, m, v, t, 0.0, *others)
    assert_same(found[0], w, "lr = 0")
    assert_all_close(found, bounds.adamw_update(w, dw, m, v, t, 0.0, *others))


def grows_with_its_vector(op: Any, dw: Array) -> None:
    """Twice the vector is twice the norm, exactly; signs do not matter; 3 and 4 make 5."""
    assert op(2 * dw) == 2 * op(dw)
    assert op(-dw) == op(dw)
    assert op(np.array([3, 4], np.float32)) == 5
    assert op(np.zeros_like(dw)) == 0


TRAINING_OPS = {
    op.name: op
    for op in [
        Op(
            "adamw_update",
            strategies.adamw_update_inputs(),
            bounds.adamw_update,
            [
                the_first_step_is_the_sign,
                without_gradient_only_decay_acts,
                scale_is_a_smaller_gradient,
                standing_still_leaves_w,
            ],
            call=updated,
        ),
        Op(
            "global_norm",
            strategies.global_norm_inputs(),
            bounds.global_norm,
            [grows_with_its_vector],
            call=normed,
            dtype=np.float64,
        ),
    ]
}
