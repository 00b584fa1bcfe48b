"""The ops of `ops.py` in Numba: same names, same order, loops explicit.

`Ops("fast")` lets LLVM reorder sums and fuse multiply-add, and shares rows or heads between
threads. `Ops("strict")` compiles the very same loops with neither: every sum in ascending order
from +0, each step rounded to float32, libm's float32 functions, one thread. That is the order of
the C oracle, so the two agree to the last bit.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from pyllm2 import numba_build
from pyllm2.llama2 import ops_backward_numba

ZERO = np.float32(0)
ONE = np.float32(1)
EPS = np.float32(1e-5)
ROPE_BASE = np.float32(10000)


def embedding(tokens, table):
    T, C = len(tokens), table.shape[1]
    out = np.empty((T, C), np.float32)
    for t in range(T):
        for c in range(C):
            out[t, c] = table[tokens[t], c]
    return out


def rmsnorm(x, weight):
    T, C = x.shape
    out = np.empty((T, C), np.float32)
    for t in range(T):
        squares = ZERO
        for c in range(C):
            squares += x[t, c] * x[t, c]
        scale = ONE / np.float32(math.sqrt(squares / np.float32(C) + EPS))
        for c in range(C):
            out[t, c] = weight[c] * (scale * x[t, c])
    return out


def matmul(x, w):
    (T, C), OC = x.shape, len(w)
    out = np.empty((T, OC), np.float32)
    for o in prange(OC):
        for t in range(T):
            total = ZERO
            for c in range(C):
                total += w[o, c] * x[t, c]
            out[t, o] = total
    return out


def rope_tables(S, hs):
    cos, sin = np.empty((S, hs // 2), np.float32), np.empty((S, hs // 2), np.float32)
    for i in range(hs // 2):
        h_over_hs = np.float32(2 * i) / np.float32(hs)
        frequency = ONE / np.float32(math.pow(ROPE_BASE, h_over_hs))
        for p in range(S):
            angle = np.float32(np.float32(p) * frequency)
            cos[p, i] = math.cos(angle)
            sin[p, i] = math.sin(angle)
    return cos, sin


def rope(x, cos, sin):
    T, N, hs = x.shape
    out = np.empty((T, N, hs), np.float32)
    for t in range(T):
        for n in range(N):
            for i in range(hs // 2):
                a, b = x[t, n, 2 * i], x[t, n, 2 * i + 1]
                out[t, n, 2 * i] = a * cos[t, i] - b * sin[t, i]
                out[t, n, 2 * i + 1] = a * sin[t, i] + b * cos[t, i]
    return out


def softmax(x):
    T, C = x.shape
    out = np.empty((T, C), np.float32)
    for t in range(T):
        largest = x[t, 0]
        for c in range(1, C):
            if x[t, c] > largest:
                largest = x[t, c]
        total = ZERO
        for c in range(C):
            out[t, c] = math.exp(x[t, c] - largest)
            total += out[t, c]
        for c in range(C):
            out[t, c] /= total
    return out


def attention(q, k, v):
    (T, NH, hs), (P, NKV, _) = q.shape, k.shape
    out = np.zeros((T, NH * hs), np.float32)
    root = np.float32(math.sqrt(np.float32(hs)))
    for h in prange(NH):
        g = h // (NH // NKV)
        a = np.empty(P, np.float32)
        for t in range(T):
            seen = P - T + t + 1
            # pass 1: scores, and the largest of them
            for p in range(seen):
                score = ZERO
                for i in range(hs):
                    score += q[t, h, i] * k[p, g, i]
                a[p] = score / root
            largest = a[0]
            for p in range(1, seen):
                if a[p] > largest:
                    largest = a[p]
            # pass 2: softmax
            total = ZERO
            for p in range(seen):
                a[p] = math.exp(a[p] - largest)
                total += a[p]
            for p in range(seen):
                a[p] /= total
            # pass 3: the weighted sum of the values, oldest position first
            for p in range(seen):
                for i in range(hs):
                    out[t, h * hs + i] += a[p] * v[p, g, i]
    return out


def residual(x, y):
    T, C = x.shape
    out = np.empty((T, C), np.float32)
    for t in range(T):
        for c in range(C):
            out[t, c] = x[t, c] + y[t, c]
    return out


def swiglu(gate, up):
    T, F = gate.shape
    out = np.empty((T, F), np.float32)
    for t in prange(T):
        for f in range(F):
            sigmoid = ONE / (ONE + np.float32(math.exp(-gate[t, f])))
            out[t, f] = gate[t, f] * sigmoid * up[t, f]
    return out


def quantize(x, group_size):
    T, C = x.shape
    values, scales = np.zeros((T, C), np.int8), np.zeros((T, C // group_size), np.float32)
    for t in range(T):
        for g in range(C // group_size):
            largest = ZERO
            for c in range(g * group_size, (g + 1) * group_size):
                size = abs(x[t, c])
                if size > largest or size != size:  # NaN stays: no size is greater
                    largest = size
            scale = largest / np.float32(127)
            scales[t, g] = scale
            if scale > ZERO:
                for c in range(g * group_size, (g + 1) * group_size):
                    quotient = np.float64(x[t, c] / scale)
                    if quotient == quotient:
                        size = min(math.floor(abs(quotient) + 0.5), 127)
                        values[t, c] = size if quotient > 0 else -size
    return values, scales


def dequantize(values, scales, group_size):
    flat, out = values.ravel(), np.zeros(values.size, np.float32)
    for g in range(len(scales)):
        for i in range(g * group_size, (g + 1) * group_size):
            out[i] = np.float32(flat[i]) * scales[g]
    return out.reshape(values.shape)


def matmul_q8(x, x_scales, w, w_scales, group_size):
    (T, C), OC = x.shape, len(w)
    out = np.empty((T, OC), np.float32)
    for o in prange(OC):
        for t in range(T):
            dot = ZERO
            for g in range(C // group_size):
                integers = np.int32(0)
                for c in range(g * group_size, (g + 1) * group_size):
                    integers = np.int32(integers + np.int32(x[t, c]) * np.int32(w[o, c]))
                # The scale of the group in which the first element lies, as in llama2.c: groups
                # of w are cut from the flattened matrix and may straddle rows.
                w_scale = w_scales[(o * C + g * group_size) // group_size]
                dot += np.float32(integers) * w_scale * x_scales[t, g]
            out[t, o] = dot
    return out


_OPS = (
    embedding, rmsnorm, matmul, rope_tables, rope, softmax, attention, residual, swiglu,
    quantize, dequantize, matmul_q8,
)  # fmt: skip

# Their roundings are part of the model. p·(1/power) must not become p/power; and int8 arithmetic
# is chaotic: one bit more or less before a rounding to int8 moves all that follows.
_ORDERED = (rope_tables, quantize, dequantize, matmul_q8)


class Ops(numba_build.Ops):
    """One build of every function above and of those of training, as an ops module."""

    def __init__(self, build: str, threads: int | None = None) -> None:
        backward = ops_backward_numba.OPS
        super().__init__((*_OPS, *backward), build, threads, _ORDERED)
        for function in backward:
            kernel = numba_build.with_one_signature(getattr(self, function.__name__), function)
            setattr(self, function.__name__, kernel)
