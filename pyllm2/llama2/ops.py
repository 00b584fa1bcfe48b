"""The specification of Llama-2: one function per op, forward and backward next to each other.

Float32 arrays in, new float32 arrays out. Letters as in `pyllm2`: T tokens in this call, P
positions so far (this call's included), C channels, F feed-forward width, NH query heads, NKV
key/value heads, hs head size, V vocabulary. A weight matrix is (out, in). In training, all
positions of all sequences are N = B · T rows; only attention knows where a sequence ends.

A backward takes the gradient of the loss with respect to each result of its forward (`dout`),
then the forward's arguments and kept results, and returns the gradient for each differentiable
argument, in that order. Fed float64, the ops of training compute in float64: that is how
gradients are checked. Rivals (`ops_numba`, `ops_c`) have the same names in the same order.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pyllm2.formats.gguf_blocks import TYPES

Array = NDArray[np.float32]
Int8 = NDArray[np.int8]
Bytes = NDArray[np.uint8]
Tokens = NDArray[np.integer]

EPS = 1e-5  # these two as in run.c; other models give their own
ROPE_BASE = 10000.0
ONE = np.float32(1)
IGNORED = -1  # a target without a loss


def embedding(tokens: Tokens, table: Array) -> Array:
    """Look up one row per token.

    tokens: (T,) integers in [0, V)   table: (V, C)   ->   (T, C)
    """
    return table[tokens]


def embedding_backward(dout: Array, tokens: Tokens, dtable: Array) -> Array:
    """Scatter: every position adds its dout to the row that it looked up.

        dtable[tokens[n]] += dout[n]

    dout: (N, C)   tokens: (N,)   dtable: (V, C)   ->   a new dtable
    A token that occurs twice adds twice. The argument is the gradient so far: the table is also
    the classifier, whose part has been computed by then.
    """
    dtable = dtable.copy()
    np.add.at(dtable, tokens, dout)
    return dtable


def rmsnorm(x: Array, weight: Array, eps: float = EPS) -> Array:
    """Scale each row of x to unit root-mean-square, then by weight (Zhang & Sennrich 2019).

        out = weight * (x / sqrt(mean(x²) + eps))

    x: (T, C)   weight: (C,)   ->   (T, C)
    The epsilon is inside the root, and one reciprocal of the root is taken per row, as in llama2.c.
    """
    mean_square = np.mean(x * x, axis=-1, keepdims=True)  # (T, 1)
    return weight * (ONE / np.sqrt(mean_square + np.float32(eps)) * x)


def rmsnorm_backward(dout: Array, x: Array, weight: Array) -> tuple[Array, Array]:
    """With r = 1/√(mean(x²) + 1e-5), n = x · r and g = dout · weight, the mean over C:

        dx = (g - n · mean(g · n)) · r        dweight = Σ n · dout

    dout, x: (N, C)   weight: (C,)   ->   dx: (N, C)   dweight: (C,)
    The step that people get wrong: r depends on x as well. That subtracts a projection: but for
    epsilon, dx has no part along x, since scaling x changes nothing.
    """
    r = ONE / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(EPS))  # (N, 1)
    n, g = x * r, dout * weight
    dx = (g - n * np.mean(g * n, axis=-1, keepdims=True)) * r
    return dx, np.sum(n * dout, axis=0)


def matmul(x: Array, w: Array, b: Array | None = None) -> Array:
    """Each row of x against each row of w: out[t, i] = Σ_j x[t, j] · w[i, j] + b[i].

    x: (T, C)   w: (OC, C)   b: (OC,), or None: no bias, as in llama2.c   ->   (T, OC)
    """
    return x @ w.T if b is None else x @ w.T + b


def _matmul_naive(x: Array, w: Array, b: Array | None = None) -> Array:
    """`matmul` as llama2.c adds it up: one running sum, ascending j, rounded after every step."""
    out = np.zeros((len(x), len(w)), dtype=np.float32)
    for j in range(x.shape[1]):
        out += x[:, j : j + 1] * w[:, j]
    return out if b is None else out + b


def matmul_backward(dout: Array, x: Array, w: Array) -> tuple[Array, Array]:
    """Each sum is over the index that its result does not have:

        dx[n, i] = Σ_o dout[n, o] · w[o, i]        dw[o, i] = Σ_n dout[n, o] · x[n, i]

    dout: (N, OC)   x: (N, C)   w: (OC, C)   ->   dx: (N, C)   dw: (OC, C)
    """
    return dout @ w, dout.T @ x


def rope_tables(
    S: int,
    hs: int,
    base: float = ROPE_BASE,
    divisors: Array | None = None,
    scale: float = 1.0,
) -> tuple[Array, Array]:
    """Cosine and sine of the rotation angle of pair i at position p (Su et al. 2021).

        angle[p, i] = p / base^(2i / hs)        run.c's base is 10000

    ->   cos: (S, hs/2)   sin: (S, hs/2)
    Models that stretch their context also divide each angle by divisors[i], (hs/2,), and multiply
    the tables by a scale (`rope_scaling`).
    Frequency and angle are rounded to float32 before the cosine, as in llama2.c: at position 500
    that rounding is visible in the tables. The functions themselves are evaluated in float64 and
    rounded, the closest that NumPy comes to the C library's float32 functions.
    """
    h_over_hs = np.arange(0, hs, 2, dtype=np.float32) / np.float32(hs)  # (hs/2,)
    power = (float(np.float32(base)) ** h_over_hs.astype(np.float64)).astype(np.float32)
    frequency = ONE / power if divisors is None else ONE / power / divisors
    angle = np.arange(S, dtype=np.float32)[:, None] * frequency  # (S, hs/2)
    angle64 = angle.astype(np.float64)
    factor = np.float32(scale)
    return factor * np.cos(angle64).astype(np.float32), factor * np.sin(angle64).astype(np.float32)


def rope(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate each adjacent pair (a, b) of every head by its position's angle.

        (a, b)  ->  (a·cos - b·sin, a·sin + b·cos)

    x: (T, N, hs), N heads of queries or of keys   cos, sin: (T, hs/2)   ->   (T, N, hs)
    The angle depends only on the place inside the head, so all heads share one table. Pairs are
    neighbours (0,1), (2,3), …; Hugging Face models pair i with i + hs/2 and permute the weights.
    """
    T, N, hs = x.shape
    a, b = x[..., 0::2], x[..., 1::2]  # (T, N, hs/2) each
    cos, sin = cos[:, None, :], sin[:, None, :]  # (T, 1, hs/2)
    pairs = np.stack([a * cos - b * sin, a * sin + b * cos], axis=-1)  # (T, N, hs/2, 2)
    return pairs.reshape(T, N, hs)


