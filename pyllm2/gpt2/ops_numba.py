"""The ops of `ops.py` in Numba: the same names in the same order, with explicit loops.

`Ops("fast")` lets LLVM reorder sums and fuse multiply-add, and shares rows, outputs or heads
between threads. `Ops("strict")` compiles the same loops without that: every sum in ascending order
from +0 (of a linear layer from the bias), each step rounded to float32, float32 functions of libm,
one thread. That is the order of llm.c's CPU trainer, and the two agree to the last bit.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numba import prange

from pyllm2.compiling import numba_build

ZERO = np.float32(0)
ONE = np.float32(1)
HALF = np.float32(0.5)
EPS = np.float32(1e-5)
FLOOR = np.float32(-10000)  # where llm.c begins its search for the largest score
GELU_CUBIC = np.float32(0.044715)
GELU_CUBIC_3 = np.float32(3) * GELU_CUBIC
GELU_SCALE = np.sqrt(np.float32(2 / np.pi))  # one ulp below the float32 nearest to √(2/π)
INFINITY = np.float32(np.inf)


def encoder_forward(tokens, wte, wpe):
    (B, T), C = tokens.shape, wte.shape[1]
    out = np.empty((B, T, C), np.float32)
    for b in range(B):
        for t in range(T):
            for c in range(C):
                out[b, t, c] = wte[tokens[b, t], c] + wpe[t, c]
    return out


def encoder_backward(dout, tokens, dwte, dwpe):
    B, T, C = dout.shape
    dwte, dwpe = dwte.copy(), dwpe.copy()
    for b in range(B):
        for t in range(T):
            for c in range(C):
                dwte[tokens[b, t], c] += dout[b, t, c]
                dwpe[t, c] += dout[b, t, c]
    return dwte, dwpe


def layernorm_forward(x, w, b):
    B, T, C = x.shape
    x, out = x.reshape(B * T, C), np.empty((B * T, C), np.float32)
    mean, rstd = np.empty(B * T, np.float32), np.empty(B * T, np.float32)
    for n in prange(B * T):
        total = ZERO
        for c in range(C):
            total += x[n, c]
        m = total / np.float32(C)
        squares = ZERO
        for c in range(C):
            squares += (x[n, c] - m) * (x[n, c] - m)
        s = ONE / np.float32(math.sqrt(squares / np.float32(C) + EPS))
        for c in range(C):
            out[n, c] = s * (x[n, c] - m) * w[c] + b[c]
        mean[n], rstd[n] = m, s
    return out.reshape(B, T, C), mean.reshape(B, T), rstd.reshape(B, T)


def layernorm_backward(dout, x, w, mean, rstd):
    B, T, C = x.shape
    dout, x, mean, rstd = dout.reshape(B * T, C), x.reshape(B * T, C), mean.ravel(), rstd.ravel()
    dx = np.empty((B * T, C), np.float32)
    dw, db = np.zeros(C, np.float32), np.zeros(C, np.float32)
    for n in prange(B * T):
        m, s = mean[n], rstd[n]
        along_one, along_n = ZERO, ZERO
        for c in range(C):
            g = w[c] * dout[n, c]
            along_one += g
            along_n += g * ((x[n, c] - m) * s)
        along_one /= np.float32(C)
        along_n /= np.float32(C)
        for c in range(C):
            norm = (x[n, c] - m) * s
            dx[n, c] = (w[c] * dout[n, c] - along_one - norm * along_n) * s
    for n in range(B * T):  # serial: every row adds to the same C numbers
        for c in range(C):
            dw[c] += (x[n, c] - mean[n]) * rstd[n] * dout[n, c]
            db[c] += dout[n, c]
    return dx.reshape(B, T, C), dw, db


def matmul_forward(x, w, b=None):
    (B, T, C), OC = x.shape, len(w)
    x, out = x.reshape(B * T, C), np.empty((B * T, OC), np.float32)
    for o in prange(OC):
        for n in range(B * T):
            total = ZERO if b is None else b[o]
            for c in range(C):
                total += x[n, c] * w[o, c]
            out[n, o] = total
    return out.reshape(B, T, OC)


def matmul_backward(dout, x, w):
    (B, T, C), OC = x.shape, len(w)
    dout, x = dout.reshape(B * T, OC), x.reshape(B * T, C)
    dx, dw = np.zeros((B * T, C), np.float32), np.zeros((OC, C), np.float32)
    db = np.zeros(OC, np.float32)
    for n in prange(B * T):
        for o in range(OC):
            for c in range(C):
                dx[n, c] += w[o, c] * dout[n, o]
    for o in prange(OC):
        for n in range(B * T):
            db[o] += dout[n, o]
            for c in range(C):
                dw[o, c] += x[n, c] * dout[n, o]
    return dx.reshape(B, T, C), dw, db


def attention_forward(qkv, NH, first=0):
    B, P, C = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    T, hs = P - first, C // NH
    scale = ONE / np.float32(math.sqrt(np.float32(hs)))
    out, att = np.zeros((B, T, C), np.float32), np.zeros((B, NH, T, P), np.float32)
    for head in prange(B * NH):
        b, h = head // NH, head % NH
        q0, k0, v0 = h * hs, C + h * hs, 2 * C + h * hs
        for t in range(T):
            q, a, o = qkv[b, first + t, q0 : q0 + hs], att[b, h, t], out[b, t, q0 : q0 + hs]
            # pass 1: scores, and the largest of them
            largest = FLOOR
            for s in range(first + t + 1):
                k, score = qkv[b, s, k0 : k0 + hs], ZERO
                for i in range(hs):
                    score += q[i] * k[i]
                a[s] = score * scale
                if a[s] > largest:
                    largest = a[s]
            # pass 2: softmax
            total = ZERO
            for s in range(first + t + 1):
                a[s] = math.exp(a[s] - largest)
                total += a[s]
            inverse = ZERO if total == ZERO else ONE / total
            for s in range(first + t + 1):
                a[s] *= inverse
            # pass 3: the weighted sum of the values, oldest position first
            for s in range(first + t + 1):
                v = qkv[b, s, v0 : v0 + hs]
                for i in range(hs):
                    o[i] += a[s] * v[i]
    return out, att


def attention_backward(dout, qkv, att, jacobian):
    """jacobian: multiply by the whole Jacobian of the softmax, O(T³), as llm.c does; else O(T²)."""
    (B, T, C), NH = dout.shape, att.shape[1]
    hs = C // NH
    scale = ONE / np.float32(math.sqrt(np.float32(hs)))
    dqkv = np.zeros((B, T, 3 * C), np.float32)
    for head in prange(B * NH):
        b, h = head // NH, head % NH
        q0, k0, v0 = h * hs, C + h * hs, 2 * C + h * hs
        datt, dscores = np.empty(T, np.float32), np.empty(T, np.float32)
        for t in range(T):
            a, do = att[b, h, t], dout[b, t, q0 : q0 + hs]
            # back through pass 3
            for s in range(t + 1):
                v, dv = qkv[b, s, v0 : v0 + hs], dqkv[b, s, v0 : v0 + hs]
                total = ZERO
                for i in range(hs):
                    total += v[i] * do[i]
                    dv[i] += a[s] * do[i]
                datt[s] = total
            # pass 2
            if jacobian:
                dscores[: t + 1] = ZERO
                for s in range(t + 1):
                    for r in range(t + 1):
                        dscores[r] += a[s] * ((ONE if r == s else ZERO) - a[r]) * datt[s]
            else:
                total = ZERO
                for s in range(t + 1):
                    total += a[s] * datt[s]
                for s in range(t + 1):
                    dscores[s] = a[s] * (datt[s] - total)
            # pass 1
            q, dq = qkv[b, t, q0 : q0 + hs], dqkv[b, t, q0 : q0 + hs]
            for s in range(t + 1):
                k, dk = qkv[b, s, k0 : k0 + hs], dqkv[b, s, k0 : k0 + hs]
                for i in range(hs):
                    dq[i] += k[i] * dscores[s] * scale
                    dk[i] += q[i] * dscores[s] * scale
    return dqkv


def gelu_forward(x):
    out = np.empty(x.shape, np.float32)
    flat, x = out.ravel(), x.ravel()
    for i in prange(x.size):
        cube = GELU_CUBIC * x[i] * x[i] * x[i]
        flat[i] = HALF * x[i] * (ONE + np.float32(math.tanh(GELU_SCALE * (x[i] + cube))))
    return out


def gelu_backward(dout, x):
    dx = np.empty(x.shape, np.float32)
    flat, dout, x = dx.ravel(), dout.ravel(), x.ravel()
    for i in prange(x.size):
        cube = GELU_CUBIC * x[i] * x[i] * x[i]
        a = GELU_SCALE * (x[i] + cube)
        sech2 = ZERO
        if abs(a) < np.float32(50):  # beyond, cosh² is past the largest float32, and 1/∞ = 0
            cosh = np.float32(math.cosh(a))
            sech2 = ONE / (cosh * cosh)
        inner = ONE + GELU_CUBIC_3 * x[i] * x[i]
        slope = HALF * (ONE + np.float32(math.tanh(a))) + x[i] * HALF * sech2 * GELU_SCALE * inner
        flat[i] = slope * dout[i]
    return dx


def residual_forward(a, b):
    out = np.empty(a.shape, np.float32)
    flat, a, b = out.ravel(), a.ravel(), b.ravel()
    for i in prange(a.size):
        flat[i] = a[i] + b[i]
    return out


def residual_backward(dout):
    return dout.copy(), dout.copy()


def softmax_forward(logits, V):
    B, T, Vp = logits.shape
    logits, probs = logits.reshape(B * T, Vp), np.zeros((B * T, Vp), np.float32)
    for n in prange(B * T):
        largest = FLOOR
        for i in range(V):
            if logits[n, i] > largest:
                largest = logits[n, i]
        total = ZERO
        for i in range(V):
            probs[n, i] = math.exp(logits[n, i] - largest)
            total += probs[n, i]
        for i in range(V):
            probs[n, i] /= total
    return probs.reshape(B, T, Vp)


def crossentropy_forward(probs, targets):
    B, T, _ = probs.shape
    losses = np.empty((B, T), np.float32)
    for b in range(B):
        for t in range(T):
            p = probs[b, t, targets[b, t]]
            # Plain Python raises for log(0).
            losses[b, t] = INFINITY if p == ZERO else -math.log(p)
    return losses


def crossentropy_softmax_backward(dlosses, probs, targets, V):
    B, T, Vp = probs.shape
    dlosses, targets, probs = dlosses.ravel(), targets.ravel(), probs.reshape(B * T, Vp)
    dlogits = np.zeros((B * T, Vp), np.float32)
    for n in prange(B * T):
        for i in range(V):
            dlogits[n, i] = (probs[n, i] - (ONE if i == targets[n] else ZERO)) * dlosses[n]
    return dlogits.reshape(B, T, Vp)


class Ops(numba_build.Ops):
    """One build of every function above, as an ops module; arrays need not be contiguous."""

    def __init__(self, build: str, threads: int | None = None) -> None:
        functions = numba_build.public_functions(__name__)
        super().__init__(functions, build, threads)
        for function in functions:
            name = function.__name__
            one = numba_build.with_one_signature(getattr(self, name), function)
            if function is attention_backward:
                one = functools.partial(one, jacobian=build == "strict")
            setattr(self, name, one)
