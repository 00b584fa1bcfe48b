"""Laws of Llama-2's backward ops: functions of (op, *inputs) that raise AssertionError.

Adjoint identities compare a backward with its forward: wherever a result is linear in an input,
<gradient, input> = <dout, result>.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyllm2.testing.bounds import Bounded, U, float64
from pyllm2.testing.llama2 import bounds
from pyllm2.testing.llama2.laws import FLOAT64
from pyllm2.testing.op import Array, assert_near, assert_same
from pyllm2.testing.strategies import Tokens


def _dot(a: Any, b: Any) -> tuple[float, float]:
    """Σ a·b in float64, and its error."""
    a, b = float64(a, b)
    return float(np.sum(a * b)), FLOAT64 * float(np.sum(np.abs(a * b)))


def _assert_adjoint(
    gradient: Any, bounded: Bounded, operand: Any, dout: Any, out: Any, law: str
) -> None:
    """<gradient, operand> = <dout, out>; out in float64."""
    found, slack = _dot(gradient, operand)
    expected, more = _dot(dout, out)
    error = np.sum(bounded.error * np.abs(np.asarray(operand, np.float64)))
    assert_near(found, expected, error + slack + more, law)


# ---- embedding ------------------------------------------------------------------------------


def ones_count_the_occurrences_of_a_token(
    op: Any, dout: Array, tokens: Tokens, dtable: Array
) -> None:
    """Every occurrence of a token adds its row of dout to that token's row, and to no other."""
    found = op(np.ones_like(dout), tokens, np.zeros_like(dtable))
    times = np.bincount(tokens, minlength=len(dtable))
    assert_same(found, np.broadcast_to(times[:, None], dtable.shape), "counts of each token")


def zero_gradient_leaves_dtable_unchanged(
    op: Any, dout: Array, tokens: Tokens, dtable: Array
) -> None:
    """Adding zeros changes no bit."""
    assert_same(op(np.zeros_like(dout), tokens, dtable), dtable, "dtable + 0 = dtable")


# ---- rmsnorm --------------------------------------------------------------------------------


def dx_is_orthogonal_to_x(op: Any, dout: Array, x: Array, weight: Array) -> None:
    """dx · x = 0 except for epsilon, which leaves the fraction eps·r² of g · x · r."""
    dx = op(dout, x, weight)[0]
    error = np.sum(bounds.rmsnorm_backward(dout, x, weight)[0].error * np.abs(x), axis=-1)
    dout64, x64, weight64 = float64(dout, x, weight)
    r2 = 1 / (np.mean(x64 * x64, axis=-1) + bounds.EPS)
    along = dout64 * weight64 * x64
    left = np.sum(along, axis=-1) * np.sqrt(r2) * (bounds.EPS * r2)
    slack = FLOAT64 * np.sum(np.abs(along), axis=-1) * np.sqrt(r2)
    assert_near(np.sum(dx * x64, axis=-1), left, error + slack, "dx · x = 0")


def dweight_dot_weight_is_dout_dot_out(op: Any, dout: Array, x: Array, weight: Array) -> None:
    """Adjoint: <dweight, weight> = <dout, rmsnorm(x, weight)>."""
    dweight = op(dout, x, weight)[1]
    bounded = bounds.rmsnorm_backward(dout, x, weight)[1]
    out = bounds.rmsnorm(x, weight).value
    _assert_adjoint(dweight, bounded, weight, dout, out, "<dweight, weight> = <dout, out>")


def zero_weight_gives_zero_dx(op: Any, dout: Array, x: Array, weight: Array) -> None:
    """Weight 0: dx is 0 and dweight stays the same."""
    dx, dweight = op(dout, x, np.zeros_like(weight))
    assert not dx.any(), "dx = 0"
    error = 2 * bounds.rmsnorm_backward(dout, x, weight)[1].error
    assert_near(dweight, op(dout, x, weight)[1], error, "dweight does not depend on the weight")


# ---- matmul ---------------------------------------------------------------------------------


def dx_dot_x_and_dw_dot_w_are_dout_dot_out(op: Any, dout: Array, x: Array, w: Array) -> None:
    """Adjoint, in both arguments: <dx, x> = <dout, x·wᵀ> = <dw, w>."""
    x64, w64 = float64(x, w)
    out = x64 @ w64.T
    slack = FLOAT64 * float(np.sum(np.abs(np.asarray(dout, np.float64)) @ np.abs(w64) * np.abs(x)))
    for found, bounded, operand in zip(
        op(dout, x, w), bounds.matmul_backward(dout, x, w), (x64, w64), strict=True
    ):
        error = np.sum(bounded.error * np.abs(operand)) + slack
        expected = _dot(dout, out)[0]
        assert_near(_dot(found, operand)[0], expected, error, "<df, f> = <dout, out>")


