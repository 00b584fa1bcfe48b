"""Decoding: one token through the whole model in one Numba kernel.

Decoding reads every weight once per token, so memory bandwidth is the limit:

- One call per token. The kernel takes one array of sizes and addresses, `at`, indexed by `Slot`;
  every further array argument would cost more than a norm.
- Threads start once per token and meet at spin barriers between ops. They share rows of matrices
  and never split a sum, so the bits do not depend on the number of threads.
- Vectors of 16 floats, four rows at once from four distant parts of a matrix: the memory prefetches
  four streams, and four sums share one reduction.

For int8 weights every thread quantises the input of a product for itself, which is faster than one
more barrier.

What thread t of n reads and writes between barriers. It owns query heads h0…h1, key/value heads
g0…g1, channels c0…c1 and hidden units f0…f1 (`y` and `scores` are its own scratch):

    per layer     reads                        writes
    ------------  ---------------------------  --------------------------------------------------
    projections   x                            Q[h0:h1], KEYS, VALUES and BLOCKS[g0:g1] at pos
      - - barrier, unless g0…g1 are the key/value heads of h0…h1 for every thread - - - - - - - -
    attention     Q[h0:h1], BLOCKS, VALUES     OUT[h0:h1]
      ======= barrier ===============================================================
    output        OUT, x                       X[c0:c1] = x + WO · OUT
      ======= barrier ===============================================================
    gate and up   X                            Z[f0:f1] = silu(W1 · y) · (W3 · y)
      ======= barrier ===============================================================
    down          Z                            X[c0:c1] = X + W2 · Z
      ======= barrier ===============================================================
    at the end    X                            LOGITS[v0:v1]

x is X, and in the first layer the token's row of EMBEDDING. `llama2/ops_numba.py` is the version to
read; tests hold this kernel to the composition of its ops.
"""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np
from numba import prange

from pyllm2.compiling.numba_build import device, kernel
from pyllm2.fast.ir import get_float, get_int, put_float
from pyllm2.fast.meeting import barrier, gather
from pyllm2.fast.vectors import (
    LINE,
    add,
    dot1,
    dot4,
    dot16,
    exp_and_sum,
    mix,
    rmsnorm_row,
    scale_and_largest,
    swiglu_row,
)
from pyllm2.fast.vectors_q8 import matvec_q8, quantize_row

# ---- the step -------------------------------------------------------------------------------


class Slot(IntEnum):
    """Index into `at`: int64 sizes, strides in bytes, and addresses of arrays."""

    # sizes
    C = 0
    F = 1
    L = 2
    NH = 3
    NKV = 4
    HS = 5
    V = 6
    POSITIONS = 7  # that the cache holds
    GROUP_SIZE = 8  # of int8 weights
    SCRATCH_STRIDE = 9  # from one thread's scratch to the next, in bytes
    INT8_STRIDE = 10  # from one thread's quantised input to the next, in bytes
    INT8_SCALES = 11  # from a quantised input to its scales, in bytes
    # the model and its cache
    EMBEDDING = 12  # (V, C) float32
    ATTENTION_NORM = 13  # (L, C)
    FFN_NORM = 14  # (L, C)
    FINAL_NORM = 15  # (C,)
    KEYS = 16  # (L, POSITIONS, NKV, hs), rotated
    VALUES = 17  # (L, POSITIONS, NKV, hs)
    COS = 18  # (POSITIONS, hs/2)
    SIN = 19  # (POSITIONS, hs/2)
    # buffers of a step, shared by all threads
    BLOCKS = 20  # the keys again, (L, NKV, blocks of 16 positions, hs, 16)
    LOGITS = 21  # (V,)
    X = 22  # (C,) residual stream
    Q = 23  # (NH·hs,) queries
    OUT = 24  # (NH·hs,) attention output
    DELTA = 25  # (C,) product that is added to the stream
    GATE = 26  # (F,)
    UP = 27  # (F,)
    Z = 28  # (F,) after swiglu
    COUNTERS = 29  # of the barriers, on a cache line each
    # buffers of one thread each
    SCRATCH = 30  # normalised input, then scores
    INT8 = 31  # quantised input, then its scales
    # what differs from llama2.c; an address of 0: not there
    EPSILON = 32  # (1,) float32
    WINDOWS = 33  # (L,) int64
    Q_NORM = 34  # (L, hs)
    K_NORM = 35  # (L, hs)
    # matrices: the first layer of each
    WQ = 40
    WK = 41
    WV = 42
    WO = 43
    W1 = 44
    W2 = 45
    W3 = 46
    CLASSIFIER = 47


