"""Laws of GPT-2's ops: functions of (op, *inputs) that raise AssertionError.

A law holds for every backend. Most build inputs of their own from the shapes of those drawn, so
that the result is known exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.testing.gpt2 import bounds
from pyllm2.testing.op import Array, assert_near, assert_same

Tokens = NDArray[np.integer]


# ---- encoder --------------------------------------------------------------------------------


def zero_wpe_copies_rows_of_wte(op: Any, tokens: Tokens, wte: Array, wpe: Array) -> None:
    """Adding zeros changes no bit."""
    assert_same(op(tokens, wte, np.zeros_like(wpe)), wte[tokens], "wpe = 0 gives rows of wte")


def ones_count_the_occurrences_of_a_token(
    op: Any, dout: Array, tokens: Tokens, dwte: Array, dwpe: Array
) -> None:
    """Every occurrence adds its row of dout to its token and to its position, and to no other."""
    B, T = tokens.shape
    wte, wpe = op(np.ones_like(dout), tokens, np.zeros_like(dwte), np.zeros_like(dwpe))
    times = np.bincount(tokens.ravel(), minlength=len(dwte))
    assert_same(wte, np.broadcast_to(times[:, None], dwte.shape), "counts of each token")
    rows = np.where(np.arange(len(dwpe)) < T, B, 0)
    assert_same(wpe, np.broadcast_to(rows[:, None], dwpe.shape), "B at every position used")


# ---- layernorm ------------------------------------------------------------------------------


def rows_sum_to_0(op: Any, x: Array, w: Array, b: Array) -> None:
    """With weight 1 and bias 0 a row sums to 0."""
    out = op(x, np.ones_like(w), np.zeros_like(b))[0]
    error = bounds.layernorm_forward(x, np.ones_like(w), np.zeros_like(b))[0].error.sum(axis=-1)
    assert_near(out.astype(np.float64).sum(axis=-1), 0, error, "Σ layernorm(x) = 0")


def zero_weight_returns_the_bias(op: Any, x: Array, w: Array, b: Array) -> None:
    """With weight 0 a row is the bias, exactly."""
    assert_same(op(x, np.zeros_like(w), b)[0] + 0, np.broadcast_to(b, x.shape) + 0, "w = 0")


def dx_is_orthogonal_to_1_and_to_n(
    op: Any, dout: Array, x: Array, w: Array, mean: Array, rstd: Array
) -> None:
    """dx · 1 = dx · n = 0, checked on rows of ±1, which equal their own n."""
    C = x.shape[-1] // 2 * 2
    if C == 0:
        return
    dout, w = dout[..., :C].copy(), w[:C].copy()
    n = np.broadcast_to(np.resize(np.array([1, -1], np.float32), C), dout.shape).copy()
    inputs = dout, n, w, np.zeros_like(mean), np.ones_like(rstd)
    dx = op(*inputs)[0].astype(np.float64)
    error = bounds.layernorm_backward(*inputs)[0].error.sum(axis=-1)
    assert_near(dx.sum(axis=-1), 0, error, "Σ dx = 0")
    assert_near((dx * n).sum(axis=-1), 0, error, "Σ dx·n = 0")


# ---- matmul ---------------------------------------------------------------------------------


def unit_rows_pick_columns_of_w(op: Any, x: Array, w: Array, b: Array | None) -> None:
    """A row that is 1 at j and 0 elsewhere picks column j of w, exactly."""
    B, T, C = x.shape
    js = np.arange(B * T) % C
    e = np.eye(C, dtype=np.float32)[js].reshape(B, T, C)
    assert_same(op(e, w, None), w.T[js].reshape(B, T, -1) + 0, "e_j·wᵀ = w[:, j]")


def zero_rows_return_the_bias(op: Any, x: Array, w: Array, b: Array | None) -> None:
    """The bias is added to every row."""
    if b is not None:
        expected = np.broadcast_to(b, (*x.shape[:2], len(b)))
        assert_same(op(np.zeros_like(x), w, b), expected, "0·wᵀ + b = b")


def dx_dot_x_and_dw_dot_w_are_dout_dot_out(op: Any, dout: Array, x: Array, w: Array) -> None:
    """Adjoint: <dx, x> = <dout, x·wᵀ> = <dw, w>, and <db, 1> = <dout, 1>."""
    found = op(dout, x, w)
    errors = [bounded.error for bounded in bounds.matmul_backward(dout, x, w)]
    x64, w64, dout64 = (a.astype(np.float64) for a in (x, w, dout))
    product = np.sum(dout64 * (x64 @ w64.T))
    operands = x64, w64, np.ones(len(w))
    expecteds = product, product, dout64.sum()
    for d, e, a, expected in zip(found, errors, operands, expecteds, strict=True):
        slack = 1e-12 * np.sum(np.abs(dout64) @ np.abs(w64) * np.abs(x64))
        assert_near(np.sum(d * a), expected, np.sum(e * np.abs(a)) + slack, "<df, f> = <dout, out>")


def unit_dout_picks_a_row_of_w(op: Any, dout: Array, x: Array, w: Array) -> None:
    """Where dout is 1 at output o and 0 elsewhere, dx is row o of w, exactly."""
    B, T, OC = dout.shape
    os = np.arange(B * T) % OC
    e = np.eye(OC, dtype=np.float32)[os].reshape(B, T, OC)
    assert_same(op(e, x, w)[0], w[os].reshape(x.shape) + 0, "e_o·w = w[o]")


# ---- attention ------------------------------------------------------------------------------


def future_does_not_change_the_past(op: Any, qkv: Array, NH: int, first: int) -> None:
    """Causality: another key and value at the last position leave earlier queries unchanged."""
    other = qkv.copy()
    other[:, -1, qkv.shape[-1] // 3 :] = 5
    assert_same(op(other, NH)[0][:, :-1], op(qkv, NH)[0][:, :-1], "query t sees up to t")


def last_queries_equal_those_of_the_whole(op: Any, qkv: Array, NH: int, first: int) -> None:
    """`first` skips queries and changes nothing else, within the bound of all queries."""
    out, att = op(qkv, NH, first)
    whole_out, whole_att = op(qkv, NH)
    out_error, att_error = (2 * bound.error for bound in bounds.attention_forward(qkv, NH, first))
    assert_near(out, whole_out[:, first:], out_error, "out from first on")
    assert_near(att, whole_att[:, :, first:], att_error, "att from first on")


def zero_queries_average_the_values(op: Any, qkv: Array, NH: int, first: int) -> None:
    """A query of 0 weighs all visible positions equally; the first sees only itself, exactly."""
    B, P, C3 = qkv.shape
    zero = qkv.copy()
    zero[..., : C3 // 3] = 0
    out, att = op(zero, NH)
    assert_same(out[:, 0], zero[:, 0, 2 * C3 // 3 :], "position 0 gets its own value")
    alike = np.tril(np.ones((P, P))) / np.arange(1, P + 1)[:, None]
    error = bounds.attention_forward(zero, NH)[1].error
    assert_near(att, np.broadcast_to(alike, (B, NH, P, P)), error, "weights 1/(t + 1)")


def scores_far_below_minus_10000_get_weight_0(op: Any, qkv: Array, NH: int, first: int) -> None:
    """Every score at -40000 or less: weights and output are 0, and no NaN."""
    low = qkv.copy()
    C = qkv.shape[-1] // 3
    low[..., :C], low[..., C : 2 * C] = -200, 200
    out, att = op(low, NH)
    assert not out.any(), "out = 0"
    assert not att.any(), "att = 0"


def future_gets_no_gradient(op: Any, dout: Array, qkv: Array, att: Array) -> None:
    """The output at position 0 does not depend on later positions: their gradient is exactly 0."""
    alone = np.zeros_like(dout)
    alone[:, 0] = dout[:, 0]
    assert not op(alone, qkv, att)[:, 1:].any(), "gradient of later positions"


def dk_sums_to_0_over_positions(op: Any, dout: Array, qkv: Array, att: Array) -> None:
    """The same vector added to all keys changes no weight, so dk sums to 0 over positions.

    With weights of ½ on the first and on the own position: they sum to 1 exactly.
    """
    _, T, C = dout.shape
    halves = np.zeros_like(att)
    halves[..., 0] += np.float32(0.5)
    halves[..., np.arange(T), np.arange(T)] += np.float32(0.5)
    keys = slice(C, 2 * C)
    dk = op(dout, qkv, halves)[..., keys].astype(np.float64)
    error = bounds.attention_backward(dout, qkv, halves).error[..., keys]
    assert_near(dk.sum(axis=1), 0, error.sum(axis=1) * (1 + 1e-9), "Σ dk over positions = 0")


# ---- gelu -----------------------------------------------------------------------------------


def gelu_x_minus_gelu_minus_x_is_x(op: Any, x: Array) -> None:
    """gelu(x) = x·Φ(x), and Φ(x) + Φ(-x) = 1."""
    error = bounds.gelu_forward(x).error + bounds.gelu_forward(-x).error
    assert_near(op(x).astype(np.float64) - op(-x), x, error, "gelu(x) - gelu(-x) = x")


def gelu_is_exact_at_0_and_at_60(op: Any, x: Array) -> None:
    """gelu(0) = 0, gelu(60) = 60, gelu(-60) = 0."""
    for at, expected in ((0, 0), (60, 60), (-60, 0)):
        assert_same(op(np.full_like(x, at)), np.full_like(x, expected), f"gelu({at}) = {expected}")


def gelu_slopes_at_x_and_minus_x_sum_to_1(op: Any, dout: Array, x: Array) -> None:
    """gelu(x) - gelu(-x) = x, so gelu'(x) + gelu'(-x) = 1."""
    one = np.ones_like(x)
    error = bounds.gelu_backward(one, x).error + bounds.gelu_backward(one, -x).error
    assert_near(op(one, x).astype(np.float64) + op(one, -x), 1, error, "gelu'(x) + gelu'(-x) = 1")


def gelu_slope_is_half_at_0_and_1_at_60(op: Any, dout: Array, x: Array) -> None:
    """gelu'(0) = ½; where cosh overflows, 1 or 0 and no NaN."""
    assert_same(op(dout, np.zeros_like(x)), dout / 2, "gelu'(0) = ½")
    assert_same(op(dout, np.full_like(x, 60)), dout, "gelu'(60) = 1")
    assert not op(dout, np.full_like(x, -60)).any(), "gelu'(-60) = 0"


