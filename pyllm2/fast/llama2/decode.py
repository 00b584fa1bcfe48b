"""Decoding: one to sixteen tokens through the whole model in one Numba kernel.

Decoding reads every weight once per call, so memory bandwidth is the limit:

- The kernel takes one array of sizes and addresses, `at`, indexed by `Slot`; every further array
  argument would cost more than a norm.
- Threads start once per call and meet at spin barriers between ops. They share rows of matrices
  and never split a sum, so the bits do not depend on the number of threads.
- Vectors of 16 floats, four rows at once from four distant parts of a matrix: the memory prefetches
  four streams, and four sums share one reduction.
- A token is a column, and the columns of a call share one reading of the weights. They are the next
  tokens of one conversation, or one token each of several. No sum depends on the other columns, so
  a token has the bits that it has alone.

For int8 weights every thread quantises the input of a product for itself, which is faster than one
more barrier.

What thread t of n reads and writes between barriers, for every column. It owns query heads h0…h1,
key/value heads g0…g1, channels c0…c1 and hidden units f0…f1 (`y` and `scores` are its own scratch;
KEYS, VALUES and BLOCKS are those of the column's conversation, written at its position pos):

    per layer     reads                        writes
    ------------  ---------------------------  --------------------------------------------------
    projections   x                            Q[h0:h1], K, V, KEYS, VALUES and BLOCKS[g0:g1]
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
from pyllm2.fast.products import dots1, dots4, products1, products4
from pyllm2.fast.vectors import (
    LINE,
    add,
    copy,
    dot16,
    exp_and_sum,
    mix,
    rmsnorm_row,
    scale_and_largest,
    swiglu_row,
)
from pyllm2.fast.vectors_q8 import matvec_q8, quantize_row

# ---- the step -------------------------------------------------------------------------------


COLUMNS = 16  # most tokens of one call


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
    GROUP_SIZE = 7  # of int8 weights
    SCRATCH_STRIDE = 8  # from one thread's scratch to the next, in bytes
    SCRATCH_INPUTS = 9  # from a thread's scores to its normalised inputs, in bytes
    INT8_STRIDE = 10  # from one quantised input to the next, in bytes
    INT8_SCALES = 11  # from a quantised input to its scales, in bytes
    # the model
    EMBEDDING = 12  # (V, C) float32
    ATTENTION_NORM = 13  # (L, C)
    FFN_NORM = 14  # (L, C)
    FINAL_NORM = 15  # (C,)
    # buffers of a step, shared by all threads: a row for each column
    TABLE = 16  # (COLUMNS, N_FIELDS) int64, see `Column`
    LOGITS = 17  # (COLUMNS, V)
    X = 18  # (COLUMNS, C) residual stream
    Q = 19  # (COLUMNS, NH·hs) queries
    K = 20  # (COLUMNS, NKV·hs) keys, before they are rotated
    VALUE = 21  # (COLUMNS, NKV·hs) values
    OUT = 22  # (COLUMNS, NH·hs) attention output
    DELTA = 23  # (COLUMNS, C) product that is added to the stream
    GATE = 24  # (COLUMNS, F)
    UP = 25  # (COLUMNS, F)
    Z = 26  # (COLUMNS, F) after swiglu
    COUNTERS = 27  # of the barriers, on a cache line each
    # buffers of one thread each
    SCRATCH = 28  # scores, then a normalised input for each column
    INT8 = 29  # for each column a quantised input, then its scales
    # what differs from llama2.c; an address of 0: not there
    EPSILON = 30  # (1,) float32
    WINDOWS = 31  # (L,) int64
    Q_NORM = 32  # (L, hs)
    K_NORM = 33  # (L, hs)
    # of matrices in blocks: a buffer of each thread
    EXPANDED = 34  # four rows of a matrix, expanded, then an input for each column
    EXPANDED_STRIDE = 35  # from one thread's to the next, in bytes
    EXPANDED_INPUTS = 36  # from the rows to the inputs, in bytes
    # matrices: the first layer of each; of those in blocks, the table of all layers
    WQ = 40
    WK = 41
    WV = 42
    WO = 43
    W1 = 44
    W2 = 45
    W3 = 46
    CLASSIFIER = 47


class Column(IntEnum):
    """Index into a row of the table of columns: a token and its conversation."""

    TOKEN = 0
    POS = 1
    POSITIONS = 2  # that the conversation's cache holds
    KEYS = 3  # (L, POSITIONS, NKV, hs), rotated
    VALUES = 4  # (L, POSITIONS, NKV, hs)
    BLOCKS = 5  # the keys again, (L, NKV, blocks of 16 positions, hs, 16)
    COS = 6  # (POSITIONS, hs/2)
    SIN = 7  # (POSITIONS, hs/2)


N_FIELDS = 8


class Of(IntEnum):
    """Offset from the slot of a matrix to what else is known of it."""

    LAYER = 8  # bytes from one layer to the next
    SCALES = 16  # address of the scales of the first layer
    SCALES_LAYER = 24  # bytes from one layer's scales to the next
    BIAS = 32  # address of the first layer's bias, 0: none
    BIAS_LAYER = 40  # bytes from one layer's bias to the next


N_SLOTS = Slot.WQ + 6 * 8


@device()
def _of_column(at, k, field):
    """A field of column k."""
    return get_int(at[Slot.TABLE] + 8 * (N_FIELDS * k + field))


@device()
def _operand(at, x, columns, n, tid):
    """The operand of `_product`: x itself."""
    return x


@device()
def _product(at, out, width, matrix, layer, x, columns, n, begin, end):
    """Rows begin … end - 1 of a layer's matrix times each column of x, plus their biases.

    out: (columns, width)   x: (columns, n)
    """
    w = at[matrix] + layer * at[matrix + Of.LAYER]
    quarter, row = (end - begin) // 4, 4 * n
    rest, far = begin + 4 * quarter, 4 * quarter  # four at a time from four distant quarters
    if columns == 1:
        for i in range(begin, begin + quarter):
            dots4(out + 4 * i, far, w + i * row, quarter * row, x, n)
        for i in range(rest, end):
            dots1(out + 4 * i, 0, w + i * row, 0, x, n)
    else:
        for i in range(begin, begin + quarter):
            products4(out + 4 * i, far, 4 * width, w + i * row, quarter * row, x, n, columns)
        for i in range(rest, end):
            products1(out + 4 * i, 0, 4 * width, w + i * row, 0, x, n, columns)
    add_bias(at, out, width, matrix, layer, columns, begin, end)


@device()
def add_bias(at, out, width, matrix, layer, columns, begin, end):
    """Add the bias of a layer's matrix, if it has one, to rows begin … end - 1 of each column."""
    if at[matrix + Of.BIAS]:
        bias = at[matrix + Of.BIAS] + layer * at[matrix + Of.BIAS_LAYER] + 4 * begin
        for k in range(columns):
            to = out + 4 * (k * width + begin)
            add(to, to, bias, end - begin)


