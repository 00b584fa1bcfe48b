"""The ops of `ops.py` in Numba: the same names in the same order, with explicit loops.

`Ops("fast")` lets LLVM reorder sums and fuse multiply-add, and shares rows, outputs or heads
between threads. `Ops("strict")` compiles the same loops without that: every sum in ascending order
from +0, each step rounded to float32, float32 functions of libm, one thread. What several query
heads add to one key/value head is added head by head. That is the order of the strict C build,
and the two agree to the last bit.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from pyllm2.compiling import numba_build

ZERO = np.float32(0)
ONE = np.float32(1)
EPS = 1e-5
ROPE_BASE = 10000.0
INFINITY = np.float32(np.inf)


def embedding(tokens, table):
    T, C = len(tokens), table.shape[1]
    out = np.empty((T, C), np.float32)
    for t in range(T):
        for c in range(C):
            out[t, c] = table[tokens[t], c]
    return out


def embedding_backward(dout, tokens, dtable):
    (N, C), dtable = dout.shape, dtable.copy()
    for n in range(N):
        for c in range(C):
            dtable[tokens[n], c] += dout[n, c]
    return dtable


def rmsnorm(x, weight, eps=EPS):
    T, C = x.shape
    eps = np.float32(eps)
    out = np.empty((T, C), np.float32)
    for t in range(T):
        squares = ZERO
        for c in range(C):
            squares += x[t, c] * x[t, c]
        scale = ONE / np.float32(math.sqrt(squares / np.float32(C) + eps))
        for c in range(C):
            out[t, c] = weight[c] * (scale * x[t, c])
    return out


def rmsnorm_backward(dout, x, weight):
    N, C = x.shape
    dx, dweight = np.empty((N, C), np.float32), np.zeros(C, np.float32)
    reciprocals = np.empty(N, np.float32)
    for n in prange(N):
        squares, along = ZERO, ZERO
        for c in range(C):
            squares += x[n, c] * x[n, c]
        r = ONE / np.float32(math.sqrt(squares / np.float32(C) + np.float32(EPS)))
        for c in range(C):
            along += dout[n, c] * weight[c] * (x[n, c] * r)
        along /= np.float32(C)
        for c in range(C):
            dx[n, c] = (dout[n, c] * weight[c] - x[n, c] * r * along) * r
        reciprocals[n] = r
    for n in range(N):  # serial: every row adds to the same C numbers
        for c in range(C):
            dweight[c] += x[n, c] * reciprocals[n] * dout[n, c]
    return dx, dweight


def matmul(x, w, b=None):
    (T, C), OC = x.shape, len(w)
    out = np.empty((T, OC), np.float32)
    for o in prange(OC):
        for t in range(T):
            total = ZERO
            for c in range(C):
                total += w[o, c] * x[t, c]
            out[t, o] = total if b is None else total + b[o]
    return out


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


def rope_tables(S, hs, base=ROPE_BASE, divisors=None, scale=1.0):
    base, scale = np.float32(base), np.float32(scale)
    cos, sin = np.empty((S, hs // 2), np.float32), np.empty((S, hs // 2), np.float32)
    for i in range(hs // 2):
        h_over_hs = np.float32(2 * i) / np.float32(hs)
        frequency = ONE / np.float32(math.pow(base, h_over_hs))
        if divisors is not None:
            frequency /= divisors[i]
        for p in range(S):
            angle = np.float32(np.float32(p) * frequency)
            cos[p, i] = scale * np.float32(math.cos(angle))
            sin[p, i] = scale * np.float32(math.sin(angle))
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


def attention(q, k, v, window=0):
    (T, NH, hs), (P, NKV, _) = q.shape, k.shape
    out = np.zeros((T, NH * hs), np.float32)
    root = np.float32(math.sqrt(np.float32(hs)))
    for h in prange(NH):
        g = h // (NH // NKV)
        a = np.empty(P, np.float32)
        for t in range(T):
            seen = P - T + t + 1
            first = max(0, seen - window) if window else 0
            # pass 1: scores, and the largest of them
            for p in range(first, seen):
                score = ZERO
                for i in range(hs):
                    score += q[t, h, i] * k[p, g, i]
                a[p] = score / root
            largest = a[first]
            for p in range(first + 1, seen):
                if a[p] > largest:
                    largest = a[p]
            # pass 2: softmax
            total = ZERO
            for p in range(first, seen):
                a[p] = math.exp(a[p] - largest)
                total += a[p]
            for p in range(first, seen):
                a[p] /= total
            # pass 3: the weighted sum of the values, oldest position first
            for p in range(first, seen):
                for i in range(hs):
                    out[t, h * hs + i] += a[p] * v[p, g, i]
    return out


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


# ---- int8 in groups ("Q8_0") -----------------------------------------------------------------


def quantize(x, group_size):
    T, C = x.shape
    values, scales = np.zeros((T, C), np.int8), np.zeros((T, C // group_size), np.float32)
    for t in range(T):
        for g in range(C // group_size):
            largest = ZERO
            for c in range(g * group_size, (g + 1) * group_size):
                size = abs(x[t, c])
                if size > largest or size != size:  # once NaN, always NaN
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


# ---- blocks of GGUF --------------------------------------------------------------------------

# The ids of `formats.gguf_blocks.TYPES`, where the layouts are stated, and bytes per block.
Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K = 2, 3, 6, 7, 8, 12, 13, 14
BLOCK_BYTES = (0, 0, 18, 20, 0, 0, 22, 24, 34, 0, 0, 0, 144, 176, 210)


@numba_build.device()
def _block(kind):
    """Numbers and bytes of a block."""
    nbytes = BLOCK_BYTES[kind] if 0 <= kind < 15 else 0
    if nbytes == 0:
        raise ValueError("this kind of block has no kernel")
    return 256 if kind >= Q4_K else 32, nbytes


@numba_build.device()
def _half(b, at):
    """The IEEE half at a byte. Exponent and fraction, as those of a float32, are off by 2^112."""
    bits = np.int32(b[at]) | np.int32(b[at + 1]) << 8
    magnitude = np.int32((bits & 0x7FFF) << 13)
    if bits & 0x7C00 == 0x7C00:  # infinity or NaN
        size = np.int32(magnitude | 0x7F800000).view(np.float32)
    else:
        size = magnitude.view(np.float32) * np.float32(2.0**112)
    return -size if bits & 0x8000 else size


@numba_build.device()
def _six_bits(b, j, upper):
    """Scale (upper 0) or minimum (upper 4) j of eight, in the bytes 4 to 15 of a block."""
    if j < 4:
        return np.int32(b[4 + upper + j]) & 63
    return np.int32(b[8 + j]) >> upper & 15 | np.int32(b[upper + j]) >> 6 << 4


@numba_build.device()
def _expand_32(out, b, kind):
    """The numbers of a block of 32. All are d·q + m, with m = 0 where there is no minimum."""
    d, m = _half(b, 0), _half(b, 2) if kind in (Q4_1, Q5_1) else ZERO
    fifth = (2 if kind == Q5_0 else 4) if kind in (Q5_0, Q5_1) else 0  # their first byte
    lower = fifth + 4 if fifth else 4 if kind == Q4_1 else 2
    offset = 8 if kind == Q4_0 else 16 if kind == Q5_0 else 0
    for i in range(32):
        q = np.int32(b[lower + i % 16]) >> 4 * (i // 16) & 15
        if fifth:
            q |= (np.int32(b[fifth + i // 8]) >> i % 8 & 1) << 4
        out[i] = d * np.float32(np.int8(b[2 + i]) if kind == Q8_0 else q - offset) + m


@numba_build.device()
def _expand_256(out, b, kind):
    d = _half(b, 208) if kind == Q6_K else _half(b, 0)
    dmin = ZERO if kind == Q6_K else _half(b, 2)
    for i in range(256):
        if kind == Q6_K:
            half, j = i // 128, i % 128
            q = np.int32(b[64 * half + j % 64]) >> 4 * (j // 64) & 15
            q |= (np.int32(b[128 + 32 * half + j % 32]) >> 2 * (j // 32) & 3) << 4
            out[i] = d * np.float32(np.int8(b[192 + i // 16])) * np.float32(q - 32)
        else:
            j = i // 32
            lower = 48 if kind == Q5_K else 16
            q = np.int32(b[lower + 32 * (j // 2) + i % 32]) >> 4 * (j % 2) & 15
            if kind == Q5_K:
                q |= (np.int32(b[16 + i % 32]) >> j & 1) << 4
            minimum = dmin * np.float32(_six_bits(b, j, 4))
            out[i] = d * np.float32(_six_bits(b, j, 0)) * np.float32(q) - minimum


@numba_build.device()
def _expand_row(out, row, kind):
    numbers, nbytes = _block(kind)
    for k in range(len(row) // nbytes):
        to, b = out[k * numbers : (k + 1) * numbers], row[k * nbytes : (k + 1) * nbytes]
        if numbers == 32:
            _expand_32(to, b, kind)
        else:
            _expand_256(to, b, kind)


def dequantize_packed(w, kind):
    numbers, nbytes = _block(kind)
    out = np.empty((len(w), w.shape[1] // nbytes * numbers), np.float32)
    for o in prange(len(w)):
        _expand_row(out[o], w[o], kind)
    return out


def matmul_packed(x, w, kind, b=None):
    (T, C), OC, (numbers, nbytes) = x.shape, len(w), _block(kind)
    if w.shape[1] * numbers != C * nbytes:
        raise ValueError("the rows of x and w differ in length")
    out = np.empty((T, OC), np.float32)
    for o in prange(OC):
        row = np.empty(C, np.float32)
        _expand_row(row, w[o], kind)
        for t in range(T):
            total = ZERO
            for c in range(C):
                total += row[c] * x[t, c]
            out[t, o] = total if b is None else total + b[o]
    return out


# Roundings that are part of the model. p·(1/power) must not become p/power, and int8 arithmetic is
# chaotic: one bit before a rounding to int8 changes everything after it.
_ORDERED = (rope_tables, quantize, dequantize, matmul_q8)


class Ops(numba_build.Ops):
    """One build of every function above, as an ops module."""

    def __init__(self, build: str, threads: int | None = None) -> None:
        functions = numba_build.public_functions(__name__)
        super().__init__(functions, build, threads, _ORDERED)
        for function in functions:
            name = function.__name__
            one_signature = name == "dropout" or name.endswith(("_forward", "_backward"))
            if one_signature or function.__defaults__:
                one = numba_build.with_one_signature(getattr(self, name), function)
                setattr(self, name, one)