# ---- residual -------------------------------------------------------------------------------


def addition_commutes(op: Any, a: Array, b: Array) -> None:
    """a + b = b + a, and adding 0 changes nothing."""
    assert_same(op(a, b), op(b, a), "a + b = b + a")
    assert_same(op(a, np.zeros_like(a)), a, "a + 0 = a")


def results_do_not_alias(op: Any, dout: Array) -> None:
    """The two gradients and the input are three arrays: writing into one changes no other."""
    da, db = op(dout)
    for a, b in ((da, db), (da, dout), (db, dout)):
        assert not np.shares_memory(a, b), "one array for two results"


# ---- softmax and loss -----------------------------------------------------------------------


def probabilities_sum_to_1(op: Any, logits: Array, V: int) -> None:
    """Finite rows are not negative and sum to 1 within the errors of their elements."""
    probs, bounded = op(logits, V), bounds.softmax_forward(logits, V)
    sure = np.isfinite(bounded.value + bounded.error).all(axis=-1)
    assert (probs[sure] >= 0).all(), "probs ≥ 0"
    total = probs[sure].astype(np.float64).sum(axis=-1)
    assert_near(total, 1, bounded.error[sure].sum(axis=-1) + 1e-12, "Σ probs = 1")


def padding_gets_probability_0_and_changes_nothing(op: Any, logits: Array, V: int) -> None:
    """Any logits in the padding: their probability is exactly 0 and the rest stays the same."""
    probs = op(logits, V)
    assert not probs[..., V:].any(), "padding"
    for padding in (1e4, -1e4, np.nan):
        other = logits.copy()
        other[..., V:] = padding
        assert_same(op(other, V), probs, f"padding of {padding}")