@device()
def _operand_q8(at, x, columns, n, tid):
    """The operand of `_product_q8`: x quantised into the thread's own buffer, scales after it."""
    own = at[Slot.INT8] + tid * COLUMNS * at[Slot.INT8_STRIDE]
    for k in range(columns):
        to = own + k * at[Slot.INT8_STRIDE]
        quantize_row(to, to + at[Slot.INT8_SCALES], x + 4 * k * n, n, at[Slot.GROUP_SIZE])
    return own


ROWS = 32  # rows of an int8 matrix per piece: every token uses them while they are in the cache


@device()
def _product_q8(at, out, width, matrix, layer, x, columns, n, begin, end):
    """`_product` for int8 weights, which have no biases, and an operand of `_operand_q8`."""
    w, size = at[matrix] + layer * at[matrix + Of.LAYER], at[Slot.GROUP_SIZE]
    scales = at[matrix + Of.SCALES] + layer * at[matrix + Of.SCALES_LAYER]
    rows = end - begin if columns == 1 else ROWS
    for first in range(begin, end, max(rows, 1)):
        for k in range(columns):
            own, to = x + k * at[Slot.INT8_STRIDE], out + 4 * k * width
            last = min(first + rows, end)
            matvec_q8(to, w, scales, own, own + at[Slot.INT8_SCALES], n, size, first, last)


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


