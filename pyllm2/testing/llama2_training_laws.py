"""What must hold of an op of Llama-2's training, whatever the backend: functions of (op, *inputs).

Adjoint identities compare a backward with its forward: a gradient times what it is the gradient
for is dout times the result, wherever the result is linear in it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.testing import bounds as forward_bounds
from pyllm2.testing import llama2_training_bounds as bounds
from pyllm2.testing.bounds import Bounded, U
from pyllm2.testing.gpt2_bounds import float64
from pyllm2.testing.gpt2_laws import near
from pyllm2.testing.op import Array, assert_close, assert_same

Tokens = NDArray[np.integer]
EXACTLY = 1e-12  # of a sum's absolute terms: what the float64 of a law is itself off by


def _product(a: Any, b: Any) -> tuple[float, float]:
    """Σ a·b in float64, and what that is off by."""
    a, b = float64(a, b)
    return float(np.sum(a * b)), EXACTLY * float(np.sum(np.abs(a * b)))


def _adjoint(gradient: Any, bounded: Bounded, own: Any, dout: Any, out: Any, law: str) -> None:
    """<gradient, own> = <dout, out>; out in float64."""
    found, slack = _product(gradient, own)
    expected, more = _product(dout, out)
    error = np.sum(bounded.error * np.abs(np.asarray(own, np.float64)))
    near(found, expected, error + slack + more, law)


# ---- embedding ------------------------------------------------------------------------------


def counts_occurrences(op: Any, dout: Array, tokens: Tokens, dtable: Array) -> None:
    """Scattering ones counts: every occurrence of a token adds, none is lost, none leaks."""
    found = op(np.ones_like(dout), tokens, np.zeros_like(dtable))
    times = np.bincount(tokens, minlength=len(dtable))
    assert_same(found, np.broadcast_to(times[:, None], dtable.shape), "how often a token occurs")


def what_was_there_stays(op: Any, dout: Array, tokens: Tokens, dtable: Array) -> None:
    """Adding zeros changes no bit."""
    assert_same(op(np.zeros_like(dout), tokens, dtable), dtable, "dtable + 0 = dtable")


# ---- rmsnorm --------------------------------------------------------------------------------


def has_no_part_along_x(op: Any, dout: Array, x: Array, weight: Array) -> None:
    """dx · x = 0 but for epsilon, which leaves the share eps·r² of g · x · r."""
    dx = op(dout, x, weight)[0]
    error = np.sum(bounds.rmsnorm_backward(dout, x, weight)[0].error * np.abs(x), axis=-1)
    dout64, x64, weight64 = float64(dout, x, weight)
    r2 = 1 / (np.mean(x64 * x64, axis=-1) + forward_bounds.EPS)
    along = dout64 * weight64 * x64
    left = np.sum(along, axis=-1) * np.sqrt(r2) * (forward_bounds.EPS * r2)
    slack = EXACTLY * np.sum(np.abs(along), axis=-1) * np.sqrt(r2)
    near(np.sum(dx * x64, axis=-1), left, error + slack, "dx · x = 0")


def is_linear_in_the_weight(op: Any, dout: Array, x: Array, weight: Array) -> None:
    """Adjoint: <dweight, weight> = <dout, rmsnorm(x, weight)>."""
    dweight = op(dout, x, weight)[1]
    bounded = bounds.rmsnorm_backward(dout, x, weight)[1]
    out = forward_bounds.rmsnorm(x, weight).value
    _adjoint(dweight, bounded, weight, dout, out, "<dweight, weight> = <dout, out>")


def without_weight_nothing_comes_back(op: Any, dout: Array, x: Array, weight: Array) -> None:
    """Weight 0: dx is 0, and dweight does not notice."""
    dx, dweight = op(dout, x, np.zeros_like(weight))
    assert not dx.any()
    assert_close(dweight, bounds.rmsnorm_backward(dout, x, weight)[1], "dweight")


# ---- matmul ---------------------------------------------------------------------------------


def gives_back_the_product(op: Any, dout: Array, x: Array, w: Array) -> None:
    """Adjoint, in both arguments: <dx, x> = <dout, x·wᵀ> = <dw, w>."""
    x64, w64 = float64(x, w)
    out = x64 @ w64.T
    slack = EXACTLY * float(np.sum(np.abs(np.asarray(dout, np.float64)) @ np.abs(w64) * np.abs(x)))
    for found, bounded, own in zip(
        op(dout, x, w), bounds.matmul_backward(dout, x, w), (x64, w64), strict=True
    ):
        error = np.sum(bounded.error * np.abs(own)) + slack
        near(_product(found, own)[0], _product(dout, out)[0], error, "<df, f> = <dout, out>")


def a_single_output_picks_a_row(op: Any, dout: Array, x: Array, w: Array) -> None:
    """Where dout is 1 at output o and 0 elsewhere, dx is row o of w, exactly."""
    os = np.arange(len(dout)) % len(w)
    e = np.eye(len(w), dtype=np.float32)[os]
    assert_same(op(e, x, w)[0], w[os] + 0, "e_o·w = w[o]")


def a_single_row_picks_itself(op: Any, dout: Array, x: Array, w: Array) -> None:
    """Where dout is 1 in row n and 0 elsewhere, every row of dw is row n of x, exactly."""
    n = len(x) // 2
    e = np.zeros_like(dout)
    e[n] = 1
    assert_same(op(e, x, w)[1], np.broadcast_to(x[n] + 0, w.shape), "dw = x[n]")


# ---- rope -----------------------------------------------------------------------------------


def turns_back(op: Any, dout: Array, cos: Array, sin: Array) -> None:
    """A turn and its inverse: the pair (a, b) again, but for rounding, the table's included.

    cos² + sin² is 1 within 2u, since each is rounded once from a number up to 1; two roundings
    for the turn, and as many for the way back, of terms that are |a| + |b| each time at most.
    """
    a, b = dout[..., 0::2], dout[..., 1::2]
    c, s = cos[:, None], sin[:, None]
    turned = np.stack([a * c - b * s, a * s + b * c], axis=-1).reshape(dout.shape)
    size = np.repeat(np.abs(a.astype(np.float64)) + np.abs(b), 2, axis=-1)
    near(op(turned, cos, sin), dout, 8 * U * size + 1e-44, "rope_backward(rope(x)) = x")


def angle_zero_is_identity(op: Any, dout: Array, cos: Array, sin: Array) -> None:
    """cos 1 and sin 0 give dout back exactly."""
    assert_same(op(dout, np.ones_like(cos), np.zeros_like(sin)), dout, "rope(x, 1, 0) = x")


def is_the_transpose_of_rope(op: Any, dout: Array, cos: Array, sin: Array) -> None:
    """Adjoint: <rope_backward(dout), x> = <dout, rope(x)>, for x of ones and twos."""
    x = np.ones_like(dout)
    x[..., 1::2] = 2
    out = forward_bounds.rope(x, cos, sin).value
    bounded = bounds.rope_backward(dout, cos, sin)
    _adjoint(op(dout, cos, sin), bounded, x, dout, out, "<dx, x> = <dout, rope(x)>")


# ---- attention ------------------------------------------------------------------------------


def future_does_not_change_the_past(
    op: Any, q: Array, k: Array, v: Array, keep: Array | None
) -> None:
    """Causality: another key and value at the last position leave earlier queries alone."""
    k2, v2 = k.copy(), v.copy()
    k2[:, -1], v2[:, -1] = 5, -7
    assert_same(op(q, k2, v2, keep)[0][:, :-1], op(q, k, v, keep)[0][:, :-1], "t sees up to t")
    assert not np.triu(op(q, k, v, keep)[1], 1).any(), "no weight on the future"


def one_position_gives_its_value(op: Any, q: Array, k: Array, v: Array, keep: Array | None) -> None:
    """With a single position in sight, attention is that position's value, exactly."""
    B, _, NH, hs = q.shape
    expected = np.repeat(v[:, 0], NH // v.shape[2], axis=1).reshape(B, NH * hs)
    assert_same(op(q, k, v)[0][:, 0], expected + 0, "softmax of one score is 1")


def dropout_is_after_the_weights(op: Any, q: Array, k: Array, v: Array, keep: Array | None) -> None:
    """att does not notice it; ones keep all, to the bit; where all is dropped nothing is left."""
    out, att = op(q, k, v)
    for factor in (0, 1):
        kept = np.full_like(att, factor)
        found, weights = op(q, k, v, kept)
        assert_same(weights, att, "att is from before dropout")
        assert_same(found, factor * out, f"all weights times {factor}")


def is_the_attention_of_inference(
    op: Any, q: Array, k: Array, v: Array, keep: Array | None
) -> None:
    """Each sequence by itself is what `attention` makes of it."""
    out, _ = op(q, k, v)
    error = bounds.attention_forward(q, k, v)[0].error
    for b in range(len(q)):
        value = forward_bounds.attention(q[b], k[b], v[b]).value
        assert_close(out[b], Bounded(value, error[b]), f"sequence {b}")


def the_future_gets_no_gradient(
    op: Any, dout: Array, q: Array, k: Array, v: Array, att: Array, keep: Array | None
) -> None:
    """What only the first position says cannot depend on those after it: exactly 0 there."""
    alone = np.zeros_like(dout)
    alone[:, 0] = dout[:, 0]
    for found in op(alone, q, k, v, att, keep):
        assert not found[:, 1:].any()


def shared_heads_sum_up(
    op: Any, dout: Array, q: Array, k: Array, v: Array, att: Array, keep: Array | None
) -> None:
    """Give every query head a key of its own: the sum over a group is what the shared one gets."""
    NH, NKV = q.shape[2], k.shape[2]
    own_k, own_v = (np.repeat(a, NH // NKV, axis=2) for a in (k, v))
    dq, dk, dv = op(dout, q, own_k, own_v, att, keep)
    B, T, _, hs = q.shape
    summed = (a.reshape(B, T, NKV, -1, hs).astype(np.float64).sum(axis=3) for a in (dk, dv))
    bounded = bounds.attention_backward(dout, q, k, v, att, keep)
    assert_close(dq, bounded[0], "dq")
    for found, expected, what in zip(summed, bounded[1:], ("dk", "dv"), strict=True):
        assert_close(found, expected, f"{what}, summed over a group", np.float64)


def is_linear_in_the_values(
    op: Any, dout: Array, q: Array, k: Array, v: Array, att: Array, keep: Array | None
) -> None:
    """Adjoint: <dv, v> = <dout, (att ∘ keep) · v>."""
    NH = q.shape[2]
    weights = np.asarray(att, np.float64) * (1 if keep is None else keep)
    values = np.repeat(np.asarray(v, np.float64), NH // v.shape[2], axis=2)
    out = np.einsum("bhts,bshi->bthi", weights, values).reshape(dout.shape)
    size = np.einsum("bhts,bshi->bthi", np.abs(weights), np.abs(values)).reshape(dout.shape)
    bounded = bounds.attention_backward(dout, q, k, v, att, keep)[2]
    found, slack = _product(op(dout, q, k, v, att, keep)[2], v)
    slack += EXACTLY * float(np.sum(np.abs(dout) * size))
    error = np.sum(bounded.error * np.abs(v)) + slack
    near(found, _product(dout, out)[0], error, "<dv, v> = <dout, out>")


def softmax_gradient_sums_to_nothing(
    op: Any, dout: Array, q: Array, k: Array, v: Array, att: Array, keep: Array | None
) -> None:
    """A row of dscores sums to 0, so keys that are all alike teach a query nothing.

    With weights of a half on the first and on the own position: they sum to 1 exactly.
    """
    T = q.shape[1]
    halves = np.zeros_like(att)
    halves[..., 0] += np.float32(0.5)
    halves[..., np.arange(T), np.arange(T)] += np.float32(0.5)
    inputs = dout, q, np.ones_like(k), v, halves, keep
    dq = op(*inputs)[0]
    near(dq, 0, bounds.attention_backward(*inputs)[0].error * (1 + 1e-9), "Σ dscores = 0")


def what_is_dropped_gets_no_gradient(
    op: Any, dout: Array, q: Array, k: Array, v: Array, att: Array, keep: Array | None
) -> None:
    """All dropped: exactly 0 everywhere. All kept: as without dropout, to the bit."""
    for found in op(dout, q, k, v, att, np.zeros_like(att)):
        assert not found.any()
    kept = op(dout, q, k, v, att, np.ones_like(att))
    for found, expected in zip(kept, op(dout, q, k, v, att), strict=True):
        assert_same(found, expected, "keep 1 = no dropout")


# ---- swiglu, dropout ------------------------------------------------------------------------


def bends_at_zero(op: Any, dout: Array, gate: Array, up: Array) -> None:
    """silu'(0) = ½, silu'(100) = 1, and far below, where exp overflows, 0 and never NaN."""
    one = np.ones_like(up)
    dgate, dup = op(dout, np.zeros_like(gate), one)
    assert_same(dgate, dout / 2, "silu'(0) = ½")
    assert not dup.any()
    dgate, dup = op(dout, np.full_like(gate, 100), one)
    assert_same(dgate, dout, "silu'(100) = 1 in float32")
    assert_same(dup, dout * np.float32(100), "silu(100) = 100 in float32")
    for found in op(dout, np.full_like(gate, -1e4), up):
        assert not found.any()


def slopes_mirror(op: Any, dout: Array, gate: Array, up: Array) -> None:
    """silu(g) - silu(-g) = g, so silu'(g) + silu'(-g) = 1."""
    one = np.ones_like(gate)
    inputs = [(one, g, one) for g in (gate, -gate)]
    error = sum(bounds.swiglu_backward(*three)[0].error for three in inputs)
    total = sum(op(*three)[0].astype(np.float64) for three in inputs)
    near(total, 1, error + EXACTLY * (1 + np.abs(gate)), "silu'(g) + silu'(-g) = 1")


def is_linear_in_up(op: Any, dout: Array, gate: Array, up: Array) -> None:
    """Adjoint: <dup, up> = <dout, swiglu(gate, up)>."""
    out = forward_bounds.swiglu(gate, up).value
    bounded = bounds.swiglu_backward(dout, gate, up)[1]
    _adjoint(op(dout, gate, up)[1], bounded, up, dout, out, "<dup, up> = <dout, out>")


def keeps_or_drops(op: Any, x: Array, keep: Array | None) -> None:
    """None and ones keep every bit; zeros leave nothing; what is kept is scaled alike."""
    assert_same(op(x, None), x, "keep None")
    assert_same(op(x, np.ones_like(x)), x, "keep 1")
    assert not op(x, np.zeros_like(x)).any()
    assert_same(op(np.full_like(x, 2), keep), np.full_like(x, 2) * (1 if keep is None else keep),
                "2 · keep")  # fmt: skip


# ---- loss -----------------------------------------------------------------------------------


def ignored_targets_cost_nothing(op: Any, logits: Array, targets: Tokens) -> None:
    """-1: exactly 0, and the probabilities do not notice."""
    losses, probs = op(logits, np.full_like(targets, -1))
    assert not losses.any()
    assert_same(probs, op(logits, targets)[1], "probs do not depend on the targets")


def sums_to_one(op: Any, logits: Array, targets: Tokens) -> None:
    """Probabilities are positive and sum to 1 within the errors of their elements."""
    probs = op(logits, targets)[1]
    assert (probs >= 0).all()
    error = bounds.crossentropy_forward(logits, targets)[1].error.sum(axis=-1)
    near(probs.astype(np.float64).sum(axis=-1), 1, error + EXACTLY, "Σ probs = 1")


def shift_changes_nothing(op: Any, logits: Array, targets: Tokens) -> None:
    """Adding a whole number to small whole numbers (no rounding) gives the same bits."""
    whole = np.clip(np.round(logits), -64, 64)
    shifted = op(whole + np.float32(64), targets)
    for found, expected in zip(shifted, op(whole, targets), strict=True):
        assert_same(found, expected, "f(x + c) = f(x)")


def no_surprise_is_infinite(op: Any, logits: Array, targets: Tokens) -> None:
    """Sure of j: the loss is 0 where j came, and 10000, of a probability 0, where it did not."""
    N, V = logits.shape
    js = np.arange(N) % V
    sure = np.zeros_like(logits)
    sure[np.arange(N), js] = 1e4
    losses, probs = op(sure, targets)
    expected = np.where((targets == -1) | (targets == js), 0, 1e4)
    assert_same(losses, expected, "from the logits, not from the probability")
    assert_same(probs, sure / np.float32(1e4), "probs")


def pulls_one_up_and_one_down(op: Any, dlosses: Array, probs: Array, targets: Tokens) -> None:
    """Sure of j: dloss at j, -dloss at the target; nothing where j came, or nothing was asked."""
    N, V = probs.shape
    n = np.arange(N)
    sure, expected = np.zeros_like(probs), np.zeros_like(probs)
    sure[n, n % V] = 1
    expected[n, n % V] = dlosses
    expected[n, targets] -= dlosses
    expected[targets == -1] = 0
    assert_same(op(dlosses, sure, targets), expected, "(probs - target)·dloss")
    assert not op(dlosses, probs, np.full_like(targets, -1)).any()


def rows_sum_to_nothing(op: Any, dlosses: Array, probs: Array, targets: Tokens) -> None:
    """Probabilities that sum to 1 exactly, halves and quarters, give rows that sum to 0."""
    even = np.zeros_like(probs)
    _, V = probs.shape
    for share, place in ((0.5, 0), (0.25, V // 2), (0.25, V - 1)):
        even[:, place] += np.float32(share)
    total = op(dlosses, even, targets).astype(np.float64).sum(axis=-1)
    error = bounds.crossentropy_backward(dlosses, even, targets).error.sum(axis=-1)
    near(total, 0, error * (1 + 1e-9), "Σ dlogits = 0")
