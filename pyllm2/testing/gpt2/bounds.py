"""Error bounds of GPT-2's ops: a float64 evaluation and an error per element.

Every function has the name and arguments of an op of `pyllm2.gpt2.ops`; an op with several results
has a tuple of `Bounded`. `pyllm2.testing.bounds` states the model of arithmetic. Results that a
forward keeps for its backward (mean, rstd, att, probs) are exact inputs of the backward's bound.

A bound holds for every formula that the specification names for an op: sech² through cosh or as
1 - tanh², the Jacobian of the softmax multiplied out or in its short form, a division or a product
with the reciprocal. For inputs of the size of `strategies.numbers` nothing but cosh overflows.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyllm2.testing.bounds import (
    COSH_ULP,
    EXP_ULP,
    LOG_ULP,
    SLACK,
    SMALLEST_NORMAL,
    TANH_ULP,
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
FLOOR = -10000.0  # where llm.c's search for the maximum starts
GELU_CUBIC = float(np.float32(0.044715))
GELU_SCALE = float(np.sqrt(np.float32(2 / np.pi)))

# exp underflows to 0 below the first, or may be flushed to 0; it is a normal number above the
# second. Between them no value is promised.
SURELY_ZERO, SURELY_NORMAL = -106.0, -80.0
TANH_IS_ONE = 10.0  # from here on tanh rounds to 1: 2·exp(-20) is below u/8


def encoder_forward(
    tokens: Tokens, wte: ArrayLike, wpe: ArrayLike, growth: Growth = gamma
) -> Bounded:
    """One addition."""
    wte, wpe = float64(wte, wpe)
    return addition(wte[tokens], wpe[: tokens.shape[1]])


def encoder_backward(
    dout: ArrayLike,
    tokens: Tokens,
    dwte: ArrayLike,
    dwpe: ArrayLike,
    growth: Growth = gamma,
) -> tuple[Bounded, Bounded]:
    """n additions to a row that occurs n times: γ_n · (|row| + Σ|dout|).

    A row that does not occur is unchanged, to the bit.
    """
    dout, dwte, dwpe = float64(dout, dwte, dwpe)
    B, T, _ = dout.shape
    times = np.bincount(tokens.ravel(), minlength=len(dwte))
    into_wte, into_wpe = np.zeros((2, *dwte.shape)), np.zeros((2, *dwpe.shape))
    for into, part in zip(range(2), (dout, np.abs(dout)), strict=True):
        np.add.at(into_wte[into], tokens, part)
        into_wpe[into][:T] = part.sum(axis=0)
    error_wte = growths(times, growth)[:, None] * (np.abs(dwte) + into_wte[1])
    error_wpe = growth(B) * (np.abs(dwpe) + into_wpe[1])
    error_wpe[T:] = 0
    return Bounded(dwte + into_wte[0], error_wte), Bounded(dwpe + into_wpe[0], error_wpe)


def layernorm_forward(
    x: ArrayLike, w: ArrayLike, b: ArrayLike, growth: Growth = gamma
) -> tuple[Bounded, Bounded, Bounded]:
    """The mean has the error e = γ_{C+1} · mean|x|; the other bounds follow from it.

    Σ(x - mean) = 0, so a mean that is off by δ makes the variance larger by δ² ≤ e² only: it lies
    between v·(1 - γ) and (v + e²)·(1 + γ), γ of C + 4 roundings (two for x - mean squared, one for
    the product, C for the mean, one for a reciprocal). rstd lies in the corresponding interval,
    plus four roundings (adding epsilon, root, reciprocal, one in reserve). n = (x - mean)·rstd has
    both errors; two products and a sum give out. In a nearly constant row e² can be far above
    v + 1e-5: then no digit of n is certain, and the bound says so.
    """
    x, w, b = float64(x, w, b)
    C = x.shape[-1]
    mean = np.mean(x, axis=-1, keepdims=True)
    e_mean = growth(C + 1) * np.mean(np.abs(x), axis=-1, keepdims=True) + 2 * TINY
    centred = x - mean
    e_centred = e_mean + U * (np.abs(centred) + e_mean)

    var = np.mean(centred * centred, axis=-1, keepdims=True)
    g = growth(C + 4)
    least = np.maximum(var * (1 - g) - 2 * TINY, 0)
    most = (var + e_mean**2) * (1 + g) + 2 * TINY
    rstd = 1 / np.sqrt(var + EPS)
    high, low = 1 / np.sqrt(least + EPS), 1 / np.sqrt(most + EPS)
    e_rstd = np.maximum(high - rstd, rstd - low) + growth(4) * high

    n = centred * rstd
    e_n = np.abs(centred) * e_rstd + e_centred * (rstd + e_rstd)
    scaled = np.abs(w) * (np.abs(n) + e_n)
    error = np.abs(w) * e_n + growth(3) * scaled + growth(1) * np.abs(b)
    error += TINY * (2 + np.abs(w) + np.abs(centred) + rstd)
    return (
        Bounded(n * w + b, SLACK * error),
        Bounded(mean[..., 0], SLACK * e_mean[..., 0]),
        Bounded(rstd[..., 0], SLACK * e_rstd[..., 0]),
    )


def layernorm_backward(
    dout: ArrayLike,
    x: ArrayLike,
    w: ArrayLike,
    mean: ArrayLike,
    rstd: ArrayLike,
    growth: Growth = gamma,
) -> tuple[Bounded, Bounded, Bounded]:
    """Roundings per term of dx, times the absolute value of the term.

    g·s: one for g, two sums, one product: γ_4.   mean(g)·s: C + 2 for the mean, then four: γ_{C+5}.
    n·mean(g·n)·s: two for n, three and C + 2 for the mean, four more: γ_{C+10}.
    dw: n has two roundings, the product one, the sum N - 1 with N = B·T: γ_{N+2}. db: γ_{N-1}.
    A product that underflows may be multiplied by s afterwards; in Σ g·(x - mean), by s twice.
    What underflows may be multiplied by s afterwards: in Σ g·(x - mean), times s twice.
    """
    dout, x, w, mean, rstd = float64(dout, x, w, mean, rstd)
    C, N = x.shape[-1], mean.size
    s = rstd[..., None]
    n, g = (x - mean[..., None]) * s, dout * w
    along_one = np.mean(g, axis=-1, keepdims=True)
    along_n = np.mean(g * n, axis=-1, keepdims=True)
    abs_n, abs_g = np.abs(n), np.abs(g)
    abs_one = np.mean(abs_g, axis=-1, keepdims=True)
    abs_along_n = np.mean(abs_g * abs_n, axis=-1, keepdims=True)
    error = growth(4) * abs_g + growth(C + 5) * abs_one + growth(C + 10) * abs_n * abs_along_n
    means = 3 + abs_one + np.mean(abs_n, axis=-1, keepdims=True) + np.abs(s)
    lost = 4 + abs_along_n + abs_n * means
    dx_error = np.abs(s) * (error + TINY * lost) + TINY * (2 + abs_g)

    axes = (0, 1)
    dw_error = growth(N + 2) * np.sum(np.abs(n * dout), axes)
    dw_error += TINY * (N + np.sum(np.abs(s)) + np.sum(np.abs(dout), axes))
    return (
        Bounded((g - along_one - n * along_n) * s, SLACK * dx_error),
        Bounded(np.sum(n * dout, axes), SLACK * dw_error),
        Bounded(np.sum(dout, axes), growth(max(N - 1, 1)) * np.sum(np.abs(dout), axes)),
    )


def matmul_forward(
    x: ArrayLike, w: ArrayLike, b: ArrayLike | None = None, growth: Growth = gamma
) -> Bounded:
    """C products and C additions, the bias first or last: γ_{C+1} · (Σ|x·w| + |b|)."""
    x, w = float64(x, w)
    C = x.shape[-1]
    bias = np.zeros(len(w)) if b is None else np.asarray(b, np.float64)
    roundings = C if b is None else C + 1
    total = np.abs(x) @ np.abs(w).T + np.abs(bias)
    return Bounded(x @ w.T + bias, growth(roundings) * total + C * TINY)


def matmul_backward(
    dout: ArrayLike, x: ArrayLike, w: ArrayLike, growth: Growth = gamma
) -> tuple[Bounded, Bounded, Bounded]:
    """Sums of n products in any order, γ_n each: n = OC for dx, B·T for dw; B·T terms for db."""
    dout, x, w = float64(dout, x, w)
    OC, C = w.shape
    rows, drows = x.reshape(-1, C), dout.reshape(-1, OC)
    N = len(rows)
    db_error = growth(N - 1) * np.sum(np.abs(drows), axis=0) if N > 1 else np.zeros(OC)
    return (
        product(dout, w, growth),
        product(drows.T, rows, growth),
        Bounded(drows.sum(axis=0), db_error),
    )


def softmax_rows(
    x: Array64, x_error: Array64 | float, divisions: int, growth: Growth
) -> tuple[Bounded, NDArray[np.bool_]]:
    """Softmax over the last axis with a maximum of at least -10000; -inf is masked.

    d = x - max has the error u·|d| and the errors of x and of the maximum. exp turns that into a
    relative error and adds EXP_ULP. The sum has the p-weighted mean of those errors and γ_C; then
    come `divisions` roundings. A subnormal may be flushed to zero; that error is divided by the
    sum, which is small for a row just below -10000.

    Also returns which rows are far below -10000: their sum is 0, and the value here is 0. In the
    narrow band where exp may or may not underflow the error is infinite.
    """
    C = x.shape[-1]
    x_error = np.broadcast_to(np.asarray(x_error, np.float64), x.shape)
    visible = np.isfinite(x)
    d = x - np.maximum(np.max(x, axis=-1, keepdims=True), FLOOR)
    top = np.max(d, axis=-1, keepdims=True)
    largest = np.max(np.where(visible, x_error, 0.0), axis=-1, keepdims=True)
    below = top + largest < SURELY_ZERO
    fuzzy = ~below & (top - largest < SURELY_NORMAL)

    e = np.exp(d)
    total = np.where(below, 1.0, np.maximum(np.sum(e, axis=-1, keepdims=True), 1e-300))
    p = np.where(below, 0.0, e / total)
    shift = np.where(visible, U * np.abs(d) + x_error + largest, 0.0)
    epsilon = np.expm1(np.minimum(shift, 700.0)) + 2 * EXP_ULP * U
    mean = np.sum(p * epsilon, axis=-1, keepdims=True) + growth(C)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(mean < 1, (1 + epsilon) / np.maximum(1 - mean, 0.0) - 1, np.inf)
        error = np.fmin(SLACK * (relative + divisions * U) * p, 1.0)
    flushed = np.where(e < 2 * SMALLEST_NORMAL, 2 * SMALLEST_NORMAL, 4 * TINY)
    error += np.where(visible, flushed / np.minimum(total, 1.0), 0.0)
    error = np.where(below, 0.0, np.where(fuzzy & visible, np.inf, error))
    return Bounded(p, error), below


def _heads(qkv: Array64, NH: int) -> Array64:
    B, T, C3 = qkv.shape
    return qkv.reshape(B, T, 3, NH, C3 // 3 // NH).transpose(2, 0, 3, 1, 4)


def attention_forward(
    qkv: ArrayLike, NH: int, first: int = 0, growth: Growth = gamma
) -> tuple[Bounded, Bounded]:
    """Scores are sums of hs products times a scale; then `softmax_rows`, then sums of P products.

    Scores: γ of hs + 3 roundings (root, reciprocal, product) times Σ|q·k| / √hs. The division of
    the softmax is two roundings (reciprocal, product). out = Σ att·v has the error of att times |v|
    and γ_P · Σ att·|v|. A row far below -10000 is exactly 0.
    """
    qkv = np.asarray(qkv, np.float64)
    B, P, C3 = qkv.shape
    q, k, v = _heads(qkv, NH)
    q, keys, hs = q[:, :, first:], k.swapaxes(-1, -2), C3 // 3 // NH
    future = np.arange(P) > np.arange(first, P)[:, None]
    scores = np.where(future, -np.inf, q @ keys / math.sqrt(hs))
    scores_error = growth(hs + 3) * (np.abs(q) @ np.abs(keys)) / math.sqrt(hs) + 2 * hs * TINY
    att, _ = softmax_rows(scores, scores_error, 2, growth)

    fuzzy = np.isinf(att.error).any(axis=-1, keepdims=True)
    weight_error = np.where(fuzzy, 0.0, att.error)
    values = np.abs(v)
    error = (weight_error + growth(P) * (att.value + weight_error)) @ values + P * TINY
    error = np.where(fuzzy, np.inf, np.where(att.value.any(axis=-1, keepdims=True), error, 0.0))

    def joined(a: Array64) -> Array64:
        return a.swapaxes(1, 2).reshape(B, P - first, C3 // 3)

    return Bounded(joined(att.value @ v), SLACK * joined(error)), att


def attention_backward(
    dout: ArrayLike, qkv: ArrayLike, att: ArrayLike, growth: Growth = gamma
) -> Bounded:
    """datt and dv are sums of products, γ_hs and γ_T; dscores by either formula:

        a ∘ (datt - Σ a·datt)        or        Σ_s a_s·(δ - a)·datt_s

    No term passes more than T + 3 roundings in either. For weights up to 1 the absolute terms of
    the second are not above those of the first, a ∘ (|datt| + Σ a·|datt|). So dscores has γ_{T+3}
    times that, and the error of datt weighted in the same way. The scale (root, reciprocal,
    product) and the last sums add γ_{T+4}.
    """
    dout, qkv, att = float64(dout, qkv, att)
    B, T, C = dout.shape
    NH = att.shape[1]
    hs = C // NH
    q, k, v = _heads(qkv, NH)
    scale = 1 / math.sqrt(hs)
    dhead = dout.reshape(B, T, NH, hs).swapaxes(1, 2)

    datt = np.where(att != 0, dhead @ v.swapaxes(-1, -2), 0.0)
    abs_datt = np.where(att != 0, np.abs(dhead) @ np.abs(v).swapaxes(-1, -2), 0.0)
    e_datt = growth(hs) * abs_datt + hs * TINY
    dscores = att * (datt - np.sum(att * datt, axis=-1, keepdims=True))

    def weighted(a: Array64) -> Array64:
        return np.abs(att) * (a + np.sum(np.abs(att) * a, axis=-1, keepdims=True))

    largest = np.max(np.abs(datt), axis=-1, keepdims=True, initial=0)
    e_dscores = weighted(e_datt) + growth(T + 3) * weighted(np.abs(datt) + e_datt)
    e_dscores += np.where(att != 0, TINY * (2 * T + 2) * (1 + largest), 0.0)

    def off(a: Array64, e_a: Array64, b: Array64) -> Array64:
        whole = (e_a + growth(T + 4) * (np.abs(a) + e_a)) @ np.abs(b)
        return scale * whole + TINY * (2 * T + np.sum(np.abs(b), axis=-2, keepdims=True))

    turned, e_turned = dscores.swapaxes(-1, -2), e_dscores.swapaxes(-1, -2)
    weights = att.swapaxes(-1, -2)
    dv_error = growth(T) * (np.abs(weights) @ np.abs(dhead)) + T * TINY

    def joined(dq: Array64, dk: Array64, dv: Array64) -> Array64:
        return np.stack([dq, dk, dv]).transpose(1, 3, 0, 2, 4).reshape(B, T, 3 * C)

    value = joined(dscores @ k * scale, turned @ q * scale, weights @ dhead)
    error = joined(off(dscores, e_dscores, k), off(turned, e_turned, q), dv_error)
    return Bounded(value, SLACK * error)


def _gelu_parts(x: Array64, growth: Growth) -> tuple[Array64, Array64, Array64, Array64]:
    """a, tanh a, sech² a and the absolute error of tanh.

    The terms of a have one sign: γ_5. The slope of tanh turns that into sech²a·|a|·γ_5. Only
    1 + tanh and 1 - tanh² are used, so an ulp of tanh counts as an ulp of 1.
    """
    a = GELU_SCALE * (x + GELU_CUBIC * x * x * x)
    tanh = np.tanh(a)
    with np.errstate(over="ignore"):
        sech2 = 1 / np.cosh(a) ** 2
    return a, tanh, sech2, SLACK * sech2 * np.abs(a) * growth(5) + 2 * TANH_ULP * U


def gelu_forward(x: ArrayLike, growth: Growth = gamma) -> Bounded:
    """|x|/2 times the error of 1 + tanh: that of tanh, one rounding, and one product."""
    (x,) = float64(x)
    _, tanh, _, e_tanh = _gelu_parts(x, growth)
    half = np.abs(x) / 2
    error = half * (e_tanh + growth(2) * (1 + tanh + e_tanh))
    return Bounded(x / 2 * (1 + tanh), SLACK * error + 2 * TINY)


def gelu_backward(dout: ArrayLike, x: ArrayLike, growth: Growth = gamma) -> Bounded:
    """A sum of two terms: ½(1 + tanh a) as in `gelu_forward`, and x/2 · sech²a · S · (1 + 3K·x²).

    sech² as 1/cosh²: a relative error of twice that of cosh (|a·tanh a|·γ_5, since tanh is its
    relative slope, and COSH_ULP) and two roundings; where cosh overflows, a number below the
    smallest normal one is lost. As 1 - tanh²: an absolute error of twice that of tanh and two
    roundings, until tanh is 1. The other factors of the second term are eight operations.
    """
    dout, x = float64(dout, x)
    a, tanh, sech2, e_tanh = _gelu_parts(x, growth)
    relative = 2 * (np.abs(a * tanh) * growth(5) + 2 * COSH_ULP * U) + 2 * U
    near = np.abs(a) < TANH_IS_ONE
    e_sech2 = sech2 * relative + np.where(near, 2 * np.abs(tanh) * e_tanh + 2 * U, 0.0)
    e_sech2 += 2 * SMALLEST_NORMAL
    other = np.abs(x) / 2 * GELU_SCALE * (1 + 3 * GELU_CUBIC * x * x)
    slope = (1 + tanh) / 2 + np.copysign(other, x) * sech2
    e_slope = (e_tanh + growth(1) * (1 + tanh + e_tanh)) / 2
    e_slope += other * (e_sech2 + growth(8) * (sech2 + e_sech2))
    e_slope += growth(1) * (np.abs(slope) + e_slope)
    error = np.abs(dout) * (e_slope + growth(1) * (np.abs(slope) + e_slope))
    return Bounded(dout * slope, SLACK * error + TINY * (1 + np.abs(dout)) * (2 + other))


def residual_forward(a: ArrayLike, b: ArrayLike, growth: Growth = gamma) -> Bounded:
    """One addition."""
    return addition(*float64(a, b))


def residual_backward(dout: ArrayLike, growth: Growth = gamma) -> tuple[Bounded, Bounded]:
    """Two copies: no error at all."""
    (dout,) = float64(dout)
    return exact(dout), exact(dout)


def softmax_forward(logits: ArrayLike, V: int, growth: Growth = gamma) -> Bounded:
    """`softmax_rows` of the first V logits; padding is exactly 0; NaN (0/0) far below -10000."""
    (logits,) = float64(logits)
    p, below = softmax_rows(logits[..., :V], 0.0, 1, growth)
    value, error = np.zeros_like(logits), np.zeros_like(logits)
    value[..., :V], error[..., :V] = np.where(below, np.nan, p.value), p.error
    return Bounded(value, error)


def crossentropy_forward(probs: ArrayLike, targets: Tokens, growth: Growth = gamma) -> Bounded:
    """LOG_ULP of the logarithm; exact where it is 0 or infinite."""
    (probs,) = float64(probs)
    with np.errstate(divide="ignore"):
        value = -np.log(np.take_along_axis(probs, targets[..., None], axis=-1)[..., 0])
    return Bounded(value, 2 * LOG_ULP * U * np.where(np.isinf(value), 0.0, np.abs(value)))


def crossentropy_softmax_backward(
    dlosses: ArrayLike,
    probs: ArrayLike,
    targets: Tokens,
    V: int,
    growth: Growth = gamma,
) -> Bounded:
    """One subtraction and one product: γ_2 of the result; padding is exactly 0."""
    dlosses, probs = float64(dlosses, probs)
    value = probs - (np.arange(probs.shape[-1]) == targets[..., None])
    value[..., V:] = 0
    value *= dlosses[..., None]
    error = growth(2) * np.abs(value) + TINY
    error[..., V:] = 0
    return Bounded(value, error)
