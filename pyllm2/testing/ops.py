"""The table of Llama's ops: for each its inputs, its bound, and the laws that it obeys.

Laws are functions of (op, *inputs) that raise AssertionError. They hold whatever the backend, and
say what is wrong more plainly than a number out of bounds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.testing import bounds, strategies
from pyllm2.testing.op import Array, Op, assert_close, assert_same


def copies_rows(op: Any, tokens: NDArray[np.integer], table: Array) -> None:
    """An embedding is a copy, bit for bit."""
    assert_same(op(tokens, table), table[tokens], "row t is row tokens[t] of the table")


def doubling_the_weight_doubles(op: Any, x: Array, weight: Array) -> None:
    """A power of two passes through a product without rounding."""
    assert_close(op(x, 2 * weight), bounds.rmsnorm(x, 2 * weight))
    big = np.abs(op(x, weight)) > 1e-30
    assert_same(op(x, 2 * weight)[big], 2 * op(x, weight)[big], "rmsnorm(x, 2w) = 2 rmsnorm(x, w)")


def rows_do_not_see_each_other(op: Any, x: Array, weight: Array) -> None:
    """Row t depends on row t only: other rows change nothing beyond rounding."""
    changed = np.full_like(x, 3)
    changed[0] = x[0]
    assert_close(op(changed, weight)[:1], bounds.rmsnorm(x[:1], weight))


def picks_columns(op: Any, x: Array, w: Array) -> None:
    """A row that is 1 at j and 0 elsewhere picks column j of w exactly, in any order of sums."""
    C = x.shape[1]
    js = np.arange(len(x)) % C
    assert_same(op(np.eye(C, dtype=np.float32)[js], w), w.T[js] + 0, "matmul(e_j, w) = w[:, j]")


def is_linear(op: Any, x: Array, w: Array) -> None:
    """matmul(2x) is twice matmul(x) within rounding, and matmul of zeros is zero."""
    assert_close(op(2 * x, w), bounds.matmul(2 * x, w))
    assert_same(op(np.zeros_like(x), w), np.zeros((len(x), len(w))), "matmul(0, w) = 0")


def begins_unturned(op: Any, S: int, hs: int) -> None:
    """Position 0 turns nothing, and a prefix of a longer table is the shorter table."""
    cos, sin = op(S, hs)
    assert_same(cos[0], np.ones(hs // 2), "cos 0 = 1")
    assert_same(sin[0], np.zeros(hs // 2), "sin 0 = 0")
    assert_same(op(1 + S // 2, hs)[0], cos[: 1 + S // 2], "a table does not depend on its length")


def keeps_length(op: Any, x: Array, cos: Array, sin: Array) -> None:
    """A rotation: a² + b² of every pair stays, but for rounding (in the table as well)."""
    y = op(x, cos, sin).astype(np.float64)
    before = np.square(x[..., 0::2], dtype=np.float64) + np.square(x[..., 1::2], dtype=np.float64)
    after = y[..., 0::2] ** 2 + y[..., 1::2] ** 2
    assert (np.abs(after - before) <= 16 * bounds.U * before + 1e-37).all()


def angle_zero_is_identity(op: Any, x: Array, cos: Array, sin: Array) -> None:
    """cos 1 and sin 0 give x back exactly."""
    assert_same(op(x, np.ones_like(cos), np.zeros_like(sin)), x, "rope(x, 1, 0) = x")


def depends_on_distance_only(op: Any, x: Array, cos: Array, sin: Array) -> None:
    """Turning q at p + d and k at p: their product is that of d and 0, within rounding."""
    T, _, hs = x.shape
    q, k = x[:1], x[-1:]
    turned = [op(a, cos[i : i + 1], sin[i : i + 1]) for a, i in ((q, T - 1), (k, 0))]
    c = cos[T - 1].astype(np.float64) * cos[0] + sin[T - 1].astype(np.float64) * sin[0]
    s = sin[T - 1].astype(np.float64) * cos[0] - cos[T - 1].astype(np.float64) * sin[0]
    turned_by_difference = bounds.rope(q, c[None], s[None]).value
    found = np.sum(turned[0].astype(np.float64) * turned[1])
    expected = np.sum(turned_by_difference * k)
    scale = np.sum(np.abs(q).astype(np.float64)) * np.max(np.abs(k), initial=0)
    assert abs(found - expected) <= 16 * hs * bounds.U * scale + 1e-37


def sums_to_one(op: Any, x: Array) -> None:
    """Rows are positive and sum to 1 within the errors of their elements."""
    p = op(x)
    assert (p >= 0).all()
    total_error = bounds.softmax(x).error.sum(axis=-1)
    assert (np.abs(p.astype(np.float64).sum(axis=-1) - 1) <= total_error).all()


def shift_changes_nothing(op: Any, x: Array) -> None:
    """Adding the same whole number to whole numbers (no rounding) gives the same bits."""
    whole = np.round(x)
    assert_same(op(whole + np.float32(64)), op(whole), "softmax(x + c) = softmax(x)")


def minus_infinity_is_zero(op: Any, x: Array) -> None:
    """-inf has probability exactly 0 and does not disturb the others."""
    padded = np.concatenate([x, np.full_like(x[:, :1], -np.inf)], axis=1)
    assert (op(padded)[:, -1] == 0).all()
    assert_close(op(padded)[:, :-1], bounds.softmax(x), "beside -inf")


def one_that_towers_takes_all(op: Any, x: Array) -> None:
    """At whatever place it stands: the others underflow to 0 and nothing overflows."""
    C = x.shape[1]
    found = op(np.diag(np.full(C, 1e4, dtype=np.float32)))
    assert_same(found, np.eye(C), "softmax of 1e4 among zeros is 1 there")


def future_does_not_change_the_past(op: Any, q: Array, k: Array, v: Array) -> None:
    """Causality: other keys and values at the last position leave earlier queries alone."""
    k2, v2 = k.copy(), v.copy()
    k2[-1], v2[-1] = 5, -7
    assert_same(op(q, k2, v2)[:-1], op(q, k, v)[:-1], "query t sees positions up to its own")


def one_position_gives_its_value(op: Any, q: Array, k: Array, v: Array) -> None:
    """With a single position in sight, attention is that position's value, exactly."""
    NH, NKV = q.shape[1], k.shape[1]
    expected = np.repeat(v[:1], NH // NKV, axis=1).reshape(1, -1)
    assert_same(op(q[:1], k[:1], v[:1]), expected + 0, "softmax of one score is 1")


def order_of_the_past_does_not_matter(op: Any, q: Array, k: Array, v: Array) -> None:
    """The last query may see its past in any order: the result is the same within the bound."""
    backwards = op(q[-1:], k[::-1].copy(), v[::-1].copy())
    assert_close(backwards, bounds.attention(q[-1:], k, v), "past reversed")


def zero_gate_closes(op: Any, gate: Array, up: Array) -> None:
    """silu(0) = 0, and a large gate passes itself."""
    assert_same(op(np.zeros_like(gate), up) + 0, np.zeros_like(up), "gate 0")
    open_gate = np.full_like(gate, 100)
    assert_same(op(open_gate, up), open_gate * up, "silu(100) = 100 in float32")


def very_negative_gate_gives_zero(op: Any, gate: Array, up: Array) -> None:
    """exp overflows to infinity there; its reciprocal is 0 and no NaN arises."""
    assert not op(np.full_like(gate, -1e4), up).any()


def scales_are_linear(
    op: Any, x: Any, x_scales: Array, w: Any, w_scales: Array, group_size: int
) -> None:
    """Twice the scale is twice the result: a power of two passes through without rounding."""
    once = op(x, x_scales, w, w_scales, group_size)
    big = np.abs(once) > 1e-30
    twice = op(x, 2 * x_scales, w, w_scales, group_size)
    assert_same(twice[big], 2 * once[big], "matmul_q8(x, 2·scale) = 2 matmul_q8(x, scale)")


OPS = {
    op.name: op
    for op in [
        Op("embedding", strategies.embedding_inputs(), bounds.embedding, [copies_rows]),
        Op(
            "rmsnorm",
            strategies.rmsnorm_inputs(),
            bounds.rmsnorm,
            [doubling_the_weight_doubles, rows_do_not_see_each_other],
        ),
        Op("matmul", strategies.matmul_inputs(), bounds.matmul, [picks_columns, is_linear]),
        Op("rope_tables", strategies.rope_tables_inputs(), bounds.rope_tables, [begins_unturned]),
        Op(
            "rope",
            strategies.rope_inputs(),
            bounds.rope,
            [keeps_length, angle_zero_is_identity, depends_on_distance_only],
        ),
        Op(
            "softmax",
            strategies.softmax_inputs(),
            bounds.softmax,
            [
                sums_to_one,
                shift_changes_nothing,
                minus_infinity_is_zero,
                one_that_towers_takes_all,
            ],
        ),
        Op(
            "attention",
            strategies.attention_inputs(),
            bounds.attention,
            [
                future_does_not_change_the_past,
                one_position_gives_its_value,
                order_of_the_past_does_not_matter,
            ],
        ),
        Op(
            "swiglu",
            strategies.swiglu_inputs(),
            bounds.swiglu,
            [zero_gate_closes, very_negative_gate_gives_zero],
        ),
        Op("residual", strategies.residual_inputs(), bounds.residual),
        Op("matmul_q8", strategies.matmul_q8_inputs(), bounds.matmul_q8, [scales_are_linear]),
    ]
}
