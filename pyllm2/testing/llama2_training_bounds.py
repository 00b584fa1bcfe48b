"""What an op of `pyllm2.llama2.ops_backward` may be off by: float64 evaluation and error bound.

The manner and the model of arithmetic are those of `bounds`; several results are a tuple of
`Bounded`. What a forward has kept (att, probs) is taken as given, to the bit. A bound holds for
any order of sums and of factors, and for a division as well as the product with a reciprocal.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyllm2.testing import bounds, gpt2_bounds
from pyllm2.testing.bounds import (
    EPS,
    EXP_ULP,
    SLACK,
    SMALLEST_NORMAL,
    TINY,
    Array64,
    Bounded,
    Growth,
    U,
    gamma,
)
from pyllm2.testing.gpt2_bounds import LOG_ULP, float64, growths

Tokens = NDArray[np.integer]


def embedding_backward(
    dout: ArrayLike, tokens: Tokens, dtable: ArrayLike, growth: Growth = gamma
) -> Bounded:
    """n additions to what is there, n how often a token occurs: γ_n · (|there| + Σ|dout|).

    A row that does not occur comes back as it was, to the bit.
    """
    dout, dtable = float64(dout, dtable)
    value, total = dtable.copy(), np.abs(dtable)
    np.add.at(value, tokens, dout)
    np.add.at(total, tokens, np.abs(dout))
    times = np.bincount(tokens, minlength=len(dtable))
    return Bounded(value, growths(times, growth)[:, None] * total)


def rmsnorm_backward(
    dout: ArrayLike, x: ArrayLike, weight: ArrayLike, growth: Growth = gamma
) -> tuple[Bounded, Bounded]:
    """With ρ = C/2 + 3 roundings of r (see `bounds.rmsnorm`), each term of dx on absolute values.

    g·r: one for g, one for the difference, ρ + 1 for r: γ_{ρ+3}.
    n·mean(g·n)·r: ρ + 1 for n; that, two products, C - 1 additions and a division for the mean;
    a product, the difference, ρ + 1 for r. Together γ_{3ρ+C+7}.
    dweight: n has ρ + 1 roundings, the product one, the sum N - 1: γ_{ρ+N+1}.
    """
    dout, x, weight = float64(dout, x, weight)
    N, C = x.shape
    rho = C / 2 + 3
    r = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + EPS)
    n, g = x * r, dout * weight
    abs_n, abs_g = np.abs(n), np.abs(g)
    along = np.mean(g * n, axis=-1, keepdims=True)
    abs_along = np.mean(abs_g * abs_n, axis=-1, keepdims=True)
    error = growth(rho + 3) * abs_g + growth(3 * rho + C + 7) * abs_n * abs_along
    means = 3 + np.mean(abs_g, axis=-1, keepdims=True) + np.mean(abs_n, axis=-1, keepdims=True)
    error += TINY * (4 + abs_along + abs_n * means)  # what underflows, and what then scales it
    error = r * error + TINY * (2 + abs_g)

    dweight_error = growth(rho + N + 1) * np.sum(np.abs(n * dout), axis=0)
    dweight_error += TINY * (N + np.sum(np.abs(dout), axis=0))
    return (
        Bounded((g - n * along) * r, SLACK * error),
        Bounded(np.sum(n * dout, axis=0), SLACK * dweight_error),
    )


def matmul_backward(
    dout: ArrayLike, x: ArrayLike, w: ArrayLike, growth: Growth = gamma
) -> tuple[Bounded, Bounded]:
    """That of GPT-2's, which has a bias as well: γ_OC for dx, γ_N for dw."""
    dx, dw, _ = gpt2_bounds.matmul_backward(dout, x, w, growth)
    return dx, dw


def rope_backward(
    dout: ArrayLike, cos: ArrayLike, sin: ArrayLike, growth: Growth = gamma
) -> Bounded:
    """A turn by the negative angle."""
    return bounds.rope(dout, cos, -np.asarray(sin, np.float64), growth)