@device()
def _keep(at, columns, layer, g0, g1):
    """Rotate the keys of heads g0 … g1 - 1, and write keys and values into the caches."""
    hs, nkv = at[Slot.HS], at[Slot.NKV]
    for k in range(columns):
        pos, positions = _of_column(at, k, Column.POS), _of_column(at, k, Column.POSITIONS)
        cos = _of_column(at, k, Column.COS) + 2 * pos * hs
        sin = _of_column(at, k, Column.SIN) + 2 * pos * hs
        row = 4 * (layer * positions + pos) * nkv * hs
        n_blocks = (positions + 15) // 16
        for g in range(g0, g1):
            here, head = 4 * (k * nkv + g) * hs, 4 * g * hs
            key = _of_column(at, k, Column.KEYS) + row + head
            _rope(key, at[Slot.K] + here, cos, sin, hs)
            copy(_of_column(at, k, Column.VALUES) + row + head, at[Slot.VALUE] + here, hs)
            blocks = _of_column(at, k, Column.BLOCKS)
            _store_key(blocks + LINE * (layer * nkv + g) * n_blocks * hs, key, pos, hs)


@device()
def _attend_all(at, columns, layer, h0, h1, scores):
    """Attention of query heads h0 … h1 - 1."""
    hs, nh, nkv = at[Slot.HS], at[Slot.NH], at[Slot.NKV]
    for h in range(h0, h1):
        g = h // (nh // nkv)
        for k in range(columns):
            pos, positions = _of_column(at, k, Column.POS), _of_column(at, k, Column.POSITIONS)
            cos = _of_column(at, k, Column.COS) + 2 * pos * hs
            sin = _of_column(at, k, Column.SIN) + 2 * pos * hs
            here, seen = 4 * (k * nh + h) * hs, pos + 1
            q, out = at[Slot.Q] + here, at[Slot.OUT] + here
            _rope(q, q, cos, sin, hs)
            v = _of_column(at, k, Column.VALUES) + 4 * (layer * positions * nkv + g) * hs
            n_blocks = (positions + 15) // 16
            blocks = _of_column(at, k, Column.BLOCKS) + LINE * (layer * nkv + g) * n_blocks * hs
            first = _first(get_int(at[Slot.WINDOWS] + 8 * layer), seen)
            _attend(out, q, blocks, v, 4 * nkv * hs, first, seen, hs, scores)


