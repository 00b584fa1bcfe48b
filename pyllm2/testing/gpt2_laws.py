"""What must hold of a GPT-2 op, whatever the backend: functions of (op, *inputs).

Most build inputs of their own from the shapes of those drawn, so that the result is known exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.testing import gpt2_bounds as bounds
from pyllm2.testing.bounds import Bounded
from pyllm2.testing.op import Array, assert_close, assert_same

Tokens = NDArray[np.integer]


def near(found: Any, expected: Any, error: Any, law: str) -> None:
    """Sums of results: within the sum of the errors of the elements."""
    off = np.abs(np.asarray(found, np.float64) - np.asarray(expected, np.float64))
    assert (off <= error + 2.0**-1074).all(), f"{law}: off by {np.max(off)}"


# ---- encoder --------------------------------------------------------------------------------


def without_positions_it_copies(op: Any, tokens: Tokens, wte: Array, wpe: Array) -> None:
    """Adding zeros changes no bit."""
    assert_same(op(tokens, wte, np.zeros_like(wpe)), wte[tokens], "wpe = 0 gives rows of wte")


def counts_occurrences(op: Any, dout: Array, tokens: Tokens, dwte: Array, dwpe: Array) -> None:
    """Scattering ones counts: every occurrence of a token adds, none is lost, none leaks."""
    B, T = tokens.shape
    wte, wpe = op(np.ones_like(dout), tokens, np.zeros_like(dwte), np.zeros_like(dwpe))
    times = np.bincount(tokens.ravel(), minlength=len(dwte))
    assert_same(wte, np.broadcast_to(times[:, None], dwte.shape), "how often a token occurs")
    rows = np.where(np.arange(len(dwpe)) < T, B, 0)
    assert_same(wpe, np.broadcast_to(rows[:, None], dwpe.shape), "B times every position")


# ---- layernorm ------------------------------------------------------------------------------


def sums_to_nothing(op: Any, x: Array, w: Array, b: Array) -> None:
    """With weight 1 and bias 0 a row sums to 0; with weight 0 it is the bias, exactly."""
    out = op(x, np.ones_like(w), np.zeros_like(b))[0]
    error = bounds.layernorm_forward(x, np.ones_like(w), np.zeros_like(b))[0].error.sum(axis=-1)
    near(out.astype(np.float64).sum(axis=-1), 0, error, "Σ layernorm(x) = 0")
    assert_same(op(x, np.zeros_like(w), b)[0] + 0, np.broadcast_to(b, x.shape) + 0, "w = 0")


def has_no_part_along_1_and_n(
    op: Any, dout: Array, x: Array, w: Array, mean: Array, rstd: Array
) -> None:
    """dx is orthogonal to 1 and to n, seen on rows of ±1, which are their own n."""
    C = x.shape[-1] // 2 * 2
    if C == 0:
        return
    dout, w = dout[..., :C].copy(), w[:C].copy()
    n = np.broadcast_to(np.resize(np.array([1, -1], np.float32), C), dout.shape).copy()
    inputs = dout, n, w, np.zeros_like(mean), np.ones_like(rstd)
    dx = op(*inputs)[0].astype(np.float64)
    error = bounds.layernorm_backward(*inputs)[0].error.sum(axis=-1)
    near(dx.sum(axis=-1), 0, error, "Σ dx = 0")
    near((dx * n).sum(axis=-1), 0, error, "Σ dx·n = 0")


# ---- matmul ---------------------------------------------------------------------------------


def picks_columns(op: Any, x: Array, w: Array, b: Array | None) -> None:
    """A row that is 1 at j picks column j of w, exactly, and the bias is added to every row."""
    B, T, C = x.shape
    js = np.arange(B * T) % C
    e = np.eye(C, dtype=np.float32)[js].reshape(B, T, C)
    assert_same(op(e, w, None), w.T[js].reshape(B, T, -1) + 0, "e_j·wᵀ = w[:, j]")
    if b is not None:
        expected = np.broadcast_to(b, (B, T, len(b)))
        assert_same(op(np.zeros_like(x), w, b), expected, "0·wᵀ + b = b")


def gives_back_the_product(op: Any, dout: Array, x: Array, w: Array) -> None:
    """Adjoint: <dx, x> = <dout, x·wᵀ> = <dw, w>, and <db, 1> = <dout, 1>."""
    found = op(dout, x, w)
    errors = [bounded.error for bounded in bounds.matmul_backward(dout, x, w)]
    x64, w64, dout64 = (a.astype(np.float64) for a in (x, w, dout))
    product = np.sum(dout64 * (x64 @ w64.T))
    own = x64, w64, np.ones(len(w))
    for d, e, a, expected in zip(found, errors, own, (product, product, dout64.sum()), strict=True):
        slack = 1e-12 * np.sum(np.abs(dout64) @ np.abs(w64) * np.abs(x64))
        near(np.sum(d * a), expected, np.sum(e * np.abs(a)) + slack, "<dout, f> = <df, f's own>")


def a_single_output_picks_a_row(op: Any, dout: Array, x: Array, w: Array) -> None:
    """Where dout is 1 at output o and 0 elsewhere, dx is row o of w, exactly."""
    B, T, OC = dout.shape
    os = np.arange(B * T) % OC
    e = np.eye(OC, dtype=np.float32)[os].reshape(B, T, OC)
    assert_same(op(e, x, w)[0], w[os].reshape(x.shape) + 0, "e_o·w = w[o]")


# ---- attention ------------------------------------------------------------------------------


def future_does_not_change_the_past(op: Any, qkv: Array, NH: int, first: int) -> None:
    """Causality: another key and value at the last position leave earlier queries alone."""
    other = qkv.copy()
    other[:, -1, qkv.shape[-1] // 3 :] = 5
    assert_same(op(other, NH)[0][:, :-1], op(qkv, NH)[0][:, :-1], "query t sees up to t")


def the_last_queries_are_a_suffix(op: Any, qkv: Array, NH: int, first: int) -> None:
    """`first` leaves queries out and changes nothing else, within the bound of the whole."""
    out, att = op(qkv, NH, first)
    whole_out, whole_att = bounds.attention_forward(qkv, NH)
    assert_close(out, Bounded(*(a[:, first:] for a in whole_out)), "out from first on")
    assert_close(att, Bounded(*(a[:, :, first:] for a in whole_att)), "att from first on")


def no_question_gives_the_mean(op: Any, qkv: Array, NH: int, first: int) -> None:
    """Queries of 0 weigh all that they see alike; the first sees only its own value, exactly."""
    B, P, C3 = qkv.shape
    zero = qkv.copy()
    zero[..., : C3 // 3] = 0
    out, att = op(zero, NH)
    assert_same(out[:, 0], zero[:, 0, 2 * C3 // 3 :], "position 0 gets its own value")
    alike = np.tril(np.ones((P, P))) / np.arange(1, P + 1)[:, None]
    error = bounds.attention_forward(zero, NH)[1].error
    near(att, np.broadcast_to(alike, (B, NH, P, P)), error, "1/(t + 1) each")


def below_the_floor_is_zero(op: Any, qkv: Array, NH: int, first: int) -> None:
    """Every score at -40000 or less: no weight and no output, and no NaN."""
    low = qkv.copy()
    C = qkv.shape[-1] // 3
    low[..., :C], low[..., C : 2 * C] = -200, 200
    out, att = op(low, NH)
    assert not out.any()
    assert not att.any()


def the_future_gets_no_gradient(op: Any, dout: Array, qkv: Array, att: Array) -> None:
    """What only the first position says cannot depend on those after it: exactly 0 there."""
    alone = np.zeros_like(dout)
    alone[:, 0] = dout[:, 0]
    assert not op(alone, qkv, att)[:, 1:].any()


def keys_may_shift_together(op: Any, dout: Array, qkv: Array, att: Array) -> None:
    """The same vector added to all keys changes nothing, so dk sums to 0 over positions.

    With weights of a half on the first and on the own position: they sum to 1 exactly.
    """
    _, T, C = dout.shape
    halves = np.zeros_like(att)
    halves[..., 0] += np.float32(0.5)
    halves[..., np.arange(T), np.arange(T)] += np.float32(0.5)
    keys = slice(C, 2 * C)
    dk = op(dout, qkv, halves)[..., keys].astype(np.float64)
    error = bounds.attention_backward(dout, qkv, halves).error[..., keys]
    near(dk.sum(axis=1), 0, error.sum(axis=1) * (1 + 1e-9), "Σ dk over positions = 0")


# ---- gelu -----------------------------------------------------------------------------------


def bends_at_zero(op: Any, x: Array) -> None:
    """gelu(0) = 0, gelu(x) - gelu(-x) = x; far out it passes everything or nothing, exactly."""
    assert not op(np.zeros_like(x)).any()
    error = bounds.gelu_forward(x).error + bounds.gelu_forward(-x).error
    near(op(x).astype(np.float64) - op(-x), x, error, "gelu(x) - gelu(-x) = x")
    assert_same(op(np.full_like(x, 60)), np.full_like(x, 60), "gelu(60) = 60")
    assert not op(np.full_like(x, -60)).any()


def slopes_mirror(op: Any, dout: Array, x: Array) -> None:
    """gelu'(x) + gelu'(-x) = 1, gelu'(0) = ½; where cosh overflows 0 or 1 and never NaN."""
    one = np.ones_like(x)
    error = bounds.gelu_backward(one, x).error + bounds.gelu_backward(one, -x).error
    near(op(one, x).astype(np.float64) + op(one, -x), 1, error, "gelu'(x) + gelu'(-x) = 1")
    assert_same(op(dout, np.zeros_like(x)), dout / 2, "gelu'(0) = ½")
    assert_same(op(dout, np.full_like(x, 60)), dout, "gelu'(60) = 1")
    assert not op(dout, np.full_like(x, -60)).any()


