"""The specification of GPT-2: one forward and one backward per op, on float32 arrays.

Letters as in `pyllm2`: B batch, T time, C channels, NH heads, hs head size, V vocabulary, Vp V
padded to a round number, OC output channels. A weight matrix is (out, in).

A backward takes the gradient of the loss with respect to each result of its forward (`dout`),
then the forward's arguments and kept results, and returns the gradient for each differentiable
argument, in that order. Fed float64, the ops compute in float64: that is how gradients are
checked. Rivals (`ops_numba`, `ops_c`) have the same names in the same order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Tokens = NDArray[np.integer]

EPS = np.float32(1e-5)
ONE = np.float32(1)
FLOOR = np.float32(-10000)  # where llm.c starts its search for the maximum
GELU_CUBIC = np.float32(0.044715)
GELU_SCALE = np.sqrt(np.float32(2 / np.pi))  # one ulp below the float32 nearest to √(2/π)


def encoder_forward(tokens: Tokens, wte: Array, wpe: Array) -> Array:
    """The row of each token plus the row of its position.

        out[b, t] = wte[tokens[b, t]] + wpe[t]

    tokens: (B, T) in [0, V)   wte: (Vp, C)   wpe: (at least T, C)   ->   (B, T, C)
    """
    _, T = tokens.shape
    return wte[tokens] + wpe[:T]


def encoder_backward(dout: Array, tokens: Tokens, dwte: Array, dwpe: Array) -> tuple[Array, Array]:
    """Scatter: every position adds its dout to the rows that it looked up.

        dwte[tokens[b, t]] += dout[b, t]        dwpe[t] += dout[b, t]

    dout: (B, T, C)   tokens: (B, T)   dwte: (Vp, C)   dwpe: (S, C)   ->   new dwte, dwpe
    A token that occurs twice adds twice: `dwte[tokens] += dout` would keep only the last. The
    arguments are the gradients so far: wte is also the classifier, whose part has been computed
    by then.
    """
    _, T, _ = dout.shape
    dwte, dwpe = dwte.copy(), dwpe.copy()
    np.add.at(dwte, tokens, dout)
    dwpe[:T] += dout.sum(axis=0)
    return dwte, dwpe


def layernorm_forward(x: Array, w: Array, b: Array) -> tuple[Array, Array, Array]:
    """Normalise each position to mean 0 and variance 1, then scale and shift (Ba et al. 2016).

        out = (x - mean) · rstd · w + b        rstd = 1 / √(var + 1e-5)

    x: (B, T, C)   w, b: (C,)   ->   out: (B, T, C)   mean, rstd: (B, T), kept for the backward
    The variance is that of the population (divide by C, not C - 1), in a second pass.
    """
    mean = np.mean(x, axis=-1)  # (B, T)
    centred = x - mean[..., None]
    rstd = ONE / np.sqrt(np.mean(centred * centred, axis=-1) + EPS)  # (B, T)
    return rstd[..., None] * centred * w + b, mean, rstd


def layernorm_backward(
    dout: Array, x: Array, w: Array, mean: Array, rstd: Array
) -> tuple[Array, Array, Array]:
    """With n = (x - mean) · rstd and g = dout · w, all means over C:

        dx = (g - mean(g) - n · mean(g · n)) · rstd        dw = Σ n · dout        db = Σ dout

    dout, x: (B, T, C)   w: (C,)   mean, rstd: (B, T)   ->   dx: (B, T, C)   dw, db: (C,)
    The step that people get wrong: out depends on x directly, through the mean and through rstd.
    Each of the last two subtracts a projection: dx has no part along 1 and none along n.
    """
    n = (x - mean[..., None]) * rstd[..., None]
    g = dout * w
    along_one = np.mean(g, axis=-1, keepdims=True)
    along_n = np.mean(g * n, axis=-1, keepdims=True)
    dx = (g - along_one - n * along_n) * rstd[..., None]
    return dx, np.sum(n * dout, axis=(0, 1)), np.sum(dout, axis=(0, 1))


def matmul_forward(x: Array, w: Array, b: Array | None = None) -> Array:
    """A linear layer: out[b, t, o] = Σ_i x[b, t, i] · w[o, i] + b[o].

    x: (B, T, C)   w: (OC, C)   b: (OC,), or none   ->   (B, T, OC)
    """
    B, T, C = x.shape
    out = x.reshape(B * T, C) @ w.T  # one large product instead of B small ones
    if b is not None:
        out += b
    return out.reshape(B, T, -1)


def matmul_backward(dout: Array, x: Array, w: Array) -> tuple[Array, Array, Array]:
    """Each sum is over the index that its result does not have:

        dx[n, i] = Σ_o dout[n, o] · w[o, i]    dw[o, i] = Σ_n dout[n, o] · x[n, i]    db = Σ_n dout

    dout: (B, T, OC)   x: (B, T, C)   w: (OC, C)   ->   dx: (B, T, C)   dw: (OC, C)   db: (OC,)
    The step that people get wrong is the transpose: shapes reveal it, unless C = OC.
    """
    B, T, C = x.shape
    rows, drows = x.reshape(B * T, C), dout.reshape(B * T, -1)
    return (drows @ w).reshape(B, T, C), drows.T @ rows, drows.sum(axis=0)


def attention_forward(qkv: Array, NH: int, first: int = 0) -> tuple[Array, Array]:
    """Causal scaled dot-product attention, head by head (Vaswani et al. 2017).

        out[t] = Σ_s att[t, s] · v[s]        att[t] = softmax(q[t] · k[0..t] / √hs)

    qkv: (B, P, 3C); a row holds the queries of all heads, then the keys, then the values
    ->   out: (B, T, C)   att: (B, NH, T, P), zero for s after t
    The queries are those from position `first` on, T = P - first: in training all of them, with a
    cache the new ones. As in llm.c the maximum starts at -10000, so a row with smaller scores only
    gives zeros.
    """
    B, P, C3 = qkv.shape
    q, k, v = _heads(qkv, NH)  # (B, NH, P, hs) each
    scores = q[:, :, first:] @ k.swapaxes(-1, -2) * _attention_scale(C3 // 3 // NH)
    future = np.arange(P) > np.arange(first, P)[:, None]  # (T, P)
    scores[..., future] = -np.inf
    e = np.exp(scores - np.maximum(scores.max(axis=-1, keepdims=True), FLOOR))
    total = e.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        att = e * np.where(total > 0, ONE / total, 0)
    out = (att @ v).swapaxes(1, 2)  # (B, T, NH, hs)
    return out.reshape(B, P - first, C3 // 3), att


def attention_backward(dout: Array, qkv: Array, att: Array) -> Array:
    """Back through the weighted sum, the softmax, the scores:

        datt = dout · vᵀ                                     dv = attᵀ · dout
        dscores = att ∘ (datt - Σ_s att · datt)
        dq = dscores · k / √hs                               dk = dscoresᵀ · q / √hs

    dout: (B, T, C)   qkv: (B, T, 3C)   att: (B, NH, T, T)   ->   dqkv: (B, T, 3C)
    The step that people get wrong is the softmax: every weight of a row depends on every score of
    that row. Its Jacobian is diag(a) - a·aᵀ; applied to datt it gives the line above in O(T²),
    where llm.c multiplies the matrix in O(T³). No mask is needed: att is 0 where it would be.
    """
    B, T, C = dout.shape
    NH = att.shape[1]
    q, k, v = _heads(qkv, NH)
    dhead = dout.reshape(B, T, NH, C // NH).swapaxes(1, 2)  # (B, NH, T, hs)
    datt = dhead @ v.swapaxes(-1, -2)  # (B, NH, T, T)
    dscores = att * (datt - np.sum(att * datt, axis=-1, keepdims=True))
    dscores = dscores * _attention_scale(C // NH)
    dq, dk, dv = dscores @ k, dscores.swapaxes(-1, -2) @ q, att.swapaxes(-1, -2) @ dhead
    return np.stack([dq, dk, dv]).transpose(1, 3, 0, 2, 4).reshape(B, T, 3 * C)


def _heads(qkv: Array, NH: int) -> tuple[Array, Array, Array]:
    """Views of queries, keys and values, (B, NH, T, hs) each."""
    B, T, C3 = qkv.shape
    q, k, v = qkv.reshape(B, T, 3, NH, C3 // 3 // NH).transpose(2, 0, 3, 1, 4)
    return q, k, v


def _attention_scale(hs: int) -> np.float32:
    return np.float32(ONE / np.sqrt(np.float32(hs)))


def gelu_forward(x: Array) -> Array:
    """The Gaussian error linear unit in its tanh form (Hendrycks & Gimpel 2016).

        out = x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))

    x: any shape   ->   the same
    """
    return np.float32(0.5) * x * (ONE + np.tanh(GELU_SCALE * (x + GELU_CUBIC * x * x * x)))


def gelu_backward(dout: Array, x: Array) -> Array:
    """With a = √(2/π) · (x + 0.044715 x³), by the product rule:

        dx = dout · (½ (1 + tanh a) + x/2 · sech²a · √(2/π) · (1 + 3 · 0.044715 x²))

    dout, x: any shape   ->   the same
    The step that people get wrong is the last factor, the derivative of a. Where |a| > 89 cosh
    overflows, and 1/∞ = 0 is the right limit.
    """
    a = GELU_SCALE * (x + GELU_CUBIC * x * x * x)
    with np.errstate(over="ignore"):
        cosh = np.cosh(a)
        sech2 = ONE / (cosh * cosh)
    inner = GELU_SCALE * (ONE + np.float32(3) * (GELU_CUBIC * x * x))
    half = np.float32(0.5)
    return dout * (half * (ONE + np.tanh(a)) + x * half * sech2 * inner)


def residual_forward(a: Array, b: Array) -> Array:
    """Add a block's result to the residual stream: a + b.

    a, b: (B, T, C)   ->   (B, T, C)
    """
    return a + b


def residual_backward(dout: Array) -> tuple[Array, Array]:
    """Both terms of a sum get its gradient unchanged.

    dout: (B, T, C)   ->   da, db: (B, T, C)
    """
    return dout.copy(), dout.copy()


def softmax_forward(logits: Array, V: int) -> Array:
    """Positive rows that sum to one over the first V of Vp entries; the padding becomes 0.

        probs = exp(logits - max) / Σ exp(logits - max)

    logits: (B, T, Vp)   ->   (B, T, Vp)
    As in llm.c the maximum starts at -10000: a row with smaller logits only becomes NaN.
    """
    probs = np.zeros_like(logits)
    largest = np.maximum(logits[..., :V].max(axis=-1, keepdims=True), FLOOR)
    e = np.exp(logits[..., :V] - largest)
    with np.errstate(invalid="ignore"):
        probs[..., :V] = e / e.sum(axis=-1, keepdims=True)
    return probs


def crossentropy_forward(probs: Array, targets: Tokens) -> Array:
    """The loss at each position in nats: -log(probs[target]).

    probs: (B, T, Vp)   targets: (B, T) in [0, V)   ->   (B, T)
    A probability that underflowed to 0 gives infinity, as in llm.c.
    """
    with np.errstate(divide="ignore"):
        return -np.log(np.take_along_axis(probs, targets[..., None], axis=-1)[..., 0])


def crossentropy_softmax_backward(dlosses: Array, probs: Array, targets: Tokens, V: int) -> Array:
    """Back through loss and softmax at once, where almost everything cancels:

        dlogits[i] = (probs[i] - [i = target]) · dloss

    dlosses, targets: (B, T)   probs: (B, T, Vp)   ->   (B, T, Vp), padding 0
    Separately, 1/probs would be multiplied by probs: 0/0 where a probability underflowed.
    """
    dlogits = np.zeros_like(probs)
    dlogits[..., :V] = probs[..., :V]
    b, t = np.indices(targets.shape)
    dlogits[b, t, targets] -= ONE
    return dlogits * dlosses[..., None]
