"""What the strict build of csrc/llama2_backward.c has to give, to the bit, and any build nearly.

`Exact` has the ops in float32 with every sum taken term by term in ascending order, from the
formulas of its comments; exp and log are the C library's. `largest_error` has for every op that is
made of sums of products only a bound that holds whatever the order.
"""

from __future__ import annotations

import ctypes
import math

import numpy as np

from pyllm2.llama2 import ops_backward
from pyllm2.testing.bounds import EXP_ULP, gamma

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
    """The ops of `ops_backward`, in the order of additions that csrc/llama2_backward.c promises."""

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
        return ops_backward.rope_backward(dout, cos, sin)  # a sum of two: there is but one order

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
    """(B, T, heads, hs) -> (B, heads, T, hs), each as often as query heads share it."""
    x = x.swapaxes(1, 2)
    return x if NH is None else np.repeat(x, NH // x.shape[1], axis=1)


# ---- bounds -----------------------------------------------------------------------------------


def largest_error(name, *arguments):
    """How far each result may be from the formula evaluated exactly: γ_n · Σ|terms|.

    Each function below sums the absolute values of the terms that a result is made of, and says
    how many roundings a term passes at most, in whatever order it is added up. For inputs of
    ordinary size: what underflows is not counted.
    """
    absolute = [
        a if a is None or a.dtype.kind == "i" else np.abs(a, dtype=np.float64) for a in arguments
    ]
    return [gamma(roundings) * total for total, roundings in _ROUNDINGS[name](*absolute)]


def _embedding(dout, tokens, dtable):
    return [(ops_backward.embedding_backward(dout, tokens, dtable), len(tokens))]


def _rmsnorm(dout, x, weight):
    """r: (C + 2) / 2 of the mean below the root, then root and reciprocal: C/2 + 3.

    n: one more. g: one. g·r: C/2 + 6 with the subtraction. n · mean(g·n) · r: three times r, two
    products for n, C + 3 for g, product, sum and division, three more: 5C/2 + 18 is enough.
    """
    C = x.shape[1]
    r = 1 / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + float(EPS))
    n, g = x * r, dout * weight
    dx = (g + n * np.mean(g * n, axis=1, keepdims=True)) * r
    return [(dx, 2.5 * C + 18), (np.sum(n * dout, axis=0), C / 2 + 5 + len(x))]


def _matmul(dout, x, w):
    return [(dout @ w, len(w)), (dout.T @ x, len(x))]


def _rope(dout, cos, sin):
    """|a·cos| + |b·sin|: turned by an angle of which both are positive, without the minus."""
    a, b = dout[..., 0::2], dout[..., 1::2]
    c, s = np.abs(cos)[:, None], np.abs(sin)[:, None]
    return [(np.stack([a * c + b * s, b * c + a * s], -1).reshape(dout.shape), 2)]


def _attention(dout, q, k, v, att, keep=None):
    """dscores: hs of datt, one of keep, T + 1 of the sum, then minus, product, root, division.

    dq and dk: a product and T (or T a head of the group) additions on top. dv: keep, and those.
    """
    (B, T, NH, hs), NKV = q.shape, k.shape[2]
    keep = np.ones_like(att) if keep is None else keep
    dhead = heads(dout.reshape(q.shape))
    datt = (dhead @ heads(v, NH).swapaxes(-1, -2)) * keep
    dscores = att * (datt + np.sum(att * datt, -1, keepdims=True)) / math.sqrt(hs)

    def of_group(d):
        return d.reshape(B, NKV, NH // NKV, T, hs).sum(axis=2).swapaxes(1, 2)

    dq = (dscores @ heads(k, NH)).swapaxes(1, 2)
    dk = of_group(dscores.swapaxes(-1, -2) @ heads(q))
    dv = of_group((att * keep).swapaxes(-1, -2) @ dhead)
    before, group = hs + T + 6, T * NH // NKV
    return [(dq, before + T + 1), (dk, before + group + 1), (dv, group + 2)]


def _swiglu(dout, gate, up):
    """σ: exp, a sum, a reciprocal; gate is given by its absolute value, so σ by its largest, 1.

    1 - σ has the error of σ against 1. Products: three outside, one and two sums inside.
    """
    relative = 2 * EXP_ULP + 2
    return [(dout * up * (1 + gate), 2 * relative + 6), (dout * gate, relative + 2)]


def _crossentropy(dlosses, probs, targets):
    return [((probs + 1) * dlosses[:, None], 2)]


_ROUNDINGS = {
    "embedding_backward": _embedding,
    "rmsnorm_backward": _rmsnorm,
    "matmul_backward": _matmul,
    "rope_backward": _rope,
    "attention_backward": _attention,
    "swiglu_backward": _swiglu,
    "dropout": lambda x, keep: [(x * keep, 1)],
    "crossentropy_backward": _crossentropy,
}