def unit_dout_picks_a_row_of_w(op: Any, dout: Array, x: Array, w: Array) -> None:
    """Where dout is 1 at output o and 0 elsewhere, dx is row o of w, exactly."""
    os = np.arange(len(dout)) % len(w)
    e = np.eye(len(w), dtype=np.float32)[os]
    assert_same(op(e, x, w)[0], w[os] + 0, "e_o·w = w[o]")


def dout_in_one_row_picks_that_row_of_x(op: Any, dout: Array, x: Array, w: Array) -> None:
    """Where dout is 1 in row n and 0 elsewhere, every row of dw is row n of x, exactly."""
    n = len(x) // 2
    e = np.zeros_like(dout)
    e[n] = 1
    assert_same(op(e, x, w)[1], np.broadcast_to(x[n] + 0, w.shape), "dw = x[n]")


# ---- rope -----------------------------------------------------------------------------------


def backward_undoes_the_rotation(op: Any, dout: Array, cos: Array, sin: Array) -> None:
    """rope_backward(rope(x)) = x within the rounding of both and of the table.

    cos² + sin² is 1 within 2u, since each is rounded once from a number up to 1; each direction has
    two roundings of terms that are at most |a| + |b|.
    """
    a, b = dout[..., 0::2], dout[..., 1::2]
    c, s = cos[:, None], sin[:, None]
    turned = np.stack([a * c - b * s, a * s + b * c], axis=-1).reshape(dout.shape)
    size = np.repeat(np.abs(a.astype(np.float64)) + np.abs(b), 2, axis=-1)
    error = 8 * U * size + 1e-44
    assert_near(op(turned, cos, sin), dout, error, "rope_backward(rope(x)) = x")


def angle_0_returns_dout(op: Any, dout: Array, cos: Array, sin: Array) -> None:
    """cos 1 and sin 0 return dout exactly."""
    assert_same(op(dout, np.ones_like(cos), np.zeros_like(sin)), dout, "rope(dout, 1, 0) = dout")


def dx_dot_x_is_dout_dot_rope_of_x(op: Any, dout: Array, cos: Array, sin: Array) -> None:
    """Adjoint: <rope_backward(dout), x> = <dout, rope(x)>, for x of ones and twos."""
    x = np.ones_like(dout)
    x[..., 1::2] = 2
    out = bounds.rope(x, cos, sin).value
    bounded = bounds.rope_backward(dout, cos, sin)
    _assert_adjoint(op(dout, cos, sin), bounded, x, dout, out, "<dx, x> = <dout, rope(x)>")


# ---- attention ------------------------------------------------------------------------------


def future_gets_no_gradient(
    op: Any, dout: Array, q: Array, k: Array, v: Array, att: Array, keep: Array | None
) -> None:
    """The output at position 0 does not depend on later positions: their gradient is exactly 0."""
    alone = np.zeros_like(dout)
    alone[:, 0] = dout[:, 0]
    for found in op(alone, q, k, v, att, keep):
        assert not found[:, 1:].any(), "gradient of later positions"