class Of(IntEnum):
    """Offset from the slot of a matrix to what else is known of it."""

    LAYER = 8  # bytes from one layer to the next
    SCALES = 16  # address of the scales of the first layer
    SCALES_LAYER = 24  # bytes from one layer's scales to the next
    BIAS = 32  # address of the first layer's bias, 0: none
    BIAS_LAYER = 40  # bytes from one layer's bias to the next


N_SLOTS = Slot.WQ + 6 * 8


@device()
def _matvec(out, w, x, n, begin, end):
    """out[i] = w[i] · x for rows begin … end - 1, four at a time from four distant quarters."""
    quarter, row = (end - begin) // 4, 4 * n
    for i in range(begin, begin + quarter):
        dot4(out + 4 * i, 4 * quarter, w + i * row, quarter * row, x, n)
    for i in range(begin + 4 * quarter, end):
        dot1(out + 4 * i, 0, w + i * row, 0, x, n)


@device()
def _operand(at, x, n, own):
    """The operand of `_product`: x itself."""
    return x


@device()
def _product(at, out, matrix, layer, x, n, begin, end):
    """Rows begin … end - 1 of a layer's matrix times x of length n, plus their biases."""
    _matvec(out, at[matrix] + layer * at[matrix + Of.LAYER], x, n, begin, end)
    if at[matrix + Of.BIAS]:
        bias, to = at[matrix + Of.BIAS] + layer * at[matrix + Of.BIAS_LAYER], out + 4 * begin
        add(to, to, bias + 4 * begin, end - begin)


@device()
def _operand_q8(at, x, n, own):
    """The operand of `_product_q8`: x quantised into the thread's own buffer, scales after it."""
    size, scales = at[Slot.GROUP_SIZE], own + at[Slot.INT8_SCALES]
    quantize_row(own, scales, x, n, size)
    return own


@device()
def _product_q8(at, out, matrix, layer, x, n, begin, end):
    """`_product` for int8 weights, which have no biases, and an operand of `_operand_q8`."""
    w = at[matrix] + layer * at[matrix + Of.LAYER]
    scales = at[matrix + Of.SCALES] + layer * at[matrix + Of.SCALES_LAYER]
    matvec_q8(out, w, scales, x, x + at[Slot.INT8_SCALES], n, at[Slot.GROUP_SIZE], begin, end)