# ---- residual -------------------------------------------------------------------------------


def either_may_come_first(op: Any, a: Array, b: Array) -> None:
    """Addition commutes, and 0 changes nothing."""
    assert_same(op(a, b), op(b, a), "a + b = b + a")
    assert_same(op(a, np.zeros_like(a)), a, "a + 0 = a")


def hands_on_two_arrays(op: Any, dout: Array) -> None:
    """Writing into one gradient must change neither the other nor what came in."""
    da, db = op(dout)
    for a, b in ((da, db), (da, dout), (db, dout)):
        assert not np.shares_memory(a, b)


# ---- softmax and loss -----------------------------------------------------------------------


def sums_to_one(op: Any, logits: Array, V: int) -> None:
    """Rows are positive and sum to 1 within the errors of their elements; NaN stays among NaN."""
    probs, bounded = op(logits, V), bounds.softmax_forward(logits, V)
    sure = np.isfinite(bounded.value + bounded.error).all(axis=-1)
    assert (probs[sure] >= 0).all()
    total = probs[sure].astype(np.float64).sum(axis=-1)
    near(total, 1, bounded.error[sure].sum(axis=-1) + 1e-12, "Σ probs = 1")


def padding_is_not_there(op: Any, logits: Array, V: int) -> None:
    """Whatever the padding holds: its probability is exactly 0 and the rest does not change."""
    probs = op(logits, V)
    assert not probs[..., V:].any()
    for padding in (1e4, -1e4, np.nan):
        other = logits.copy()
        other[..., V:] = padding
        assert_same(op(other, V), probs, f"padding of {padding}")


