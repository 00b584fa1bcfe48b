"""The ops of `ops_backward.py` in Numba: same names, same order, loops explicit.

Builds as in `ops_numba`, which takes them over into its `Ops`. The order of every strict sum is
that of csrc/llama2_backward.c: ascending from +0, what is shared by a group of query heads one
head after the other.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

ZERO = np.float32(0)
ONE = np.float32(1)
EPS = np.float32(1e-5)
INFINITY = np.float32(np.inf)


def embedding_backward(dout, tokens, dtable):
    (N, C), dtable = dout.shape, dtable.copy()
    for n in range(N):
        for c in range(C):
            dtable[tokens[n], c] += dout[n, c]
    return dtable


def rmsnorm_backward(dout, x, weight):
    N, C = x.shape
    dx, dweight = np.empty((N, C), np.float32), np.zeros(C, np.float32)
    reciprocals = np.empty(N, np.float32)
    for n in prange(N):
        squares, along = ZERO, ZERO
        for c in range(C):
            squares += x[n, c] * x[n, c]
        r = ONE / np.float32(math.sqrt(squares / np.float32(C) + EPS))
        for c in range(C):
            along += dout[n, c] * weight[c] * (x[n, c] * r)
        along /= np.float32(C)
        for c in range(C):
            dx[n, c] = (dout[n, c] * weight[c] - x[n, c] * r * along) * r
        reciprocals[n] = r
    for n in range(N):  # not shared out: all rows add to the same C numbers
        for c in range(C):
            dweight[c] += x[n, c] * reciprocals[n] * dout[n, c]
    return dx, dweight


def matmul_backward(dout, x, w):
    (N, C), OC = x.shape, len(w)
    dx, dw = np.zeros((N, C), np.float32), np.zeros((OC, C), np.float32)
    for n in prange(N):
        for o in range(OC):
            for c in range(C):
                dx[n, c] += dout[n, o] * w[o, c]
    for o in prange(OC):
        for n in range(N):
            for c in range(C):
                dw[o, c] += dout[n, o] * x[n, c]
    return dx, dw


def rope_backward(dout, cos, sin):
    N, heads, hs = dout.shape
    dx = np.empty((N, heads, hs), np.float32)
    for n in prange(N):
        for h in range(heads):
            for i in range(hs // 2):
                a, b = dout[n, h, 2 * i], dout[n, h, 2 * i + 1]
                dx[n, h, 2 * i] = a * cos[n, i] + b * sin[n, i]
                dx[n, h, 2 * i + 1] = b * cos[n, i] - a * sin[n, i]
    return dx


def attention_forward(q, k, v, keep=None):
    (B, T, NH, hs), NKV = q.shape, k.shape[2]
    root = np.float32(math.sqrt(np.float32(hs)))
    out, att = np.zeros((B, T, NH * hs), np.float32), np.zeros((B, NH, T, T), np.float32)
    for head in prange(B * NH):
        b, h = head // NH, head % NH
        g = h // (NH // NKV)
        for t in range(T):
            a, o = att[b, h, t], out[b, t, h * hs : (h + 1) * hs]
            # pass 1: scores, and the largest of them
            largest = -INFINITY
            for s in range(t + 1):
                score = ZERO
                for i in range(hs):
                    score += q[b, t, h, i] * k[b, s, g, i]
                a[s] = score / root
                if a[s] > largest:
                    largest = a[s]
            # pass 2: softmax
            total = ZERO
            for s in range(t + 1):
                a[s] = math.exp(a[s] - largest)
                total += a[s]
            for s in range(t + 1):
                a[s] /= total
            # pass 3: the weighted sum of the values, oldest position first
            for s in range(t + 1):
                weight = a[s] if keep is None else a[s] * keep[b, h, t, s]
                for i in range(hs):
                    o[i] += weight * v[b, s, g, i]
    return out, att


def attention_backward(dout, q, k, v, att, keep=None):
    (B, T, NH, hs), NKV = q.shape, k.shape[2]
    group, root = NH // NKV, np.float32(math.sqrt(np.float32(hs)))
    dq = np.zeros((B, T, NH, hs), np.float32)
    dk, dv = np.zeros((B, T, NKV, hs), np.float32), np.zeros((B, T, NKV, hs), np.float32)
    for pair in prange(B * NKV):
        b, g = pair // NKV, pair % NKV
        datt = np.empty(T, np.float32)
        for h in range(g * group, (g + 1) * group):
            for t in range(T):
                a, do = att[b, h, t], dout[b, t, h * hs : (h + 1) * hs]
                # back through pass 3
                along = ZERO
                for s in range(t + 1):
                    kept = ONE if keep is None else keep[b, h, t, s]
                    weight, dweight = a[s] * kept, ZERO
                    for i in range(hs):
                        dweight += do[i] * v[b, s, g, i]
                    for i in range(hs):
                        dv[b, s, g, i] += weight * do[i]
                    datt[s] = dweight * kept
                    along += a[s] * datt[s]
                # passes 2 and 1
                for s in range(t + 1):
                    dscore = a[s] * (datt[s] - along) / root
                    for i in range(hs):
                        dq[b, t, h, i] += dscore * k[b, s, g, i]
                    for i in range(hs):
                        dk[b, s, g, i] += dscore * q[b, t, h, i]
    return dq, dk, dv


def swiglu_backward(dout, gate, up):
    N, F = gate.shape
    dgate, dup = np.empty((N, F), np.float32), np.empty((N, F), np.float32)
    for n in prange(N):
        for f in range(F):
            g, d = gate[n, f], dout[n, f]
            sigmoid = ONE / (ONE + np.float32(math.exp(-g)))
            dgate[n, f] = d * up[n, f] * sigmoid * (ONE + g * (ONE - sigmoid))
            dup[n, f] = d * g * sigmoid
    return dgate, dup


def dropout(x, keep):
    if keep is None:
        return x
    out = np.empty(x.shape, np.float32)
    flat, x, keep = out.ravel(), x.ravel(), keep.ravel()
    for i in range(x.size):
        flat[i] = x[i] * keep[i]
    return out


def crossentropy_forward(logits, targets):
    N, V = logits.shape
    losses, probs = np.zeros(N, np.float32), np.empty((N, V), np.float32)
    for n in prange(N):
        largest = logits[n, 0]
        for i in range(1, V):
            if logits[n, i] > largest:
                largest = logits[n, i]
        total = ZERO
        for i in range(V):
            probs[n, i] = math.exp(logits[n, i] - largest)
            total += probs[n, i]
        for i in range(V):
            probs[n, i] /= total
        if targets[n] >= 0:
            losses[n] = np.float32(math.log(total)) - (logits[n, targets[n]] - largest)
    return losses, probs


def crossentropy_backward(dlosses, probs, targets):
    N, V = probs.shape
    dlogits = np.empty((N, V), np.float32)
    for n in prange(N):
        dloss = ZERO if targets[n] < 0 else dlosses[n]
        for i in range(V):
            dlogits[n, i] = (probs[n, i] - (ONE if i == targets[n] else ZERO)) * dloss
    return dlogits


OPS = (
    embedding_backward, rmsnorm_backward, matmul_backward, rope_backward,
    attention_forward, attention_backward, swiglu_backward, dropout,
    crossentropy_forward, crossentropy_backward,
)  # fmt: skip
