"""The specification of Llama-2, one op a function: float32 arrays in, new float32 arrays out.

Letters as in `pyllm2`: T tokens in this call, P positions so far (this call's included), C
channels, F feed-forward width, NH query heads, NKV key/value heads, hs head size, V vocabulary.
A weight matrix is (out, in). Rivals (`ops_numba`, `ops_c`) have the same names in the same order.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Int8 = NDArray[np.int8]

EPS = np.float32(1e-5)
ROPE_BASE = 10000.0
ONE = np.float32(1)


def embedding(tokens: NDArray[np.integer], table: Array) -> Array:
    """Look up one row a token.

    tokens: (T,) integers in [0, V)   table: (V, C)   ->   (T, C)
    """
    return table[tokens]


def rmsnorm(x: Array, weight: Array) -> Array:
    """Scale each row of x to unit root-mean-square, then by weight (Zhang & Sennrich 2019).

        out = weight * (x / sqrt(mean(x²) + 1e-5))

    x: (T, C)   weight: (C,)   ->   (T, C)
    The epsilon is inside the root, and the root's reciprocal is taken once a row, as in llama2.c.
    """
    mean_square = np.mean(x * x, axis=-1, keepdims=True)  # (T, 1)
    return weight * (ONE / np.sqrt(mean_square + EPS) * x)


def matmul(x: Array, w: Array) -> Array:
    """Each row of x against each row of w: out[t, i] = Σ_j x[t, j] · w[i, j].

    x: (T, C)   w: (OC, C)   ->   (T, OC)
    """
    return x @ w.T


def _matmul_naive(x: Array, w: Array) -> Array:
    """`matmul` as llama2.c adds it up: one running sum, ascending j, rounded after every step."""
    out = np.zeros((len(x), len(w)), dtype=np.float32)
    for j in range(x.shape[1]):
        out += x[:, j : j + 1] * w[:, j]
    return out


def rope_tables(S: int, hs: int) -> tuple[Array, Array]:
    """Cosine and sine of the angle by which pair i turns at position p (Su et al. 2021).

        angle[p, i] = p / 10000^(2i / hs)

    ->   cos: (S, hs/2)   sin: (S, hs/2)
    Frequency and angle are rounded to float32 before the cosine, as in llama2.c: at position 500
    that rounding tells its tables from ones that keep doubles. The functions themselves are
    evaluated in float64 and rounded, the closest that NumPy comes to the C library's float32 ones.
    """
    h_over_hs = np.arange(0, hs, 2, dtype=np.float32) / np.float32(hs)  # (hs/2,)
    power = (ROPE_BASE ** h_over_hs.astype(np.float64)).astype(np.float32)
    frequency = ONE / power
    angle = np.arange(S, dtype=np.float32)[:, None] * frequency  # (S, hs/2)
    angle64 = angle.astype(np.float64)
    return np.cos(angle64).astype(np.float32), np.sin(angle64).astype(np.float32)


def rope(x: Array, cos: Array, sin: Array) -> Array:
    """Turn each adjacent pair (a, b) of every head by its position's angle.

        (a, b)  ->  (a·cos - b·sin, a·sin + b·cos)

    x: (T, N, hs), N heads of queries or of keys   cos, sin: (T, hs/2)   ->   (T, N, hs)
    The angle depends on the place inside the head only, so all heads share one table. Pairs are
    neighbours (0,1), (2,3), …; Hugging Face models pair i with i + hs/2 and permute the weights.
    """
    T, N, hs = x.shape
    a, b = x[..., 0::2], x[..., 1::2]  # (T, N, hs/2) each
    cos, sin = cos[:, None, :], sin[:, None, :]  # (T, 1, hs/2)
    pairs = np.stack([a * cos - b * sin, a * sin + b * cos], axis=-1)  # (T, N, hs/2, 2)
    return pairs.reshape(T, N, hs)


def softmax(x: Array) -> Array:
    """Positive rows that sum to one: exp(x - max) / Σ exp(x - max).

    x: (..., C)   ->   (..., C)
    Subtracting the largest changes nothing but keeps exp in range; -inf gives exactly 0.
    """
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def attention(q: Array, k: Array, v: Array) -> Array:
    """Causal scaled dot-product attention with grouped key/value heads (Ainslie et al. 2023).

        out[t] = softmax(q[t] · k[0..p] / sqrt(hs)) · v[0..p]        p = P - T + t

    q: (T, NH, hs)   k, v: (P, NKV, hs), the cache up to now   ->   (T, NH · hs), heads abreast
    The T queries are the last T of the P positions; each sees itself and what came before.
    Query head h reads key/value head h // (NH / NKV).
    """
    T, NH, hs = q.shape
    P, NKV, _ = k.shape
    future = np.arange(P) > np.arange(P - T, P)[:, None]  # (T, P)
    out = np.empty((T, NH, hs), dtype=np.float32)
    for h in range(NH):
        g = h // (NH // NKV)
        scores = q[:, h] @ k[:, g].T / math.sqrt(hs)  # (T, P)
        scores[future] = -np.inf
        out[:, h] = softmax(scores) @ v[:, g]  # (T, hs)
    return out.reshape(T, NH * hs)


def residual(x: Array, y: Array) -> Array:
    """What a block adds to the stream that all blocks read and write: x + y.

    x, y: (T, C)   ->   (T, C)
    """
    return x + y


def swiglu(gate: Array, up: Array) -> Array:
    """The gated activation of the feed-forward block (Shazeer 2020): silu(gate) · up.

        silu(g) = g / (1 + exp(-g))

    gate, up: (T, F)   ->   (T, F)
    Below about -88.7 exp overflows to infinity, its reciprocal is 0 and so is the result.
    """
    with np.errstate(over="ignore"):
        sigmoid = ONE / (ONE + np.exp(-gate))
    return gate * sigmoid * up


# ---- int8 in groups ("Q8_0") -----------------------------------------------------------------


def quantize(x: Array, group_size: int) -> tuple[Int8, Array]:
    """Round activations to int8, each group of a row by its own scale, as while running.

        scale = max|x| / 127        value = round(x / scale), half away from zero

    x: (T, C)   ->   values: (T, C) int8   scales: (T, C // group_size)
    A group of zeros has scale 0 and values 0. What is left over after the last whole group is 0.
    (Weights, quantised once when a file is made, round half to even instead: `formats.llama2c`.)
    """
    T, C = x.shape
    whole = C // group_size * group_size
    groups = x[:, :whole].reshape(T, C // group_size, group_size)
    scales = np.max(np.abs(groups), axis=-1) / np.float32(127)  # (T, C // group_size)
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = np.where(scales[..., None] > 0, groups / scales[..., None], 0)
    # Through float64: adding a half in float32 would round a quotient just below it up.
    rounded = np.copysign(np.floor(np.abs(quotient, dtype=np.float64) + 0.5), quotient)
    values = np.zeros((T, C), dtype=np.int8)
    values[:, :whole] = np.clip(rounded, -127, 127).reshape(T, whole)
    return values, scales


def dequantize(values: Int8, scales: Array, group_size: int) -> Array:
    """Back to float32: value · scale, groups counted over the flattened array.

    values: any shape, int8   scales: (groups,)   ->   values' shape
    """
    flat = np.zeros(values.size, dtype=np.float32)
    whole = len(scales) * group_size
    groups = values.reshape(-1)[:whole].reshape(-1, group_size)
    flat[:whole] = (groups * scales[:, None]).reshape(-1)
    return flat.reshape(values.shape)


def matmul_q8(x: Int8, x_scales: Array, w: Int8, w_scales: Array, group_size: int) -> Array:
    """`matmul` of quantised rows: exact integer sums in a group, float32 across groups.

        out[t, i] = Σ_g (Σ_j x[t, j] · w[i, j]) · w_scale · x_scales[t, g]      j in group g

    x: (T, C) int8   x_scales: (T, C // group_size)   w: (OC, C) int8   w_scales: (groups,)
    ->   (T, OC) float32

    Groups of w are cut from the flattened matrix. Where group_size does not divide C they straddle
    rows, and llama2.c does what is written here: the last C mod group_size inputs are dropped and
    the scale is that of the group in which a product's first element lies. Deterministic, and not
    what the file meant; such files are played as they always were.
    """
    (T, C), OC = x.shape, len(w)
    out = np.zeros((T, OC), dtype=np.float32)
    for g in range(C // group_size):
        j = slice(g * group_size, (g + 1) * group_size)
        # float32 holds integers below 2²⁴ exactly; float64 any group there is.
        integers = (x[:, j].astype(np.float64) @ w[:, j].T.astype(np.float64)).astype(np.float32)
        first = np.arange(OC) * C + g * group_size
        out += integers * w_scales[first // group_size] * x_scales[:, g : g + 1]
    return out