def make_worker(operand, product):
    """The worker for float32 or int8 weights."""

    @device()
    def worker(at, columns, first, tid, nt):
        """The work of thread tid of nt: see the table at the top of the file."""
        c, f, nh, nkv, hs = at[Slot.C], at[Slot.F], at[Slot.NH], at[Slot.NKV], at[Slot.HS]
        v, kv, nq = at[Slot.V], nkv * hs, nh * hs
        eps = get_float(at[Slot.EPSILON])
        scores = at[Slot.SCRATCH] + tid * at[Slot.SCRATCH_STRIDE]
        y = scores + at[Slot.SCRATCH_INPUTS]
        x, bar, phase = at[Slot.X], at[Slot.COUNTERS], 1
        c0, c1 = c * tid // nt, c * (tid + 1) // nt
        f0, f1 = f * tid // nt, f * (tid + 1) // nt
        h0, h1 = nh * tid // nt, nh * (tid + 1) // nt
        g0, g1 = nkv * tid // nt, nkv * (tid + 1) // nt
        own_keys = nkv % nt == 0  # a thread's query heads read only keys that it writes itself

        for layer in range(at[Slot.L]):
            norm = at[Slot.ATTENTION_NORM] + 4 * layer * c
            for k in range(columns):
                rmsnorm_row(y + 4 * k * c, _stream(at, layer, k), norm, c, eps)
            a = operand(at, y, columns, c, tid)
            product(at, at[Slot.Q], nq, Slot.WQ, layer, a, columns, c, h0 * hs, h1 * hs)
            product(at, at[Slot.K], kv, Slot.WK, layer, a, columns, c, g0 * hs, g1 * hs)
            product(at, at[Slot.VALUE], kv, Slot.WV, layer, a, columns, c, g0 * hs, g1 * hs)
            for k in range(columns):
                queries, keys = at[Slot.Q] + 4 * k * nq, at[Slot.K] + 4 * k * kv
                _head_norm(queries, at[Slot.Q_NORM], layer, h0, h1, hs, eps)
                _head_norm(keys, at[Slot.K_NORM], layer, g0, g1, hs, eps)
            _keep(at, columns, layer, g0, g1)
            if not own_keys:
                barrier(bar, nt, phase)
                phase += 1
            _attend_all(at, columns, layer, h0, h1, scores)
            barrier(bar, nt, phase)

            a = operand(at, at[Slot.OUT], columns, nq, tid)
            product(at, at[Slot.DELTA], c, Slot.WO, layer, a, columns, nq, c0, c1)
            for k in range(columns):
                here, mine = 4 * (k * c + c0), _stream(at, layer, k) + 4 * c0
                add(x + here, mine, at[Slot.DELTA] + here, c1 - c0)
            barrier(bar, nt, phase + 1)

            norm = at[Slot.FFN_NORM] + 4 * layer * c
            for k in range(columns):
                rmsnorm_row(y + 4 * k * c, x + 4 * k * c, norm, c, eps)
            a = operand(at, y, columns, c, tid)
            product(at, at[Slot.GATE], f, Slot.W1, layer, a, columns, c, f0, f1)
            product(at, at[Slot.UP], f, Slot.W3, layer, a, columns, c, f0, f1)
            for k in range(columns):
                here = 4 * (k * f + f0)
                swiglu_row(at[Slot.Z] + here, at[Slot.GATE] + here, at[Slot.UP] + here, f1 - f0)
            barrier(bar, nt, phase + 2)

            a = operand(at, at[Slot.Z], columns, f, tid)
            product(at, at[Slot.DELTA], c, Slot.W2, layer, a, columns, f, c0, c1)
            for k in range(columns):
                here = 4 * (k * c + c0)
                add(x + here, x + here, at[Slot.DELTA] + here, c1 - c0)
            barrier(bar, nt, phase + 3)
            phase += 4

        some = columns - first
        for k in range(some):
            rmsnorm_row(y + 4 * k * c, x + 4 * (first + k) * c, at[Slot.FINAL_NORM], c, eps)
        a = operand(at, y, some, c, tid)
        begin, end = v * tid // nt, v * (tid + 1) // nt
        product(at, at[Slot.LOGITS], v, Slot.CLASSIFIER, 0, a, some, c, begin, end)

    return worker


@device()
def _stream(at, layer, k):
    """Column k of the residual stream that a layer begins with: at first a row of EMBEDDING."""
    c = at[Slot.C]
    if layer == 0:
        return at[Slot.EMBEDDING] + 4 * _of_column(at, k, Column.TOKEN) * c
    return at[Slot.X] + 4 * k * c


_worker = make_worker(_operand, _product)
_worker_q8 = make_worker(_operand_q8, _product_q8)


@kernel(parallel=True)
def step(at, columns, first, nt):
    """Feed the columns of the table on nt threads; logits of columns first, first + 1, …

    False if some threads did not arrive and thread 0 did it alone.
    """
    if nt == 1:
        _worker(at, columns, first, np.int64(0), np.int64(1))
        return True
    together = np.zeros(nt, np.int64)
    for t in prange(nt):
        tid = np.int64(t)  # prange counts in uint64: another type would compile everything twice
        if gather(at[Slot.COUNTERS], tid, nt):
            _worker(at, columns, first, tid, nt)
            together[tid] = 1
        elif tid == 0:
            _worker(at, columns, first, tid, np.int64(1))
    return together[0] == 1


@kernel(parallel=True)
def step_q8(at, columns, first, nt):
    """`step` for int8 weights."""
    if nt == 1:
        _worker_q8(at, columns, first, np.int64(0), np.int64(1))
        return True
    together = np.zeros(nt, np.int64)
    for t in prange(nt):
        tid = np.int64(t)
        if gather(at[Slot.COUNTERS], tid, nt):
            _worker_q8(at, columns, first, tid, nt)
            together[tid] = 1
        elif tid == 0:
            _worker_q8(at, columns, first, tid, np.int64(1))
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