@device()
def _rope(to, x, cos, sin, hs):
    for i in range(0, 4 * hs, 8):
        a, b = get_float(x + i), get_float(x + i + 4)
        c, s = get_float(cos + i // 2), get_float(sin + i // 2)
        put_float(to + i, a * c - b * s)
        put_float(to + i + 4, a * s + b * c)


@device()
def _store_key(block, key, pos, hs):
    """Copy a rotated key to its column of the blocks of 16 positions, (hs, 16) each."""
    place = block + (pos // 16 * hs * 16 + pos % 16) * 4
    for i in range(hs):
        put_float(place + LINE * i, get_float(key + 4 * i))


@device()
def _head_norm(heads, norm, layer, begin, end, hs, eps):
    """Normalise heads begin … end - 1 in place, if the model has a norm for them."""
    if norm:
        for h in range(begin, end):
            head = heads + 4 * h * hs
            rmsnorm_row(head, head, norm + 4 * layer * hs, hs, eps)


@device()
def _first(window, seen):
    """The first position that a query sees through a window; 0: no window."""
    return seen - window if 0 < window < seen else 0


@device()
def _attend(out, q, blocks, v, stride, first, seen, hs, scores):
    """One head: scores of keys first … seen - 1, softmax, weighted sum of their values."""
    skip = first // 16  # whole blocks; scores before `first` and beyond `seen` are not used
    dot16(scores + LINE * skip, blocks + LINE * skip * hs, q, hs, (seen + 15) // 16 - skip)
    scores, n = scores + 4 * first, seen - first
    largest = scale_and_largest(scores, n, np.float32(math.sqrt(np.float32(hs))))
    total = exp_and_sum(scores, n, largest)
    mix(out, v + first * stride, stride, scores, n, hs, total)


def _make_worker(operand, product):
    """The worker for float32 or int8 weights."""

    @device()
    def worker(at, token, pos, tid, nt):
        """The work of thread tid of nt for one token: see the table at the top of the file."""
        c, f, nh, nkv, hs = at[Slot.C], at[Slot.F], at[Slot.NH], at[Slot.NKV], at[Slot.HS]
        kv, group, seen = nkv * hs, nh // nkv, pos + 1
        eps = get_float(at[Slot.EPSILON])
        y = at[Slot.SCRATCH] + tid * at[Slot.SCRATCH_STRIDE]
        scores = y + 4 * c
        own = at[Slot.INT8] + tid * at[Slot.INT8_STRIDE]
        cos, sin = at[Slot.COS] + 2 * pos * hs, at[Slot.SIN] + 2 * pos * hs
        x, bar, phase = at[Slot.X], at[Slot.COUNTERS], 1
        c0, c1 = c * tid // nt, c * (tid + 1) // nt
        f0, f1 = f * tid // nt, f * (tid + 1) // nt
        h0, h1 = nh * tid // nt, nh * (tid + 1) // nt
        g0, g1 = nkv * tid // nt, nkv * (tid + 1) // nt
        head = (at[Slot.POSITIONS] + 15) // 16 * 16 * hs * 4  # bytes of one head's keys in blocks
        own_keys = nkv % nt == 0  # a thread's query heads read only keys that it writes itself

        source = at[Slot.EMBEDDING] + 4 * token * c  # the residual stream
        for layer in range(at[Slot.L]):
            values = at[Slot.VALUES] + 4 * layer * at[Slot.POSITIONS] * kv
            key = at[Slot.KEYS] + 4 * (layer * at[Slot.POSITIONS] + pos) * kv
            blocks = at[Slot.BLOCKS] + layer * nkv * head
            first = _first(get_int(at[Slot.WINDOWS] + 8 * layer), seen)

            rmsnorm_row(y, source, at[Slot.ATTENTION_NORM] + 4 * layer * c, c, eps)
            a = operand(at, y, c, own)
            product(at, at[Slot.Q], Slot.WQ, layer, a, c, h0 * hs, h1 * hs)
            product(at, key, Slot.WK, layer, a, c, g0 * hs, g1 * hs)
            product(at, values + 4 * pos * kv, Slot.WV, layer, a, c, g0 * hs, g1 * hs)
            _head_norm(at[Slot.Q], at[Slot.Q_NORM], layer, h0, h1, hs, eps)
            _head_norm(key, at[Slot.K_NORM], layer, g0, g1, hs, eps)
            for g in range(g0, g1):
                _rope(key + 4 * g * hs, key + 4 * g * hs, cos, sin, hs)
                _store_key(blocks + g * head, key + 4 * g * hs, pos, hs)
            if not own_keys:
                barrier(bar, nt, phase)
                phase += 1
            for h in range(h0, h1):
                q, out, g = at[Slot.Q] + 4 * h * hs, at[Slot.OUT] + 4 * h * hs, h // group
                _rope(q, q, cos, sin, hs)
                v = values + 4 * g * hs
                _attend(out, q, blocks + g * head, v, 4 * kv, first, seen, hs, scores)
            barrier(bar, nt, phase)

            a = operand(at, at[Slot.OUT], nh * hs, own)
            product(at, at[Slot.DELTA], Slot.WO, layer, a, nh * hs, c0, c1)
            add(x + 4 * c0, source + 4 * c0, at[Slot.DELTA] + 4 * c0, c1 - c0)
            source = x
            barrier(bar, nt, phase + 1)

            rmsnorm_row(y, x, at[Slot.FFN_NORM] + 4 * layer * c, c, eps)
            a = operand(at, y, c, own)
            product(at, at[Slot.GATE], Slot.W1, layer, a, c, f0, f1)
            product(at, at[Slot.UP], Slot.W3, layer, a, c, f0, f1)
            swiglu_row(at[Slot.Z] + 4 * f0, at[Slot.GATE] + 4 * f0, at[Slot.UP] + 4 * f0, f1 - f0)
            barrier(bar, nt, phase + 2)

            a = operand(at, at[Slot.Z], f, own)
            product(at, at[Slot.DELTA], Slot.W2, layer, a, f, c0, c1)
            add(x + 4 * c0, x + 4 * c0, at[Slot.DELTA] + 4 * c0, c1 - c0)
            barrier(bar, nt, phase + 3)
            phase += 4

        rmsnorm_row(y, x, at[Slot.FINAL_NORM], c, eps)
        v = at[Slot.V]
        a = operand(at, y, c, own)
        product(at, at[Slot.LOGITS], Slot.CLASSIFIER, 0, a, c, v * tid // nt, v * (tid + 1) // nt)

    return worker


_worker = _make_worker(_operand, _product)
_worker_q8 = _make_worker(_operand_q8, _product_q8)


@kernel(parallel=True)
def step(at, token, pos, nt):
    """Decode one token on nt threads; False if some did not arrive and thread 0 did it alone."""
    if nt == 1:
        _worker(at, token, pos, np.int64(0), np.int64(1))
        return True
    together = np.zeros(nt, np.int64)
    for t in prange(nt):
        tid = np.int64(t)  # prange counts in uint64: another type would compile everything twice
        if gather(at[Slot.COUNTERS], tid, nt):
            _worker(at, token, pos, tid, nt)
            together[tid] = 1
        elif tid == 0:
            _worker(at, token, pos, tid, np.int64(1))
    return together[0] == 1


@kernel(parallel=True)
def step_q8(at, token, pos, nt):
    """`step` for int8 weights."""
    if nt == 1:
        _worker_q8(at, token, pos, np.int64(0), np.int64(1))
        return True
    together = np.zeros(nt, np.int64)
    for t in prange(nt):
        tid = np.int64(t)
        if gather(at[Slot.COUNTERS], tid, nt):
            _worker_q8(at, token, pos, tid, nt)
            together[tid] = 1
        elif tid == 0:
            _worker_q8(at, token, pos, tid, np.int64(1))
    return together[0] == 1


# ---- a whole prompt: everything but the products, which BLAS does ----------------------------


@kernel(parallel=True)
def prompt_rmsnorm(x, weight, eps):
    T, C = x.shape
    out, eps = np.empty((T, C), np.float32), np.float32(eps)
    for t in prange(T):
        rmsnorm_row(out[t].ctypes.data, x[t].ctypes.data, weight.ctypes.data, C, eps)
    return out


@kernel(parallel=True)
def prompt_swiglu(gate, up):
    T, F = gate.shape
    out = np.empty((T, F), np.float32)
    for t in prange(T):
        swiglu_row(out[t].ctypes.data, gate[t].ctypes.data, up[t].ctypes.data, F)
    return out


@kernel(parallel=True)
def prompt_attention(q, k, v, window):
    """`ops.attention`, head by head; the keys of a head are copied into blocks first."""
    T, NH, hs = q.shape
    P, NKV, _ = k.shape
    out = np.empty((T, NH * hs), np.float32)
    for head in prange(NH):
        h = np.int64(head)
        g = h // (NH // NKV)
        blocks = np.empty(((P + 15) // 16, hs, 16), np.float32)
        weights = np.empty(P + 16, np.float32)
        for p in range(P):
            for i in range(hs):
                blocks[p // 16, i, p % 16] = k[p, g, i]
        for t in range(T):
            to, query = out[t].ctypes.data + 4 * h * hs, q[t, h].ctypes.data
            values, seen = v.ctypes.data + 4 * g * hs, P - T + t + 1
            first, place = _first(window, seen), blocks.ctypes.data
            _attend(to, query, place, values, 4 * NKV * hs, first, seen, hs, weights.ctypes.data)
    return out


@kernel(parallel=True)
def prompt_quantize(x, group_size):
    T, n = x.shape
    values = np.zeros((T, n), np.int8)
    scales = np.empty((T, n // group_size), np.float32)
    for row in prange(T):
        t = np.int64(row)
        to, tos, source = values[t].ctypes.data, scales[t].ctypes.data, x[t].ctypes.data
        quantize_row(to, tos, source, n, group_size)
    return values, scales


ROWS = 32  # rows of a matrix per piece: every token uses them while they are in the cache


@kernel(parallel=True)
def prompt_matmul_q8(x, x_scales, w, w_scales, group_size):
    (T, n), rows = x.shape, len(w)
    out = np.empty((T, rows), np.float32)
    for some in prange((rows + ROWS - 1) // ROWS):
        begin = np.int64(some) * ROWS
        end = min(begin + ROWS, rows)
        for t in range(T):
            to, xs = out[t].ctypes.data, x_scales[t].ctypes.data
            first, scales = w.ctypes.data, w_scales.ctypes.data
            matvec_q8(to, first, scales, x[t].ctypes.data, xs, n, group_size, begin, end)
    return out