def attention_forward(
    q: ArrayLike, k: ArrayLike, v: ArrayLike, keep: ArrayLike | None = None, growth: Growth = gamma
) -> tuple[Bounded, Bounded]:
    """As `bounds.attention`: scores γ_{hs+3}, their softmax with a rounding to spare.

    out: what att is off by, against |keep·v|, and γ_{T+1} on absolute values: a product with keep,
    one with v, T - 1 additions.
    """
    q, k, v = float64(q, k, v)
    _, T, NH, hs = q.shape
    q, k, v = _heads(q), _repeated(k, NH), _repeated(v, NH)
    future = np.arange(T) > np.arange(T)[:, None]
    keys = k.swapaxes(-1, -2)
    scores = np.where(future, -np.inf, q @ keys / math.sqrt(hs))
    scores_error = growth(hs + 3) * (np.abs(q) @ np.abs(keys)) / math.sqrt(hs) + 2 * hs * TINY
    p, error = bounds.softmax(scores, scores_error, growth)
    att = Bounded(p, np.where(future, 0.0, np.minimum(error + SLACK * U * p, 1.0)))

    kept = np.ones_like(p) if keep is None else np.asarray(keep, np.float64)
    weights = (att.error + growth(T + 1) * (p + att.error)) * kept
    out_error = weights @ np.abs(v) + TINY * (T + np.sum(np.abs(v), axis=-2, keepdims=True))
    out_error *= kept.any(axis=-1, keepdims=True)  # where all is dropped nothing can be off
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
    """datt: sums of hs products and a factor, γ_{hs+1}. dscores = att ∘ (datt - Σ att·datt):

    off by what datt is off by, weighted as datt itself, and by γ_{T+3} of the absolute terms. Then
    √hs with its division (3), and sums of T products for dq, of T · group for dk and dv, where
    group query heads share a key: γ_{T+4}, γ_{T·group+4}; dv has one factor more, keep.
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


def swiglu_backward(
    dout: ArrayLike, gate: ArrayLike, up: ArrayLike, growth: Growth = gamma
) -> tuple[Bounded, Bounded]:
    """The sigmoid σ: relative, exp's ulp times its share 1 - σ of the sum, and two roundings.

    The bracket 1 + gate·(1 - σ) has |gate|·σ times that, and three roundings; what is outside it
    three products and σ once more. Below -87 the sigmoid itself may vanish, see `bounds.swiglu`.
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
    dup = bounds.swiglu(gate, dout, growth)
    return Bounded(scale * np.sign(dout * up) * sigmoid * bracket, SLACK * error), dup


def dropout(x: ArrayLike, keep: ArrayLike | None, growth: Growth = gamma) -> Bounded:
    """One product, one rounding; nothing without keep."""
    (x,) = float64(x)
    if keep is None:
        return Bounded(x, np.zeros_like(x))
    value = x * np.asarray(keep, np.float64)
    return Bounded(value, U * np.abs(value) + TINY * (value != 0))


def crossentropy_forward(
    logits: ArrayLike, targets: Tokens, growth: Growth = gamma
) -> tuple[Bounded, Bounded]:
    """log Σ exp(x - max) - (x[target] - max), and the softmax with a rounding to spare.

    The sum is off by the p-weighted mean of u·|d| and EXP_ULP, and by γ_V: relative, which the
    logarithm makes absolute. LOG_ULP of the logarithm, u·|d| of the target's, u of the difference.
    What underflows in the sum, which is 1 at least, is V of the smallest normal number at most.
    Where nothing was asked: 0, exactly.
    """
    (logits,) = float64(logits)
    V = logits.shape[-1]
    p, p_error = bounds.softmax(logits, 0.0, growth)
    d = logits - np.max(logits, axis=-1, keepdims=True)
    log_total = np.log(np.sum(np.exp(d), axis=-1))
    asked = targets != -1
    found = np.take_along_axis(d, np.where(asked, targets, 0)[:, None], axis=-1)[:, 0]

    relative = np.sum(p * (np.expm1(U * np.abs(d)) + 2 * EXP_ULP * U), axis=-1) + growth(V)
    relative += V * SMALLEST_NORMAL
    error = relative + 2 * LOG_ULP * U * (log_total + relative) + U * np.abs(found)
    error += U * (log_total - found + error)
    return (
        Bounded(np.where(asked, log_total - found, 0.0), np.where(asked, SLACK * error, 0.0)),
        Bounded(p, np.minimum(p_error + SLACK * U * p, 1.0)),
    )


def crossentropy_backward(
    dlosses: ArrayLike, probs: ArrayLike, targets: Tokens, growth: Growth = gamma
) -> Bounded:
    """One subtraction and one product: γ_2 of the result. Where nothing was asked: 0, exactly."""
    dlosses, probs = float64(dlosses, probs)
    asked = (targets != -1)[:, None]
    value = (probs - (np.arange(probs.shape[-1]) == targets[:, None])) * dlosses[:, None]
    return Bounded(
        np.where(asked, value, 0.0), np.where(asked, growth(2) * np.abs(value) + TINY, 0.0)
    )