def a_constant_shift_changes_nothing(op: Any, logits: Array, V: int) -> None:
    """Adding an integer to small integers (no rounding) gives the same bits."""
    whole = np.clip(np.round(logits), -64, 64)
    assert_same(op(whole + np.float32(64), V), op(whole, V), "softmax(x + c) = softmax(x)")


def logits_far_below_minus_10000_give_nan(op: Any, logits: Array, V: int) -> None:
    """A row of logits all far below -10000 divides 0 by 0, as in llm.c."""
    probs = op(np.full_like(logits, -20000), V)
    assert np.isnan(probs[..., :V]).all()
    assert not probs[..., V:].any(), "padding"


def probability_1_costs_0_and_probability_0_infinity(
    op: Any, probs: Array, targets: Tokens
) -> None:
    """The loss is -log of the probability of the target, whatever the others are."""
    for there, elsewhere, loss in ((1, 0, 0), (0, 1, np.inf)):
        sure = np.full_like(probs, elsewhere)
        np.put_along_axis(sure, targets[..., None], there, axis=-1)
        assert_same(op(sure, targets), np.full(targets.shape, loss), f"-log {there}")


def dlogits_is_probs_minus_target_times_dloss(
    op: Any, dlosses: Array, probs: Array, targets: Tokens, V: int
) -> None:
    """Probability 1 at j: dloss at j and -dloss at the target, or 0 if j is the target."""
    js = (targets + np.arange(targets.shape[1])) % V
    sure, expected = np.zeros_like(probs), np.zeros_like(probs)
    np.put_along_axis(sure, js[..., None], 1, axis=-1)
    np.put_along_axis(expected, js[..., None], dlosses[..., None], axis=-1)
    b, t = np.indices(targets.shape)
    expected[b, t, targets] -= dlosses
    assert_same(op(dlosses, sure, targets, V), expected, "(probs - target)·dloss")
