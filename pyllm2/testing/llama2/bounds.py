"""Error bounds of Llama-2's ops: a float64 evaluation and an error per element.

Every function has the name and arguments of an op of `pyllm2.llama2.ops`; an op with several
results has a tuple of `Bounded`. `pyllm2.testing.bounds` states the model of arithmetic. Results
that a forward keeps for its backward (att, probs) are exact inputs of the backward's bound. A bound
holds for any order of sums and of factors, and for a division as well as for a product with the
reciprocal.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyllm2.formats.gguf_blocks import TYPES
from pyllm2.testing.bounds import (
    COS_ULP,
    EXP_ULP,
    LOG_ULP,
    POW_ULP,
    SLACK,
    SMALLEST_NORMAL,
    TINY,
    Array64,
    Bounded,
    Growth,
    U,
    addition,
    exact,
    float64,
    gamma,
    growths,
    product,
)

Tokens = NDArray[np.integer]
EPS = float(np.float32(1e-5))
ROPE_BASE = 10000.0


def embedding(tokens: Tokens, table: ArrayLike, growth: Growth = gamma) -> Bounded:
    """A copy: no error at all."""
    return exact(np.asarray(table, np.float64)[tokens])


def embedding_backward(
    dout: ArrayLike, tokens: Tokens, dtable: ArrayLike, growth: Growth = gamma
) -> Bounded:
    """n additions to dtable if a token occurs n times: γ_n · (|dtable| + Σ|dout|).

    The row of a token that does not occur is unchanged, to the bit.
    """
    dout, dtable = float64(dout, dtable)
    value, total = dtable.copy(), np.abs(dtable)
    np.add.at(value, tokens, dout)
    np.add.at(total, tokens, np.abs(dout))
    times = np.bincount(tokens, minlength=len(dtable))
    return Bounded(value, growths(times, growth)[:, None] * total)


def rmsnorm(x: ArrayLike, weight: ArrayLike, eps: float = EPS, growth: Growth = gamma) -> Bounded:
    """Relative error: γ of C/2 + 6 roundings.

    All terms of the mean of squares are positive: C roundings for products and sum, one for the
    division by C, one for adding epsilon. The root halves a relative error. Root, reciprocal and
    two products add four. Squares that underflow are negligible beside epsilon. The first product
    may be that of any two of the three factors; if it underflows, the third scales the error.
    """
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    C = x.shape[-1]
    scale = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + float(np.float32(eps)))
    value = weight * x * scale
    relative = growth((C + 2) / 2 + 5)
    underflow = TINY * (2 + np.abs(weight) + np.abs(x) + scale)
    return Bounded(value, SLACK * relative * np.abs(value) + underflow)


def rmsnorm_backward(
    dout: ArrayLike, x: ArrayLike, weight: ArrayLike, growth: Growth = gamma
) -> tuple[Bounded, Bounded]:
    """Roundings per term of dx, times the absolute value of the term; r has ρ = C/2 + 3.

    g·r: one for g, one for the difference, ρ + 1 for r: γ_{ρ+3}.
    n·mean(g·n)·r: ρ + 1 for n; in the mean ρ + 1 for n, two products, C - 1 additions, a division;
    then a product, the difference, ρ + 1 for r. Together γ_{3ρ+C+7}.
    dweight: n has ρ + 1 roundings, the product one, the sum N - 1: γ_{ρ+N+1}.
    A product that underflows may be multiplied by r afterwards.
    """
    dout, x, weight = float64(dout, x, weight)
    N, C = x.shape
    rho = C / 2 + 3
    r = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + float(np.float32(EPS)))
    n, g = x * r, dout * weight
    abs_n, abs_g = np.abs(n), np.abs(g)
    along = np.mean(g * n, axis=-1, keepdims=True)
    abs_along = np.mean(abs_g * abs_n, axis=-1, keepdims=True)
    error = growth(rho + 3) * abs_g + growth(3 * rho + C + 7) * abs_n * abs_along
    means = 3 + np.mean(abs_g, axis=-1, keepdims=True) + np.mean(abs_n, axis=-1, keepdims=True) + r
    error += TINY * (4 + abs_along + abs_n * means)  # underflow times what multiplies it
    error = r * error + TINY * (2 + abs_g)

    dweight_error = growth(rho + N + 1) * np.sum(np.abs(n * dout), axis=0)
    dweight_error += TINY * (N + np.sum(r) + np.sum(np.abs(dout), axis=0))
    return (
        Bounded((g - n * along) * r, SLACK * error),
        Bounded(np.sum(n * dout, axis=0), SLACK * dweight_error),
    )


def matmul(
    x: ArrayLike, w: ArrayLike, b: ArrayLike | None = None, growth: Growth = gamma
) -> Bounded:
    """Sums of C products. With a bias, first or last: γ_{C+1} · (Σ|x·w| + |b|)."""
    x, w = float64(x, w)
    if b is None:
        return product(x, w.T, growth)
    C, bias = x.shape[-1], np.asarray(b, np.float64)
    total = np.abs(x) @ np.abs(w).T + np.abs(bias)
    return Bounded(x @ w.T + bias, growth(C + 1) * total + C * TINY)


def matmul_backward(
    dout: ArrayLike, x: ArrayLike, w: ArrayLike, growth: Growth = gamma
) -> tuple[Bounded, Bounded]:
    """Sums of OC products for dx, of N products for dw."""
    dout, x, w = float64(dout, x, w)
    return product(dout, w, growth), product(dout.T, x, growth)


def rope_tables(
    S: int,
    hs: int,
    base: float = ROPE_BASE,
    divisors: ArrayLike | None = None,
    scale: float = 1.0,
    growth: Growth = gamma,
) -> tuple[Bounded, Bounded]:
    """Cosine and sine of p / (base^(h/hs) · divisor), with the error of the angle.

    h/hs is rounded once, which the power magnifies by ln(base)·h/hs. The power adds POW_ULP, the
    reciprocal, the quotient and the product with p one rounding each. |cos'| and |sin'| are at most
    1, so the tables have the absolute error of the angle, plus COS_ULP of a number up to 1. The
    product with the scale is one rounding more; with 1 it is exact.
    """
    base, scale = float(np.float32(base)), float(np.float32(scale))
    h_over_hs = np.arange(0, hs, 2) / hs
    angle = np.arange(S)[:, None] / base**h_over_hs  # (S, hs/2)
    roundings = math.log(base) * h_over_hs + 2 * POW_ULP + 2
    if divisors is not None:
        angle, roundings = angle / np.asarray(divisors, np.float64), roundings + 1
    error = SLACK * angle * roundings * U + 2 * COS_ULP * U
    error = abs(scale) * (error + (scale != 1) * U)
    return Bounded(scale * np.cos(angle), error), Bounded(scale * np.sin(angle), error)


def rope(x: ArrayLike, cos: ArrayLike, sin: ArrayLike, growth: Growth = gamma) -> Bounded:
    """Two products and one sum: γ_2 · (|a·cos| + |b·sin|). The tables are exact inputs."""
    x = np.asarray(x, np.float64)
    cos, sin = (np.asarray(t, np.float64)[:, None, :] for t in (cos, sin))
    a, b = x[..., 0::2], x[..., 1::2]
    value, error = np.empty_like(x), np.empty_like(x)
    value[..., 0::2], value[..., 1::2] = a * cos - b * sin, a * sin + b * cos
    error[..., 0::2] = growth(2) * (np.abs(a * cos) + np.abs(b * sin)) + 2 * TINY
    error[..., 1::2] = growth(2) * (np.abs(a * sin) + np.abs(b * cos)) + 2 * TINY
    return Bounded(value, error)


def rope_backward(
    dout: ArrayLike, cos: ArrayLike, sin: ArrayLike, growth: Growth = gamma
) -> Bounded:
    """A rotation by the negative angle."""
    return rope(dout, cos, -np.asarray(sin, np.float64), growth)


def softmax(x: ArrayLike, x_error: ArrayLike = 0.0, growth: Growth = gamma) -> Bounded:
    """exp of the differences to the maximum, divided by their sum.

    d = x - max has the error u·|d| of the subtraction, and twice x_error, the error of x (once for
    x, once for the maximum). exp turns that into a relative error and adds EXP_ULP; call it ε_i.
    The sum has the p-weighted mean of ε and γ_C; the division adds one rounding. The sum is at
    least 1. A term that underflows has an error of a subnormal, and exp may flush subnormal results
    to zero.
    """
    x, x_error = np.asarray(x, np.float64), np.asarray(x_error, np.float64)
    C = x.shape[-1]
    d = x - np.max(x, axis=-1, keepdims=True)
    e = np.exp(d)
    p = e / np.sum(e, axis=-1, keepdims=True)
    visible = np.isfinite(d)
    largest = np.max(np.where(visible, x_error, 0.0), axis=-1, keepdims=True)
    shift = np.where(visible, U * np.abs(d) + x_error + largest, 0.0)
    epsilon = np.expm1(np.minimum(shift, 700.0)) + 2 * EXP_ULP * U
    mean = np.sum(p * epsilon, axis=-1, keepdims=True) + growth(C)
    with np.errstate(divide="ignore"):
        relative = np.where(mean < 1, (1 + epsilon) / np.maximum(1 - mean, 0.0) - 1, np.inf)
    flushed = np.where(e < 2 * SMALLEST_NORMAL, 2 * SMALLEST_NORMAL, 4 * TINY)
    error = np.minimum(SLACK * (relative + U) * p, 1.0) + np.where(visible, flushed, 0.0)
    return Bounded(p, error)


def attention(
    q: ArrayLike, k: ArrayLike, v: ArrayLike, window: int = 0, growth: Growth = gamma
) -> Bounded:
    """Scores are sums of hs products divided by √hs; then softmax, then sums of P products.

    Scores: γ of hs + 2 roundings (root and division) times Σ|q·k| / √hs; this is the x_error of
    `softmax`. The output Σ p·v has the error of p times |v|, and γ_P · Σ p·|v|. What is hidden by
    a window counts as little as the future.
    """
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    T, NH, hs = q.shape
    P, NKV, _ = k.shape
    distance = np.arange(P - T, P)[:, None] - np.arange(P)
    hidden = (distance < 0) | ((distance >= window) if window else False)
    value, error = np.empty((T, NH, hs)), np.empty((T, NH, hs))
    for h in range(NH):
        g = h // (NH // NKV)
        scores = np.where(hidden, -np.inf, q[:, h] @ k[:, g].T / math.sqrt(hs))
        scores_error = growth(hs + 2) * (np.abs(q[:, h]) @ np.abs(k[:, g]).T) / math.sqrt(hs)
        p, p_error = softmax(scores, scores_error + hs * TINY, growth)
        value[:, h] = p @ v[:, g]
        error[:, h] = (p_error + growth(P) * (p + p_error)) @ np.abs(v[:, g]) + P * TINY
    return Bounded(value.reshape(T, NH * hs), SLACK * error.reshape(T, NH * hs))


def attention_forward(
    q: ArrayLike, k: ArrayLike, v: ArrayLike, keep: ArrayLike | None = None, growth: Growth = gamma
) -> tuple[Bounded, Bounded]:
    """Scores have γ_{hs+3} (the scale may be a reciprocal), the softmax one rounding more.

    out: the error of att times |keep·v|, and γ_{T+1} times the sum of absolute terms: a product
    with keep, one with v, T - 1 additions.
    """
    q, k, v = float64(q, k, v)
    _, T, NH, hs = q.shape
    q, k, v = _heads(q), _repeated(k, NH), _repeated(v, NH)
    future = np.arange(T) > np.arange(T)[:, None]
    keys = k.swapaxes(-1, -2)
    scores = np.where(future, -np.inf, q @ keys / math.sqrt(hs))
    scores_error = growth(hs + 3) * (np.abs(q) @ np.abs(keys)) / math.sqrt(hs) + 2 * hs * TINY
    p, error = softmax(scores, scores_error, growth)
    att = Bounded(p, np.where(future, 0.0, np.minimum(error + SLACK * U * p, 1.0)))

    kept = np.ones_like(p) if keep is None else np.asarray(keep, np.float64)
    weights = (att.error + growth(T + 1) * (p + att.error)) * kept
    out_error = weights @ np.abs(v) + TINY * (T + np.sum(np.abs(v), axis=-2, keepdims=True))
    out_error *= kept.any(axis=-1, keepdims=True)  # exactly 0 where all weights are dropped
    return Bounded(_abreast(p * kept @ v), SLACK * _abreast(out_error)), att


def attention_backward(
    dout: ArrayLike,
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    att: ArrayLike,
    keep: ArrayLike | None = None,
    growth: Growth = gamma,
) -> tuple[Bounded, Bounded, Bounded]:
    """datt: sums of hs products and a factor, γ_{hs+1}; dscores = att ∘ (datt - Σ att·datt).

    dscores: the error of datt, weighted as datt itself, and γ_{T+3} times the absolute terms.
    dq, dk: three roundings for √hs, and sums of T or T · group products, since `group` query heads
    share a key: γ_{T+4}, γ_{T·group+4}. dv: sums of T · group products with the extra factor keep.
    """
    dout, q, k, v, att = float64(dout, q, k, v, att)
    B, T, NH, hs = q.shape
    NKV = k.shape[2]
    group = NH // NKV
    dhead = _heads(dout.reshape(B, T, NH, hs))
    q, k, v = _heads(q), _repeated(k, NH), _repeated(v, NH)
    kept = np.where(att != 0, 1.0 if keep is None else np.asarray(keep, np.float64), 0.0)

    datt = dhead @ v.swapaxes(-1, -2) * kept
    abs_datt = np.abs(dhead) @ np.abs(v).swapaxes(-1, -2) * kept
    e_datt = growth(hs + 1) * abs_datt + (hs * kept + 1) * TINY
    dscores = att * (datt - np.sum(att * datt, axis=-1, keepdims=True)) / math.sqrt(hs)

    def weighted(a: Array64) -> Array64:
        return att * (a + np.sum(att * a, axis=-1, keepdims=True)) / math.sqrt(hs)

    largest = np.max(np.abs(datt) + e_datt, axis=-1, keepdims=True)
    error = weighted(e_datt) + growth(T + 3) * weighted(np.abs(datt) + e_datt)
    error += np.where(att != 0, TINY * (2 * T + 2) * (1 + largest), 0.0)

    def off(terms: int, a: Array64, e_a: Array64, b: Array64) -> Array64:
        whole = (e_a + growth(terms + 4) * (np.abs(a) + e_a)) @ np.abs(b)
        return whole + TINY * (2 * terms + np.sum(np.abs(b), axis=-2, keepdims=True))

    def of_group(a: Array64) -> Array64:  # (B, NH, T, hs) -> (B, T, NKV, hs)
        return a.reshape(B, NKV, group, T, hs).sum(axis=2).swapaxes(1, 2)

    turned, e_turned = dscores.swapaxes(-1, -2), error.swapaxes(-1, -2)
    weights = (att * kept).swapaxes(-1, -2)
    dv_error = off(T * group, weights, np.zeros_like(weights), dhead)
    return (
        Bounded(_heads(dscores @ k), SLACK * _heads(off(T, dscores, error, k))),
        Bounded(of_group(turned @ q), SLACK * of_group(off(T * group, turned, e_turned, q))),
        Bounded(of_group(weights @ dhead), SLACK * of_group(dv_error)),
    )


def _heads(x: Array64) -> Array64:
    return x.swapaxes(1, 2)  # (B, T, N, hs) to (B, N, T, hs), and back


def _repeated(x: Array64, NH: int) -> Array64:
    return np.repeat(_heads(x), NH // x.shape[2], axis=1)


def _abreast(x: Array64) -> Array64:
    B, NH, T, hs = x.shape
    return _heads(x).reshape(B, T, NH * hs)


def residual(x: ArrayLike, y: ArrayLike, growth: Growth = gamma) -> Bounded:
    """One addition."""
    return addition(*float64(x, y))


def swiglu(gate: ArrayLike, up: ArrayLike, growth: Growth = gamma) -> Bounded:
    """Relative error: EXP_ULP, and a rounding each for 1 + e, its reciprocal and two products.

    For a gate below -87 the sigmoid is below the smallest normal number and may be 0, since exp
    may overflow to infinity: an absolute error of that number.
    """
    gate, up = np.asarray(gate, np.float64), np.asarray(up, np.float64)
    with np.errstate(over="ignore"):
        value = gate / (1 + np.exp(-gate)) * up
    relative = growth(2 * EXP_ULP + 4)
    underflow = SMALLEST_NORMAL * np.abs(gate * up) * (gate < -87)
    underflow += TINY * (2 + np.abs(up) + np.abs(gate))
    return Bounded(value, SLACK * relative * np.abs(value) + underflow)


def swiglu_backward(
    dout: ArrayLike, gate: ArrayLike, up: ArrayLike, growth: Growth = gamma
) -> tuple[Bounded, Bounded]:
    """Relative error of the sigmoid σ: EXP_ULP times 1 - σ, exp's part of 1 + e, and two roundings.

    The bracket 1 + gate·(1 - σ) has |gate|·σ times that error, and three roundings; outside of it
    are three products and σ again. For a gate below -87 σ may be 0, see `swiglu`.
    """
    dout, gate, up = float64(dout, gate, up)
    with np.errstate(over="ignore"):
        sigmoid = 1 / (1 + np.exp(-gate))
    rest = 1 / (1 + np.exp(np.minimum(gate, 700.0)))  # 1 - σ without cancellation
    relative = rest * growth(2 * EXP_ULP) + growth(2)
    bracket, size = 1 + gate * rest, 1 + np.abs(gate) * rest
    e_bracket = np.abs(gate) * sigmoid * relative + growth(3) * size
    scale = np.abs(dout * up)
    error = scale * sigmoid * (e_bracket + (relative + growth(3)) * (size + e_bracket))
    error += scale * size * SMALLEST_NORMAL * (gate < -87)
    error += TINY * (2 + np.abs(dout) + np.abs(up) + scale) * (1 + size)
    dup = swiglu(gate, dout, growth)
    return Bounded(scale * np.sign(dout * up) * sigmoid * bracket, SLACK * error), dup


def dropout(x: ArrayLike, keep: ArrayLike | None, growth: Growth = gamma) -> Bounded:
    """One product, one rounding; exact without keep."""
    (x,) = float64(x)
    if keep is None:
        return Bounded(x, np.zeros_like(x))
    value = x * np.asarray(keep, np.float64)
    return Bounded(value, U * np.abs(value) + TINY * (value != 0))


def crossentropy_forward(
    logits: ArrayLike, targets: Tokens, growth: Growth = gamma
) -> tuple[Bounded, Bounded]:
    """log Σ exp(x - max) - (x[target] - max), and the softmax with one rounding more.

    Relative error of the sum: the p-weighted mean of u·|d| and EXP_ULP, and γ_V; the logarithm
    turns it into an absolute error. Add LOG_ULP of the logarithm, u·|d| of the target, and u of the
    difference. Underflow: at most V times the smallest normal number, since the sum is at least 1.
    The loss of an ignored target is exactly 0.
    """
    (logits,) = float64(logits)
    V = logits.shape[-1]
    p, p_error = softmax(logits, 0.0, growth)
    d = logits - np.max(logits, axis=-1, keepdims=True)
    log_total = np.log(np.sum(np.exp(d), axis=-1))
    counted = targets != -1
    found = np.take_along_axis(d, np.where(counted, targets, 0)[:, None], axis=-1)[:, 0]

    relative = np.sum(p * (np.expm1(U * np.abs(d)) + 2 * EXP_ULP * U), axis=-1) + growth(V)
    relative += V * SMALLEST_NORMAL
    error = relative + 2 * LOG_ULP * U * (log_total + relative) + U * np.abs(found)
    error += U * (log_total - found + error)
    return (
        Bounded(np.where(counted, log_total - found, 0.0), np.where(counted, SLACK * error, 0.0)),
        Bounded(p, np.minimum(p_error + SLACK * U * p, 1.0)),
    )


def crossentropy_backward(
    dlosses: ArrayLike, probs: ArrayLike, targets: Tokens, growth: Growth = gamma
) -> Bounded:
    """One subtraction and one product: γ_2 of the result. Exactly 0 for an ignored target."""
    dlosses, probs = float64(dlosses, probs)
    counted = (targets != -1)[:, None]
    value = (probs - (np.arange(probs.shape[-1]) == targets[:, None])) * dlosses[:, None]
    return Bounded(
        np.where(counted, value, 0.0), np.where(counted, growth(2) * np.abs(value) + TINY, 0.0)
    )


def matmul_q8(
    x: NDArray[np.int8],
    x_scales: ArrayLike,
    w: NDArray[np.int8],
    w_scales: ArrayLike,
    group_size: int,
    growth: Growth = gamma,
) -> Bounded:
    """Exact integers per group; two products with scales and a sum over groups in float32.

    γ of n_groups + 2 times the sum of absolute terms, for groups below 2²⁴ / 127² = 1040 elements.
    """
    (T, C), OC = x.shape, len(w)
    x_scales, w_scales = np.asarray(x_scales, np.float64), np.asarray(w_scales, np.float64)
    value, total, underflow = np.zeros((T, OC)), np.zeros((T, OC)), np.zeros((T, OC))
    n_groups = C // group_size
    for g in range(n_groups):
        j = slice(g * group_size, (g + 1) * group_size)
        scales = w_scales[(np.arange(OC) * C + g * group_size) // group_size]
        integers = x[:, j].astype(np.int64) @ w[:, j].T.astype(np.int64)
        term = integers * scales * x_scales[:, g : g + 1]
        value += term
        total += np.abs(term)
        # The first product may be that of any two factors; the third scales what underflows.
        underflow += TINY * (2 + np.abs(integers) + scales + x_scales[:, g : g + 1])
    return Bounded(value, growth(n_groups + 2) * total + underflow)


def dequantize_packed(w: NDArray[np.uint8], kind: int, growth: Growth = gamma) -> Bounded:
    """Without a minimum no rounding: scale, group's scale and integer together have ≤ 24 bits.

    With one, d·q and m are exact too, and their sum is one rounding.
    """
    numbers, _ = _packed(w, kind)
    return Bounded(numbers, (TYPES[kind].name in _FIRST_INTEGER) * U * np.abs(numbers))


def matmul_packed(
    x: ArrayLike,
    w: NDArray[np.uint8],
    kind: int,
    b: ArrayLike | None = None,
    growth: Growth = gamma,
) -> Bounded:
    """Sums of C terms x·w, or of 2C terms x·d·q and x·m: γ_{C+4} · (Σ|x|·(|d·q| + |m|) + |b|).

    The numbers w may be rounded and multiplied (2 roundings per term), or the sums of x·q and of
    x in a block, exact products at best, multiplied by their scales (2); then at most C additions
    in any order, one to join the two sums, one for the bias. Integers times x do not underflow
    inexactly; their products with scales do, once each, and products of rounded numbers.
    """
    (numbers, sizes), x64 = _packed(w, kind), np.asarray(x, np.float64)
    C = x64.shape[-1]
    value, total = x64 @ numbers.T, np.abs(x64) @ sizes.T
    if b is not None:
        value, total = value + np.asarray(b, np.float64), total + np.abs(np.asarray(b, np.float64))
    return Bounded(value, growth(C + 4) * total + 3 * C * TINY)


# Where the integers begin in a block with a minimum: with all bits 0 a number is its minimum.
_FIRST_INTEGER = {"Q4_1": 4, "Q5_1": 4, "Q4_K": 16, "Q5_K": 16}


def _packed(w: NDArray[np.uint8], kind: int) -> tuple[Array64, Array64]:
    """The numbers of rows of blocks, exact, and |d·q| + |m| for each. (OC, C) both."""
    block = TYPES[kind]
    blocks = np.ascontiguousarray(w).reshape(-1, block.nbytes)
    numbers = block.dequantize(blocks).astype(np.float64)
    if block.name not in _FIRST_INTEGER:
        return numbers.reshape(len(w), -1), np.abs(numbers).reshape(len(w), -1)
    first = _FIRST_INTEGER[block.name]
    scales_only, integers_only = blocks.copy(), blocks.copy()
    scales_only[:, first:] = 0
    minimum = block.dequantize(scales_only).astype(np.float64)
    integers_only[:, 2:4] = 0  # m, or dmin
    products = block.dequantize(integers_only).astype(np.float64)
    sizes = np.abs(products) + np.abs(minimum)
    return (products + minimum).reshape(len(w), -1), sizes.reshape(len(w), -1)
