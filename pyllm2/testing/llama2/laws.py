"""Laws of Llama-2's forward ops: functions of (op, *inputs) that raise AssertionError.

A law holds for every backend, and its name says what is wrong more plainly than a number out of
bounds. `more` are inputs that llama2.c does not have (epsilon, bias, window …): none for a function
that does not take them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyllm2.formats.gguf_blocks import TYPES
from pyllm2.testing.bounds import U
from pyllm2.testing.llama2 import bounds
from pyllm2.testing.op import Array, assert_near, assert_same
from pyllm2.testing.strategies import Tokens

FLOAT64 = 1e-12  # error of a sum in float64, relative to the sum of absolute terms


# ---- embedding ------------------------------------------------------------------------------


def rows_are_copies_of_the_table(op: Any, tokens: Tokens, table: Array) -> None:
    """An embedding is a copy, bit for bit."""
    assert_same(op(tokens, table), table[tokens], "row t is row tokens[t] of the table")


# ---- rmsnorm --------------------------------------------------------------------------------


def doubling_the_weight_doubles_the_result(op: Any, x: Array, weight: Array, *more: Any) -> None:
    """A power of two passes through a product without rounding."""
    once, twice = op(x, weight, *more), op(x, 2 * weight, *more)
    big = np.abs(once) > 1e-30
    assert_same(twice[big], 2 * once[big], "rmsnorm(x, 2w) = 2 rmsnorm(x, w)")


def rows_are_independent(op: Any, x: Array, weight: Array, *more: Any) -> None:
    """Row 0 depends on row 0 only: other rows change nothing beyond rounding."""
    changed = np.full_like(x, 3)
    changed[0] = x[0]
    found, expected = op(changed, weight, *more)[:1], op(x, weight, *more)[:1]
    error = 2 * bounds.rmsnorm(x[:1], weight, *more).error
    assert_near(found, expected, error, "row 0 without the others")


def epsilon_grows_with_the_square_of_x(op: Any, x: Array, weight: Array, *more: Any) -> None:
    """Twice x and four times epsilon give the same: only the ratio of x² to epsilon matters."""
    if more:
        error = 2 * bounds.rmsnorm(x, weight, *more).error
        same = op(2 * x, weight, 4 * more[0])
        assert_near(same, op(x, weight, *more), error, "rmsnorm(2x, w, 4 eps) = rmsnorm(x, w, eps)")


# ---- matmul ---------------------------------------------------------------------------------


def unit_rows_pick_columns_of_w(op: Any, x: Array, w: Array, *more: Any) -> None:
    """A row that is 1 at j and 0 elsewhere picks column j of w exactly, in any order of sums."""
    C = x.shape[1]
    js = np.arange(len(x)) % C
    assert_same(op(np.eye(C, dtype=np.float32)[js], w), w.T[js] + 0, "matmul(e_j, w) = w[:, j]")


def product_scales_with_x(op: Any, x: Array, w: Array, *more: Any) -> None:
    """matmul(2x) is twice matmul(x) within rounding, and matmul of zeros is zero."""
    error = 2 * bounds.matmul(2 * x, w).error
    assert_near(op(2 * x, w), 2 * op(x, w).astype(np.float64), error, "matmul(2x) = 2 matmul(x)")
    assert_same(op(np.zeros_like(x), w), np.zeros((len(x), len(w))), "matmul(0, w) = 0")


def a_bias_is_added_to_every_row(op: Any, x: Array, w: Array, *more: Any) -> None:
    """Where x is 0 nothing else is left."""
    if more and more[0] is not None:
        expected = np.broadcast_to(more[0], (len(x), len(w)))
        assert_same(op(np.zeros_like(x), w, *more), expected, "matmul(0, w, b) = b")


def doubling_the_scales_doubles_the_product(
    op: Any, x: Any, x_scales: Array, w: Any, w_scales: Array, group_size: int
) -> None:
    """A power of two passes through a product without rounding."""
    once = op(x, x_scales, w, w_scales, group_size)
    big = np.abs(once) > 1e-30
    twice = op(x, 2 * x_scales, w, w_scales, group_size)
    assert_same(twice[big], 2 * once[big], "matmul_q8(x, 2·scale) = 2 matmul_q8(x, scale)")


def rows_of_blocks_are_independent(op: Any, w: Any, kind: int) -> None:
    """A row alone has the same numbers."""
    assert_same(op(w[-1:], kind), op(w, kind)[-1:], "dequantize_packed(w[-1:])")


def unit_rows_pick_numbers_of_the_blocks(op: Any, x: Array, w: Any, kind: int, *b: Any) -> None:
    """x = e_j gives number j of every row: no other number is left, and no rounding but its own."""
    numbers = TYPES[kind].dequantize(w.reshape(-1, TYPES[kind].nbytes)).reshape(len(w), -1)
    units = np.eye(x.shape[1], dtype=np.float32)[:: max(1, x.shape[1] // 40)]
    expected = numbers[:, :: max(1, x.shape[1] // 40)].T
    assert_same(op(units, w, kind, *(None for _ in b)), expected, "matmul_packed(e_j, w) = w[:, j]")


def product_with_blocks_scales_with_x(op: Any, x: Array, w: Any, kind: int, *b: Any) -> None:
    """A power of two passes through without rounding."""
    none = [None for _ in b]
    once = op(x, w, kind, *none)
    big = np.abs(once) > 1e-25
    assert_same(op(2 * x, w, kind, *none)[big], 2 * once[big], "matmul_packed(2x) = 2 ...")


# ---- rope -----------------------------------------------------------------------------------


def position_0_has_cos_1_and_sin_0(op: Any, S: int, hs: int, *more: Any) -> None:
    """Position 0 is not rotated, but scaled."""
    cos, sin = op(S, hs, *more)
    scale = np.float32(more[-1] if more else 1)
    assert_same(cos[0], np.full(hs // 2, scale), "cos 0 = 1")
    assert_same(sin[0], np.zeros(hs // 2), "sin 0 = 0")


def a_shorter_table_is_a_prefix(op: Any, S: int, hs: int, *more: Any) -> None:
    """The angles of a position do not depend on the length of the table."""
    for short, long in zip(op(1 + S // 2, hs, *more), op(S, hs, *more), strict=True):
        assert_same(short, long[: 1 + S // 2], "rope_tables(n) = rope_tables(S)[:n]")


def twice_the_divisors_stretch_to_twice_the_length(op: Any, S: int, hs: int, *more: Any) -> None:
    """Every angle is then at twice the position; halving is exact."""
    if more:
        base, divisors, scale = more
        twice = np.full(hs // 2, 2, np.float32) if divisors is None else 2 * divisors
        stretched = op(2 * S, hs, base, twice, scale)
        for long, short in zip(stretched, op(S, hs, *more), strict=True):
            assert_same(long[::2], short, "position 2p with twice the divisors is position p")


def rotation_keeps_the_length_of_pairs(op: Any, x: Array, cos: Array, sin: Array) -> None:
    """a² + b² of every pair stays the same, within the rounding of op and table."""
    y = op(x, cos, sin).astype(np.float64)
    before = np.square(x[..., 0::2], dtype=np.float64) + np.square(x[..., 1::2], dtype=np.float64)
    after = y[..., 0::2] ** 2 + y[..., 1::2] ** 2
    assert_near(after, before, 16 * U * before + 1e-37, "|rope(x)| = |x|")


def angle_0_returns_x(op: Any, x: Array, cos: Array, sin: Array) -> None:
    """cos 1 and sin 0 return x exactly."""
    assert_same(op(x, np.ones_like(cos), np.zeros_like(sin)), x, "rope(x, 1, 0) = x")


def dot_product_depends_on_distance_only(op: Any, x: Array, cos: Array, sin: Array) -> None:
    """q at position p + d times k at position p is q at d times k at 0, within rounding."""
    T, _, hs = x.shape
    q, k = x[:1], x[-1:]
    turned = [op(a, cos[i : i + 1], sin[i : i + 1]) for a, i in ((q, T - 1), (k, 0))]
    c = cos[T - 1].astype(np.float64) * cos[0] + sin[T - 1].astype(np.float64) * sin[0]
    s = sin[T - 1].astype(np.float64) * cos[0] - cos[T - 1].astype(np.float64) * sin[0]
    turned_by_difference = bounds.rope(q, c[None], s[None]).value
    found = np.sum(turned[0].astype(np.float64) * turned[1])
    expected = np.sum(turned_by_difference * k)
    scale = np.sum(np.abs(q).astype(np.float64)) * np.max(np.abs(k), initial=0)
    assert_near(found, expected, 16 * hs * U * scale + 1e-37, "q(p + d) · k(p) = q(d) · k(0)")


# ---- softmax --------------------------------------------------------------------------------


def probabilities_sum_to_1(op: Any, x: Array) -> None:
    """Rows are not negative and sum to 1 within the errors of their elements."""
    p = op(x)
    assert (p >= 0).all(), "p ≥ 0"
    error = bounds.softmax(x).error.sum(axis=-1)
    assert_near(p.astype(np.float64).sum(axis=-1), 1, error, "Σ p = 1")


def a_constant_shift_changes_nothing(op: Any, x: Array) -> None:
    """Adding an integer to integers (no rounding) gives the same bits."""
    whole = np.round(x)
    assert_same(op(whole + np.float32(64)), op(whole), "softmax(x + c) = softmax(x)")


def minus_infinity_gets_probability_0(op: Any, x: Array) -> None:
    """-inf has probability exactly 0 and does not change the others."""
    padded = np.concatenate([x, np.full_like(x[:, :1], -np.inf)], axis=1)
    assert (op(padded)[:, -1] == 0).all(), "probability of -inf"
    assert_near(op(padded)[:, :-1], op(x), 2 * bounds.softmax(x).error, "the others beside -inf")


def a_dominant_logit_gets_probability_1(op: Any, x: Array) -> None:
    """At any place: the others underflow to 0 and nothing overflows."""
    C = x.shape[1]
    found = op(np.diag(np.full(C, 1e4, dtype=np.float32)))
    assert_same(found, np.eye(C), "softmax of 1e4 among zeros is 1 there")


# ---- attention ------------------------------------------------------------------------------


def future_does_not_change_the_past(op: Any, q: Array, k: Array, v: Array, *more: Any) -> None:
    """Causality: other keys and values at the last position leave earlier queries unchanged."""
    k2, v2 = k.copy(), v.copy()
    k2[-1], v2[-1] = 5, -7
    found, expected = op(q, k2, v2, *more)[:-1], op(q, k, v, *more)[:-1]
    assert_same(found, expected, "query t sees positions up to its own")


def a_single_position_returns_its_value(op: Any, q: Array, k: Array, v: Array, *more: Any) -> None:
    """With one position in the cache, attention is that position's value, exactly."""
    NH, NKV = q.shape[1], k.shape[1]
    expected = np.repeat(v[:1], NH // NKV, axis=1).reshape(1, -1)
    assert_same(op(q[:1], k[:1], v[:1], *more), expected + 0, "softmax of one score is 1")


def a_window_hides_all_but_the_last_positions(
    op: Any, q: Array, k: Array, v: Array, *more: Any
) -> None:
    """The last query gives the same with only these in the cache; a window of P hides nothing."""
    if more:
        window = more[0] or len(k)
        seen = q[-1:], k[-window:], v[-window:]
        error = 2 * bounds.attention(*seen).error
        assert_near(op(q, k, v, window)[-1:], op(*seen, 0), error, "the last positions alone")
        assert_same(op(q, k, v, len(k)), op(q, k, v, 0), "a window of all positions")


def order_of_the_past_does_not_matter(op: Any, q: Array, k: Array, v: Array, *more: Any) -> None:
    """Without a window, the last query may see its past in any order, within the bound."""
    no_window = [0] if more else []
    backwards = op(q[-1:], k[::-1].copy(), v[::-1].copy(), *no_window)
    error = 2 * bounds.attention(q[-1:], k, v).error
    assert_near(backwards, op(q[-1:], k, v, *no_window), error, "past reversed")


def future_has_weight_0_and_changes_nothing(
    op: Any, q: Array, k: Array, v: Array, keep: Array | None
) -> None:
    """Causality: another key and value at the last position leave earlier queries unchanged."""
    k2, v2 = k.copy(), v.copy()
    k2[:, -1], v2[:, -1] = 5, -7
    out, att = op(q, k, v, keep)
    assert not np.triu(att, 1).any(), "no weight on the future"
    assert_same(op(q, k2, v2, keep)[0][:, :-1], out[:, :-1], "query t sees positions up to t")


def position_0_returns_its_value(op: Any, q: Array, k: Array, v: Array, keep: Array | None) -> None:
    """The first query sees one position, and attention is that position's value, exactly."""
    B, _, NH, hs = q.shape
    expected = np.repeat(v[:, 0], NH // v.shape[2], axis=1).reshape(B, NH * hs)
    assert_same(op(q, k, v)[0][:, 0], expected + 0, "softmax of one score is 1")


def dropout_applies_after_softmax(
    op: Any, q: Array, k: Array, v: Array, keep: Array | None
) -> None:
    """att is from before dropout; keep 1 changes no bit of out, keep 0 makes it 0."""
    out, att = op(q, k, v)
    for factor in (0, 1):
        kept = np.full_like(att, factor)
        found, weights = op(q, k, v, kept)
        assert_same(weights, att, "att is from before dropout")
        assert_same(found, factor * out, f"all weights times {factor}")


def sequences_are_independent(op: Any, q: Array, k: Array, v: Array, keep: Array | None) -> None:
    """A sequence alone gives the same result as in the batch, within rounding."""
    alone = op(q[-1:], k[-1:], v[-1:], None if keep is None else keep[-1:])
    errors = (2 * bounded.error[-1:] for bounded in bounds.attention_forward(q, k, v, keep))
    for found, expected, error in zip(alone, op(q, k, v, keep), errors, strict=True):
        assert_near(found, expected[-1:], error, "the last sequence without the others")


# ---- swiglu, residual, dropout --------------------------------------------------------------


def gate_0_gives_0(op: Any, gate: Array, up: Array) -> None:
    """silu(0) = 0."""
    assert_same(op(np.zeros_like(gate), up) + 0, np.zeros_like(up), "silu(0)·up = 0")


def gate_100_passes_unchanged(op: Any, gate: Array, up: Array) -> None:
    """silu(100) = 100 in float32."""
    hundred = np.full_like(gate, 100)
    assert_same(op(hundred, up), hundred * up, "silu(100)·up = 100·up")


def very_negative_gate_gives_0(op: Any, gate: Array, up: Array) -> None:
    """exp overflows to infinity there; its reciprocal is 0 and no NaN arises."""
    assert not op(np.full_like(gate, -1e4), up).any(), "silu(-1e4)·up = 0"


def addition_commutes(op: Any, x: Array, y: Array) -> None:
    """x + y = y + x, and adding 0 changes nothing."""
    assert_same(op(x, y), op(y, x), "x + y = y + x")
    assert_same(op(x, np.zeros_like(x)), x, "x + 0 = x")


def keep_1_returns_x_and_keep_0_returns_0(op: Any, x: Array, keep: Array | None) -> None:
    """None and ones keep every bit; zeros give 0; other factors multiply."""
    assert_same(op(x, None), x, "keep None")
    assert_same(op(x, np.ones_like(x)), x, "keep 1")
    assert not op(x, np.zeros_like(x)).any(), "keep 0"
    two = np.full_like(x, 2)
    assert_same(op(two, keep), two * (1 if keep is None else keep), "2 · keep")


# ---- loss -----------------------------------------------------------------------------------


def ignored_targets_have_loss_0(op: Any, logits: Array, targets: Tokens) -> None:
    """Target -1: the loss is exactly 0, and the probabilities stay the same."""
    losses, probs = op(logits, np.full_like(targets, -1))
    assert not losses.any(), "loss of target -1"
    assert_same(probs, op(logits, targets)[1], "probs do not depend on the targets")


def probs_sum_to_1(op: Any, logits: Array, targets: Tokens) -> None:
    """Probabilities are not negative and sum to 1 within the errors of their elements."""
    probs = op(logits, targets)[1]
    assert (probs >= 0).all(), "probs ≥ 0"
    error = bounds.crossentropy_forward(logits, targets)[1].error.sum(axis=-1)
    assert_near(probs.astype(np.float64).sum(axis=-1), 1, error + FLOAT64, "Σ probs = 1")


def a_constant_shift_changes_neither_loss_nor_probs(
    op: Any, logits: Array, targets: Tokens
) -> None:
    """Adding an integer to small integers (no rounding) gives the same bits."""
    whole = np.clip(np.round(logits), -64, 64)
    shifted = op(whole + np.float32(64), targets)
    for found, expected in zip(shifted, op(whole, targets), strict=True):
        assert_same(found, expected, "f(x + c) = f(x)")


def an_impossible_target_has_a_finite_loss(op: Any, logits: Array, targets: Tokens) -> None:
    """Logit 1e4 at j, 0 elsewhere: loss 0 if j is the target, else 1e4, of a probability 0."""
    N, V = logits.shape
    js = np.arange(N) % V
    sure = np.zeros_like(logits)
    sure[np.arange(N), js] = 1e4
    losses, probs = op(sure, targets)
    expected = np.where((targets == -1) | (targets == js), 0, 1e4)
    assert_same(losses, expected, "the loss comes from the logits, not from the probability")
    assert_same(probs, sure / np.float32(1e4), "probs")