def rope_backward(dout: Array, cos: Array, sin: Array) -> Array:
    """Rotate by -angle: a rotation's matrix is orthogonal, so its transpose is its inverse.

        (da, db) = (dout_a · cos + dout_b · sin, dout_b · cos - dout_a · sin)

    dout: (N, heads, hs)   cos, sin: (N, hs/2)   ->   dx: (N, heads, hs)
    """
    N, heads, hs = dout.shape
    da, db = dout[..., 0::2], dout[..., 1::2]
    cos, sin = cos[:, None, :], sin[:, None, :]
    return np.stack([da * cos + db * sin, db * cos - da * sin], axis=-1).reshape(N, heads, hs)


def softmax(x: Array) -> Array:
    """Positive rows that sum to one: exp(x - max) / Σ exp(x - max).

    x: (..., C)   ->   (..., C)
    Subtracting the largest changes nothing but keeps exp in range; -inf gives exactly 0.
    """
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / np.sum(e, axis=-1, keepdims=True)


def attention(q: Array, k: Array, v: Array, window: int = 0) -> Array:
    """Causal scaled dot-product attention with grouped key/value heads (Ainslie et al. 2023).

        out[t] = softmax(q[t] · k[0..p] / sqrt(hs)) · v[0..p]        p = P - T + t

    q: (T, NH, hs)   k, v: (P, NKV, hs), the cache up to now   ->   (T, NH · hs)
    The T queries are the last T of the P positions; each sees itself and earlier positions.
    Query head h reads key/value head h // (NH / NKV).
    With a window (Mistral's), a query sees the last `window` positions only, itself included.
    """
    T, NH, hs = q.shape
    P, NKV, _ = k.shape
    distance = np.arange(P - T, P)[:, None] - np.arange(P)  # (T, P), of a key from the query
    hidden = (distance < 0) | (distance >= (window or P))
    out = np.empty((T, NH, hs), dtype=np.float32)
    for h in range(NH):
        g = h // (NH // NKV)
        scores = q[:, h] @ k[:, g].T / math.sqrt(hs)  # (T, P)
        scores[hidden] = -np.inf
        out[:, h] = softmax(scores) @ v[:, g]  # (T, hs)
    return out.reshape(T, NH * hs)


