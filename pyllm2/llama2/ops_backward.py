"""The specification of Llama-2's training: what its forward lacks, and every op backwards.

Forward is that of `ops.py` on N = B · T rows, all positions of all sequences under one another;
only attention has to know where a sequence ends. A backward takes the gradient of the loss with
respect to each result of its forward (`dout`), then what the forward was given or has kept, and
returns the gradient for each of its differentiable arguments, in that order.

Rivals (`ops_backward_numba`, `ops_c`) have the same names in the same order. Fed float64,
everything here computes in float64: that is how gradients are checked.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Tokens = NDArray[np.integer]

EPS = np.float32(1e-5)
ONE = np.float32(1)
IGNORED = -1  # a target that is not asked about


def embedding_backward(dout: Array, tokens: Tokens, dtable: Array) -> Array:
    """Scatter: every position adds its dout to the row that it had looked up.

        dtable[tokens[n]] += dout[n]

    dout: (N, C)   tokens: (N,)   dtable: (V, C)   ->   dtable, added to
    A token that occurs twice adds twice. The gradient so far comes in because the table is the
    classifier too, and that part is there already.
    """
    dtable = dtable.copy()
    np.add.at(dtable, tokens, dout)
    return dtable


def rmsnorm_backward(dout: Array, x: Array, weight: Array) -> tuple[Array, Array]:
    """With r = 1/√(mean(x²) + 1e-5), n = x · r and g = dout · weight, the mean over C:

        dx = (g - n · mean(g · n)) · r        dweight = Σ n · dout

    dout, x: (N, C)   weight: (C,)   ->   dx: (N, C)   dweight: (C,)
    The step that people get wrong: r depends on x as well. What that costs is a projection: dx
    has (but for epsilon) no part along x, since making x longer changes nothing.
    """
    r = ONE / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + EPS)  # (N, 1)
    n, g = x * r, dout * weight
    dx = (g - n * np.mean(g * n, axis=-1, keepdims=True)) * r
    return dx, np.sum(n * dout, axis=0)


def matmul_backward(dout: Array, x: Array, w: Array) -> tuple[Array, Array]:
    """Sums over whatever index the result does not have:

        dx[n, i] = Σ_o dout[n, o] · w[o, i]        dw[o, i] = Σ_n dout[n, o] · x[n, i]

    dout: (N, OC)   x: (N, C)   w: (OC, C)   ->   dx: (N, C)   dw: (OC, C)
    """
    return dout @ w, dout.T @ x


def rope_backward(dout: Array, cos: Array, sin: Array) -> Array:
    """A rotation back: its matrix is orthogonal, so the transpose is the turn by -angle.

        (da, db) = (dout_a · cos + dout_b · sin, dout_b · cos - dout_a · sin)

    dout: (N, heads, hs)   cos, sin: (N, hs/2)   ->   dx: (N, heads, hs)
    """
    N, heads, hs = dout.shape
    da, db = dout[..., 0::2], dout[..., 1::2]
    cos, sin = cos[:, None, :], sin[:, None, :]
    return np.stack([da * cos + db * sin, db * cos - da * sin], axis=-1).reshape(N, heads, hs)


def attention_forward(
    q: Array, k: Array, v: Array, keep: Array | None = None
) -> tuple[Array, Array]:
    """`ops.attention` on whole sequences, keeping the weights; with dropout on them.

        out[t] = Σ_s att[t, s] · keep[t, s] · v[s]        att[t] = softmax(q[t] · k[0..t] / √hs)

    q: (B, T, NH, hs)   k, v: (B, T, NKV, hs)   keep: (B, NH, T, T), see `dropout`; None keeps all
    ->   out: (B, T, NH · hs), heads abreast   att: (B, NH, T, T), before dropout
    """
    B, T, NH, hs = q.shape
    q, k, v = _heads(q), _repeated(k, NH), _repeated(v, NH)  # (B, NH, T, hs) each
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(hs)
    scores[..., np.arange(T) > np.arange(T)[:, None]] = -np.inf
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    att = e / e.sum(axis=-1, keepdims=True)
    out = dropout(att, keep) @ v
    return out.swapaxes(1, 2).reshape(B, T, NH * hs), att


def attention_backward(
    dout: Array, q: Array, k: Array, v: Array, att: Array, keep: Array | None = None
) -> tuple[Array, Array, Array]:
    """Backwards through the weighted sum, dropout, the softmax, the scores:

        datt = (dout · vᵀ) ∘ keep                            dv = (att ∘ keep)ᵀ · dout
        dscores = att ∘ (datt - Σ_s att · datt)
        dq = dscores · k / √hs                               dk = dscoresᵀ · q / √hs

    dout: (B, T, NH · hs)   q: (B, T, NH, hs)   k, v: (B, T, NKV, hs)   att, keep: (B, NH, T, T)
    ->   dq, dk, dv, like q, k, v
    The step that people get wrong is the group: NH / NKV query heads share one key and value
    head, and it gets the sum of what comes back through them.
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
    """Each key or value head as often as query heads share it: (B, NH, T, hs)."""
    return np.repeat(_heads(x), NH // x.shape[2], axis=1)


def swiglu_backward(dout: Array, gate: Array, up: Array) -> tuple[Array, Array]:
    """With σ = 1 / (1 + exp(-gate)):

        dgate = dout · up · σ · (1 + gate · (1 - σ))        dup = dout · gate · σ

    dout, gate, up: (N, F)   ->   dgate, dup: (N, F)
    The step that people get wrong is the bracket: silu is a product, gate · σ(gate), and both
    factors move.
    """
    with np.errstate(over="ignore"):
        sigmoid = ONE / (ONE + np.exp(-gate))
    return dout * up * sigmoid * (ONE + gate * (ONE - sigmoid)), dout * gate * sigmoid


def dropout(x: Array, keep: Array | None) -> Array:
    """Zero some elements and scale the others up to make good for them (Srivastava et al. 2014).

        out = x · keep        keep = 0 with probability p, else 1 / (1 - p)

    x, keep: the same shape; keep None: x itself
    It is its own backward: dx = dropout(dout, keep).
    """
    return x if keep is None else x * keep


def crossentropy_forward(logits: Array, targets: Tokens) -> tuple[Array, Array]:
    """How surprised the model was by what came, in nats: log Σ exp(logits) - logits[target].

    logits: (N, V)   targets: (N,) in [0, V), or -1: not asked, loss 0
    ->   losses: (N,)   probs: (N, V), kept for the backward
    From the logits, not from the probability, so that no surprise is infinite.
    """
    shifted = logits - logits.max(axis=-1, keepdims=True)
    e = np.exp(shifted)
    total = e.sum(axis=-1, keepdims=True)
    asked = np.where(targets == IGNORED, 0, targets)
    found = np.take_along_axis(shifted, asked[:, None], axis=-1)
    losses = (np.log(total) - found)[:, 0]
    return np.where(targets == IGNORED, 0, losses).astype(logits.dtype), e / total


def crossentropy_backward(dlosses: Array, probs: Array, targets: Tokens) -> Array:
    """dlogits[i] = (probs[i] - [i = target]) · dloss, and 0 where nothing was asked.

    dlosses, targets: (N,)   probs: (N, V)   ->   (N, V)
    """
    dlogits = probs.copy()
    dlogits[np.arange(len(targets)), targets] -= ONE  # -1 hits the last column of a zeroed row
    return dlogits * np.where(targets == IGNORED, 0, dlosses)[:, None]