def shift_changes_nothing(op: Any, logits: Array, V: int) -> None:
    """Adding a whole number to small whole numbers (no rounding) gives the same bits."""
    whole = np.clip(np.round(logits), -64, 64)
    assert_same(op(whole + np.float32(64), V), op(whole, V), "softmax(x + c) = softmax(x)")


def below_the_floor_is_nan(op: Any, logits: Array, V: int) -> None:
    """A row wholly far below -10000 has no sum to divide by, as in llm.c."""
    probs = op(np.full_like(logits, -20000), V)
    assert np.isnan(probs[..., :V]).all()
    assert not probs[..., V:].any()


def only_the_target_counts(op: Any, probs: Array, targets: Tokens) -> None:
    """The certain costs 0, the impossible infinity, and what was not asked about nothing."""
    for there, elsewhere, loss in ((1, 0, 0), (0, 1, np.inf)):
        sure = np.full_like(probs, elsewhere)
        np.put_along_axis(sure, targets[..., None], there, axis=-1)
        assert_same(op(sure, targets), np.full(targets.shape, loss), f"-log {there}")


def pulls_one_up_and_one_down(
    op: Any, dlosses: Array, probs: Array, targets: Tokens, V: int
) -> None:
    """Sure of j: dloss at j, -dloss at the target, so rows sum to 0; nothing if j is the target."""
    js = (targets + np.arange(targets.shape[1])) % V
    sure, expected = np.zeros_like(probs), np.zeros_like(probs)
    np.put_along_axis(sure, js[..., None], 1, axis=-1)
    np.put_along_axis(expected, js[..., None], dlosses[..., None], axis=-1)
    b, t = np.indices(targets.shape)
    expected[b, t, targets] -= dlosses
    assert_same(op(dlosses, sure, targets, V), expected, "(probs - target)·dloss")