def gradient_of_a_shared_key_is_the_sum_over_its_heads(
    op: Any, dout: Array, q: Array, k: Array, v: Array, att: Array, keep: Array | None
) -> None:
    """With a key head per query head, dk and dv summed over a group are the shared head's."""
    NH, NKV = q.shape[2], k.shape[2]
    own_k, own_v = (np.repeat(a, NH // NKV, axis=2) for a in (k, v))
    dq, dk, dv = op(dout, q, own_k, own_v, att, keep)
    B, T, _, hs = q.shape
    summed = [a.reshape(B, T, NKV, -1, hs).astype(np.float64).sum(axis=3) for a in (dk, dv)]
    shared = op(dout, q, k, v, att, keep)
    bounded = bounds.attention_backward(dout, q, k, v, att, keep)
    for found, expected, bound, what in zip(
        (dq, *summed), shared, bounded, ("dq", "dk", "dv"), strict=True
    ):
        assert_near(found, expected, 2 * bound.error, f"{what}, summed over a group")


def dv_dot_v_is_dout_dot_out(
    op: Any, dout: Array, q: Array, k: Array, v: Array, att: Array, keep: Array | None
) -> None:
    """Adjoint: <dv, v> = <dout, (att ∘ keep) · v>."""
    NH = q.shape[2]
    weights = np.asarray(att, np.float64) * (1 if keep is None else keep)
    values = np.repeat(np.asarray(v, np.float64), NH // v.shape[2], axis=2)
    out = np.einsum("bhts,bshi->bthi", weights, values).reshape(dout.shape)
    size = np.einsum("bhts,bshi->bthi", np.abs(weights), np.abs(values)).reshape(dout.shape)
    bounded = bounds.attention_backward(dout, q, k, v, att, keep)[2]
    found, slack = _dot(op(dout, q, k, v, att, keep)[2], v)
    slack += FLOAT64 * float(np.sum(np.abs(dout) * size))
    error = np.sum(bounded.error * np.abs(v)) + slack
    assert_near(found, _dot(dout, out)[0], error, "<dv, v> = <dout, out>")


def equal_keys_give_zero_dq(
    op: Any, dout: Array, q: Array, k: Array, v: Array, att: Array, keep: Array | None
) -> None:
    """A row of dscores sums to 0, so keys that are all equal give a query no gradient.

    With weights of ½ on the first and on the own position: they sum to 1 exactly.
    """
    T = q.shape[1]
    halves = np.zeros_like(att)
    halves[..., 0] += np.float32(0.5)
    halves[..., np.arange(T), np.arange(T)] += np.float32(0.5)
    inputs = dout, q, np.ones_like(k), v, halves, keep
    error = bounds.attention_backward(*inputs)[0].error * (1 + 1e-9)
    assert_near(op(*inputs)[0], 0, error, "Σ dscores = 0")


def dropped_weights_get_no_gradient(
    op: Any, dout: Array, q: Array, k: Array, v: Array, att: Array, keep: Array | None
) -> None:
    """All dropped: exactly 0 everywhere. All kept: the bits of no dropout."""
    for found in op(dout, q, k, v, att, np.zeros_like(att)):
        assert not found.any(), "gradient of what is dropped"
    kept = op(dout, q, k, v, att, np.ones_like(att))
    for found, expected in zip(kept, op(dout, q, k, v, att), strict=True):
        assert_same(found, expected, "keep 1 = no dropout")


# ---- swiglu, residual, dropout --------------------------------------------------------------


def silu_slope_is_half_at_0_and_1_at_100(op: Any, dout: Array, gate: Array, up: Array) -> None:
    """silu'(0) = ½, silu'(100) = 1; at -1e4, where exp overflows, 0 and no NaN."""
    one = np.ones_like(up)
    dgate, dup = op(dout, np.zeros_like(gate), one)
    assert_same(dgate, dout / 2, "silu'(0) = ½")
    assert not dup.any(), "silu(0) = 0"
    dgate, dup = op(dout, np.full_like(gate, 100), one)
    assert_same(dgate, dout, "silu'(100) = 1 in float32")
    assert_same(dup, dout * np.float32(100), "silu(100) = 100 in float32")
    for found in op(dout, np.full_like(gate, -1e4), up):
        assert not found.any(), "silu(-1e4) and silu'(-1e4) are 0"


def silu_slopes_at_g_and_minus_g_sum_to_1(op: Any, dout: Array, gate: Array, up: Array) -> None:
    """silu(g) - silu(-g) = g, so silu'(g) + silu'(-g) = 1."""
    one = np.ones_like(gate)
    inputs = [(one, g, one) for g in (gate, -gate)]
    error = sum(bounds.swiglu_backward(*three)[0].error for three in inputs)
    total = sum(op(*three)[0].astype(np.float64) for three in inputs)
    assert_near(total, 1, error + FLOAT64 * (1 + np.abs(gate)), "silu'(g) + silu'(-g) = 1")


def dup_dot_up_is_dout_dot_out(op: Any, dout: Array, gate: Array, up: Array) -> None:
    """Adjoint: <dup, up> = <dout, swiglu(gate, up)>."""
    out = bounds.swiglu(gate, up).value
    bounded = bounds.swiglu_backward(dout, gate, up)[1]
    _assert_adjoint(op(dout, gate, up)[1], bounded, up, dout, out, "<dup, up> = <dout, out>")


# ---- loss -----------------------------------------------------------------------------------


def dlogits_is_probs_minus_target_times_dloss(
    op: Any, dlosses: Array, probs: Array, targets: Tokens
) -> None:
    """Probability 1 at j: dloss at j, -dloss at the target; 0 if j is the target or it is -1."""
    N, V = probs.shape
    n = np.arange(N)
    sure, expected = np.zeros_like(probs), np.zeros_like(probs)
    sure[n, n % V] = 1
    expected[n, n % V] = dlosses
    expected[n, targets] -= dlosses
    expected[targets == -1] = 0
    assert_same(op(dlosses, sure, targets), expected, "(probs - target)·dloss")
    assert not op(dlosses, probs, np.full_like(targets, -1)).any(), "gradient of target -1"


def dlogits_rows_sum_to_0(op: Any, dlosses: Array, probs: Array, targets: Tokens) -> None:
    """Probabilities that sum to 1 exactly (½, ¼, ¼) give rows that sum to 0."""
    even = np.zeros_like(probs)
    _, V = probs.shape
    for share, place in ((0.5, 0), (0.25, V // 2), (0.25, V - 1)):
        even[:, place] += np.float32(share)
    total = op(dlosses, even, targets).astype(np.float64).sum(axis=-1)
    error = bounds.crossentropy_backward(dlosses, even, targets).error.sum(axis=-1)
    assert_near(total, 0, error * (1 + 1e-9), "Σ dlogits = 0")