def attention_forward(
    q: Array, k: Array, v: Array, keep: Array | None = None
) -> tuple[Array, Array]:
    """`attention` on whole sequences, with dropout on the weights, which are kept.

        out[t] = Σ_s att[t, s] · keep[t, s] · v[s]        att[t] = softmax(q[t] · k[0..t] / √hs)

    q: (B, T, NH, hs)   k, v: (B, T, NKV, hs)   keep: (B, NH, T, T), see `dropout`
    ->   out: (B, T, NH · hs)   att: (B, NH, T, T), before dropout
    """
    B, T, NH, hs = q.shape
    q, k, v = _heads(q), _repeated(k, NH), _repeated(v, NH)  # (B, NH, T, hs) each
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(hs)
    scores[..., np.arange(T) > np.arange(T)[:, None]] = -np.inf
    att = softmax(scores)
    out = dropout(att, keep) @ v
    return out.swapaxes(1, 2).reshape(B, T, NH * hs), att


def attention_backward(
    dout: Array, q: Array, k: Array, v: Array, att: Array, keep: Array | None = None
) -> tuple[Array, Array, Array]:
    """Back through the weighted sum, dropout, the softmax, the scores:

        datt = (dout · vᵀ) ∘ keep                            dv = (att ∘ keep)ᵀ · dout
        dscores = att ∘ (datt - Σ_s att · datt)
        dq = dscores · k / √hs                               dk = dscoresᵀ · q / √hs

    dout: (B, T, NH · hs)   q: (B, T, NH, hs)   k, v: (B, T, NKV, hs)   att, keep: (B, NH, T, T)
    ->   dq, dk, dv, like q, k, v
    The step that people get wrong is the group: a key/value head is shared by NH / NKV query
    heads, and its gradient is the sum of theirs.
    """
    B, T, NH, hs = q.shape
    NKV = k.shape[2]
    q_, k_, v_ = _heads(q), _repeated(k, NH), _repeated(v, NH)
    dhead = _heads(dout.reshape(B, T, NH, hs))
    datt = dropout(dhead @ v_.swapaxes(-1, -2), keep)
    dscores = att * (datt - np.sum(att * datt, axis=-1, keepdims=True)) / math.sqrt(hs)
    dq = dscores @ k_
    dk = dscores.swapaxes(-1, -2) @ q_
    dv = dropout(att, keep).swapaxes(-1, -2) @ dhead

    def of_group(d: Array) -> Array:  # (B, NH, T, hs) -> (B, T, NKV, hs)
        return d.reshape(B, NKV, NH // NKV, T, hs).sum(axis=2).swapaxes(1, 2)

    return dq.swapaxes(1, 2), of_group(dk), of_group(dv)


def _heads(x: Array) -> Array:
    return x.swapaxes(1, 2)  # (B, T, N, hs) -> (B, N, T, hs)


def _repeated(x: Array, NH: int) -> Array:
    """Each key/value head once per query head that shares it: (B, NH, T, hs)."""
    return np.repeat(_heads(x), NH // x.shape[2], axis=1)


def residual(x: Array, y: Array) -> Array:
    """Add a block's result to the residual stream: x + y.

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


def swiglu_backward(dout: Array, gate: Array, up: Array) -> tuple[Array, Array]:
    """With σ = 1 / (1 + exp(-gate)):

        dgate = dout · up · σ · (1 + gate · (1 - σ))        dup = dout · gate · σ

    dout, gate, up: (N, F)   ->   dgate, dup: (N, F)
    The step that people get wrong is the bracket: silu is a product, gate · σ(gate), and both
    factors depend on gate.
    """
    with np.errstate(over="ignore"):
        sigmoid = ONE / (ONE + np.exp(-gate))
    return dout * up * sigmoid * (ONE + gate * (ONE - sigmoid)), dout * gate * sigmoid


def dropout(x: Array, keep: Array | None) -> Array:
    """Zero some elements and scale the others to keep the mean (Srivastava et al. 2014).

        out = x · keep        keep = 0 with probability p, else 1 / (1 - p)

    x, keep: the same shape; with keep None, x itself
    It is its own backward: dx = dropout(dout, keep).
    """
    return x if keep is None else x * keep


def crossentropy_forward(logits: Array, targets: Tokens) -> tuple[Array, Array]:
    """The loss of each row in nats: log Σ exp(logits) - logits[target].

    logits: (N, V)   targets: (N,) in [0, V), or -1: no loss, 0
    ->   losses: (N,)   probs: (N, V), kept for the backward
    Computed from the logits, not from the probability, so that no loss is infinite.
    """
    shifted = logits - logits.max(axis=-1, keepdims=True)
    e = np.exp(shifted)
    total = e.sum(axis=-1, keepdims=True)
    indices = np.where(targets == IGNORED, 0, targets)
    found = np.take_along_axis(shifted, indices[:, None], axis=-1)
    losses = (np.log(total) - found)[:, 0]
    return np.where(targets == IGNORED, 0, losses).astype(logits.dtype), e / total


def crossentropy_backward(dlosses: Array, probs: Array, targets: Tokens) -> Array:
    """dlogits[i] = (probs[i] - [i = target]) · dloss, and 0 where the target is -1.

    dlosses, targets: (N,)   probs: (N, V)   ->   (N, V)
    """
    dlogits = probs.copy()
    dlogits[np.arange(len(targets)), targets] -= ONE  # -1 hits the last column of a zeroed row
    return dlogits * np.where(targets == IGNORED, 0, dlosses)[:, None]


# ---- int8 in groups ("Q8_0") -----------------------------------------------------------------


def quantize(x: Array, group_size: int) -> tuple[Int8, Array]:
    """Round activations to int8, each group of a row by its own scale, at run time.

        scale = max|x| / 127        value = round(x / scale), half away from zero

    x: (T, C)   ->   values: (T, C) int8   scales: (T, C // group_size)
    A group of zeros has scale 0 and values 0. Elements after the last whole group become 0.
    (Weights, quantised once when a file is made, round half to even instead: `formats.llama2c_q8`.)
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
    rows; then, as in llama2.c, the last C mod group_size inputs are dropped and the scale is that
    of the group in which a product's first element lies. The file meant something else, but such
    files have always been run like this.
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


# ---- blocks of GGUF --------------------------------------------------------------------------


def dequantize_packed(w: Bytes, kind: int) -> Array:
    """The numbers of rows of blocks: the `dequantize_*` of that kind, block by block.

    w: (OC, bytes of a row) uint8   kind: id in `formats.gguf_blocks.TYPES`   ->   (OC, C)
    """
    block = TYPES[kind]
    out = np.empty((len(w), w.shape[1] // block.nbytes * block.numbers), np.float32)
    block.expand(w, out)
    return out


def matmul_packed(x: Array, w: Bytes, kind: int, b: Array | None = None) -> Array:
    """`matmul` with the numbers that blocks stand for. x stays float32: nothing of it is rounded.

    x: (T, C)   w: (OC, bytes of a row)   kind: see `dequantize_packed`   b: (OC,)   ->   (T, OC)
    Rivals multiply without a dequantised copy: the integers first, then one scale for a block.
    """
    return matmul(x, dequantize_packed(w, kind), b)
