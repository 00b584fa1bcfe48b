"""The exact results of the strict build of csrc/llama2.

`Exact` evaluates the formulas of csrc/llama2/ops.c in float32, with every sum taken term by term in
ascending order; exp and log are the C library's.
"""

from __future__ import annotations

import ctypes

import numpy as np

from pyllm2.llama2 import ops

ONE = np.float32(1)
EPS = np.float32(1e-5)


def of_libm(name):
    function = getattr(ctypes.CDLL("libm.so.6"), name)
    function.argtypes, function.restype = [ctypes.c_float], ctypes.c_float
    return np.vectorize(function, otypes=[np.float32])


def running(terms, axis=-1):
    """The sum over one axis, from +0, rounded after every addition."""
    terms = np.moveaxis(terms, axis, 0)
    total = np.zeros(terms.shape[1:], np.float32)
    for term in terms:
        total = total + term
    return total


class Exact:
    """The ops of training, in the order of additions that csrc/llama2/ops.c documents."""

    def __init__(self):
        self.exp, self.log = of_libm("expf"), of_libm("logf")

    def embedding_backward(self, dout, tokens, dtable):
        dtable = dtable.copy()
        for token, row in zip(tokens, dout, strict=True):
            dtable[token] = dtable[token] + row
        return dtable

    def rmsnorm_backward(self, dout, x, weight):
        C = np.float32(x.shape[1])
        r = (ONE / np.sqrt(running(x * x) / C + EPS))[:, None]
        n, g = x * r, dout * weight
        along = (running(g * n) / C)[:, None]
        return (g - n * along) * r, running(n * dout, 0)

    def matmul_backward(self, dout, x, w):
        dx = running(dout[:, :, None] * w, 1)
        return dx, running(dout[:, :, None] * x[:, None, :], 0)

    def rope_backward(self, dout, cos, sin):
        return ops.rope_backward(dout, cos, sin)  # a sum of two terms has one order

    def attention_forward(self, q, k, v, keep=None):
        B, T, NH, hs = q.shape
        q, k, v = heads(q), heads(k, NH), heads(v, NH)
        scores = running(q[:, :, :, None] * k[:, :, None]) / np.sqrt(np.float32(hs))
        scores[..., np.triu(np.ones((T, T), bool), 1)] = -np.inf
        e = self.exp(scores - scores.max(axis=-1, keepdims=True))
        att = e / running(e)[..., None]
        kept = att if keep is None else att * keep
        out = running(kept[..., None] * v[:, :, None], 3)
        return out.swapaxes(1, 2).reshape(B, T, NH * hs), att

    def attention_backward(self, dout, q, k, v, att, keep=None):
        (B, T, NH, hs), NKV = q.shape, k.shape[2]
        q, k, v, dout = heads(q), heads(k, NH), heads(v, NH), heads(dout.reshape(B, T, NH, hs))
        keep = np.ones_like(att) if keep is None else keep
        datt = running(dout[:, :, :, None] * v[:, :, None]) * keep
        along = running(att * datt)[..., None]
        dscores = att * (datt - along) / np.sqrt(np.float32(hs))
        dq = running(dscores[..., None] * k[:, :, None], 3)

        def of_group(terms):  # (B, NH, T queries, T keys, hs): queries of all heads of a group
            return running(terms.reshape(B, NKV, -1, T, hs), 2).swapaxes(1, 2)

        dk = of_group(dscores[..., None] * q[:, :, :, None])
        dv = of_group((att * keep)[..., None] * dout[:, :, :, None])
        return dq.swapaxes(1, 2), dk, dv

    def swiglu_backward(self, dout, gate, up):
        sigmoid = ONE / (ONE + self.exp(-gate))
        return dout * up * sigmoid * (ONE + gate * (ONE - sigmoid)), dout * gate * sigmoid

    def dropout(self, x, keep):
        return x if keep is None else x * keep

    def crossentropy_forward(self, logits, targets):
        shifted = logits - logits.max(axis=-1, keepdims=True)
        e = self.exp(shifted)
        total = running(e)
        losses = self.log(total) - shifted[np.arange(len(targets)), targets]
        return np.where(targets == -1, np.float32(0), losses), e / total[:, None]

    def crossentropy_backward(self, dlosses, probs, targets):
        hit = (np.arange(probs.shape[1]) == targets[:, None]).astype(np.float32)
        return (probs - hit) * np.where(targets == -1, np.float32(0), dlosses)[:, None]


def heads(x, NH=None):
    """(B, T, heads, hs) -> (B, heads, T, hs); with NH, each head repeated for its query heads."""
    x = x.swapaxes(1, 2)
    return x if NH is None else np.repeat(x, NH // x.shape[1], axis=1)
