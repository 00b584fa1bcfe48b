"""One token through the whole model as one Numba kernel: `ops_numba` composed, with the tricks.

Decoding reads every weight once, so the memory is the limit and all else must stay out of its way:

- One call a token. The kernel takes one array of addresses and sizes; each further array
  argument would cost more than a norm.
- Threads start once a token and meet at spin barriers between ops. Rows are shared out, sums are
  never split, so the bits do not depend on the number of threads.
- Sixteen floats at a time, four rows at once from four far places of the matrix: the memory
  fetches ahead in four streams, and four sums share one reduction.

For int8 weights the same, but that every input of a product is quantised first, by each thread
for itself: quicker than to meet once more.

`ops_numba.py` is the version to read; tests hold this one to the composition of its ops.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, prange, types

from pyllm2.llama2.vectors_numba import (
    LINE,
    add,
    dot1,
    dot4,
    dot16,
    emits,
    exp_and_sum,
    get_float,
    mix,
    put_float,
    rmsnorm_row,
    scale_and_largest,
    swiglu_row,
)
from pyllm2.llama2.vectors_q8_numba import FINGERPRINT, matvec_q8, quantize_row

I64 = ir.IntType(64)

# ---- threads that meet ----------------------------------------------------------------------


@emits(types.int64)
def _atomic_add(b, address, value):
    """Add to the int64 at an address; what was there before."""
    return b.atomic_rmw("add", b.inttoptr(address, I64.as_pointer()), value, "acq_rel")


@emits(types.int64)
def _atomic_get(b, address):
    """The int64 at an address, as other threads have left it."""
    return b.load_atomic(b.inttoptr(address, I64.as_pointer()), "acquire", 8)


_sched_yield = types.ExternalFunction("sched_yield", types.int32())
_usleep = types.ExternalFunction("usleep", types.int32(types.uint32))
SPINS = 2000  # before a waiting thread offers its processor to others
NAP, NAPS = 100, 2000  # microseconds; how many until the first thread stops waiting for others

WAITING, TOGETHER, ALONE = 0, 1, 2


@njit
def _barrier(counter, nt, phase):
    """Wait until all nt threads have come for the phase-th time."""
    if nt == 1:
        return
    _atomic_add(counter, 1)
    spins = 0
    while _atomic_get(counter) < nt * phase:
        spins += 1
        if spins > SPINS:
            _sched_yield()


@njit
def _gather(counter, decision, tid, nt):
    """Whether all nt threads have started. If some do not come, the first one works alone.

    Inside another parallel region, or with fewer threads than asked for, iterations run one
    after the other: waiting for ever would be a deadlock.
    """
    _atomic_add(counter, 1)
    if tid == 0:
        spins = 0
        while _atomic_get(counter) < nt and spins < SPINS + NAPS:
            spins += 1
            if spins > SPINS:
                _usleep(np.uint32(NAP))
        _atomic_add(decision, TOGETHER if _atomic_get(counter) >= nt else ALONE)
    while _atomic_get(decision) == WAITING:
        _sched_yield()
    return _atomic_get(decision) == TOGETHER


# ---- the step -------------------------------------------------------------------------------

# Places in the array P: sizes, then addresses. The eight matrices come in one order four times:
# where each begins, how many bytes from a layer to the next, and the same of its scales.
(
    C, F, L, NH, NKV, HS, V, POSITIONS, GROUP_SIZE,
    EMBEDDING, ATTENTION_NORM, FFN_NORM, FINAL_NORM,
    KEYS, VALUES, COS, SIN, BLOCKS, LOGITS, X, Q, OUT, GATE, UP, Z, DELTA, SCRATCH,
    SCRATCH_STRIDE, INT8, INT8_STRIDE, INT8_SCALES, COUNTERS,
    WQ, WK, WV, WO, W1, W2, W3, CLASSIFIER,
) = range(40)  # fmt: skip
LAYER, SCALES, SCALES_LAYER, P_SIZE = 8, 16, 24, WQ + 32


@njit(error_model="numpy")
def _matvec(out, w, x, n, begin, end):
    """out[i] = w[i] · x for rows begin … end - 1 of w, four at a time from four far places."""
    quarter, row = (end - begin) // 4, 4 * n
    for i in range(begin, begin + quarter):
        dot4(out + 4 * i, 4 * quarter, w + i * row, quarter * row, x, n)
    for i in range(begin + 4 * quarter, end):
        dot1(out + 4 * i, 0, w + i * row, 0, x, n)


@njit(error_model="numpy")
def _as_it_is(P, x, n, own):
    """What `_product` reads of x: x."""
    return x


@njit(error_model="numpy")
def _product(P, out, matrix, layer, x, n, begin, end):
    """Rows begin … end - 1 of a layer's matrix times x, n long."""
    _matvec(out, P[matrix] + layer * P[matrix + LAYER], x, n, begin, end)


@njit(error_model="numpy")
def _in_groups(P, x, n, own):
    """What `_product_q8` reads of x: int8 in this thread's own place, the scales after them."""
    size, scales = P[GROUP_SIZE], own + P[INT8_SCALES]
    quantize_row(own, scales, x, n, size)
    return own


@njit(error_model="numpy")
def _product_q8(P, out, matrix, layer, x, n, begin, end):
    """`_product` of what `_in_groups` has left."""
    w = P[matrix] + layer * P[matrix + LAYER]
    scales = P[matrix + SCALES] + layer * P[matrix + SCALES_LAYER]
    matvec_q8(out, w, scales, x, x + P[INT8_SCALES], n, P[GROUP_SIZE], begin, end)


@njit(error_model="numpy")
def _rope(to, x, cos, sin, hs):
    for i in range(0, 4 * hs, 8):
        a, b, c, s = (
            get_float(x + i),
            get_float(x + i + 4),
            get_float(cos + i // 2),
            get_float(sin + i // 2),
        )
        put_float(to + i, a * c - b * s)
        put_float(to + i + 4, a * s + b * c)


@njit(error_model="numpy")
def _remember(block, key, pos, hs):
    """Put a rotated key where `scores` finds it: blocks of 16 positions, (hs, 16) each."""
    place = block + (pos // 16 * hs * 16 + pos % 16) * 4
    for i in range(hs):
        put_float(place + LINE * i, get_float(key + 4 * i))


@njit(error_model="numpy")
def _attend(out, q, blocks, v, stride, seen, hs, scores):
    """One head: scores of `seen` keys, softmax, the mix of their values."""
    dot16(scores, blocks, q, hs, (seen + 15) // 16)  # what lies beyond `seen` is not looked at
    largest = scale_and_largest(scores, seen, np.float32(math.sqrt(np.float32(hs))))
    total = exp_and_sum(scores, seen, largest)
    mix(out, v, stride, scores, seen, hs, total)


def _worker_of(ready, product):
    """The worker, given what makes an operand ready and what multiplies by it."""

    @njit(error_model="numpy")
    def worker(P, token, pos, tid, nt):
        """What thread tid of nt does for one token.

        Between barriers nobody reads what others write.
        """
        c, f, nh, nkv, hs = P[C], P[F], P[NH], P[NKV], P[HS]
        kv, mul, seen = nkv * hs, nh // nkv, pos + 1
        y = P[SCRATCH] + tid * P[SCRATCH_STRIDE]  # this thread's own: a normed x, then scores
        scores = y + 4 * c
        own = P[INT8] + tid * P[INT8_STRIDE]
        cos, sin = P[COS] + 2 * pos * hs, P[SIN] + 2 * pos * hs
        x, bar, phase = P[X], P[COUNTERS], 1
        c0, c1 = c * tid // nt, c * (tid + 1) // nt
        f0, f1 = f * tid // nt, f * (tid + 1) // nt
        h0, h1 = nh * tid // nt, nh * (tid + 1) // nt
        g0, g1 = nkv * tid // nt, nkv * (tid + 1) // nt
        head = (P[POSITIONS] + 15) // 16 * 16 * hs * 4  # bytes of one head's keys in blocks
        mine = nkv % nt == 0  # then a thread's query heads read only keys that it makes itself

        source = P[EMBEDDING] + 4 * token * c  # the residual stream, at first the embedding's row
        for layer in range(P[L]):
            values = P[VALUES] + 4 * layer * P[POSITIONS] * kv
            key = P[KEYS] + 4 * (layer * P[POSITIONS] + pos) * kv
            blocks = P[BLOCKS] + layer * nkv * head

            rmsnorm_row(y, source, P[ATTENTION_NORM] + 4 * layer * c, c)
            a = ready(P, y, c, own)
            product(P, P[Q], WQ, layer, a, c, h0 * hs, h1 * hs)
            product(P, key, WK, layer, a, c, g0 * hs, g1 * hs)
            product(P, values + 4 * pos * kv, WV, layer, a, c, g0 * hs, g1 * hs)
            for g in range(g0, g1):
                _rope(key + 4 * g * hs, key + 4 * g * hs, cos, sin, hs)
                _remember(blocks + g * head, key + 4 * g * hs, pos, hs)
            if not mine:
                _barrier(bar, nt, phase)
                phase += 1
            for h in range(h0, h1):
                q, out, g = P[Q] + 4 * h * hs, P[OUT] + 4 * h * hs, h // mul
                _rope(q, q, cos, sin, hs)
                v = values + 4 * g * hs
                _attend(out, q, blocks + g * head, v, 4 * kv, seen, hs, scores)
            _barrier(bar, nt, phase)

            a = ready(P, P[OUT], c, own)
            product(P, P[DELTA], WO, layer, a, c, c0, c1)
            add(x + 4 * c0, source + 4 * c0, P[DELTA] + 4 * c0, c1 - c0)
            source = x
            _barrier(bar, nt, phase + 1)

            rmsnorm_row(y, x, P[FFN_NORM] + 4 * layer * c, c)
            a = ready(P, y, c, own)
            product(P, P[GATE], W1, layer, a, c, f0, f1)
            product(P, P[UP], W3, layer, a, c, f0, f1)
            swiglu_row(P[Z] + 4 * f0, P[GATE] + 4 * f0, P[UP] + 4 * f0, f1 - f0)
            _barrier(bar, nt, phase + 2)

            a = ready(P, P[Z], f, own)
            product(P, P[DELTA], W2, layer, a, f, c0, c1)
            add(x + 4 * c0, x + 4 * c0, P[DELTA] + 4 * c0, c1 - c0)
            _barrier(bar, nt, phase + 3)
            phase += 4

        rmsnorm_row(y, x, P[FINAL_NORM], c)
        v = P[V]
        a = ready(P, y, c, own)
        product(P, P[LOGITS], CLASSIFIER, 0, a, c, v * tid // nt, v * (tid + 1) // nt)

    return worker


_worker = _worker_of(_as_it_is, _product)
_worker_q8 = _worker_of(_in_groups, _product_q8)


def _step(P, token, pos, nt):
    """All threads for one token; whether they came together."""
    if nt == 1:
        _worker(P, token, pos, np.int64(0), np.int64(1))
        return True
    together = np.zeros(nt, np.int64)
    for t in prange(nt):
        tid = np.int64(t)  # prange counts in uint64; another type would compile everything again
        if _gather(P[COUNTERS] + 64, P[COUNTERS] + 128, tid, nt):
            _worker(P, token, pos, tid, nt)
            together[tid] = 1
        elif tid == 0:
            _worker(P, token, pos, tid, np.int64(1))
    return together[0] == 1


def _step_q8(P, token, pos, nt):
    """`_step` for int8 weights."""
    if nt == 1:
        _worker_q8(P, token, pos, np.int64(0), np.int64(1))
        return True
    together = np.zeros(nt, np.int64)
    for t in prange(nt):
        tid = np.int64(t)
        if _gather(P[COUNTERS] + 64, P[COUNTERS] + 128, tid, nt):
            _worker_q8(P, token, pos, tid, nt)
            together[tid] = 1
        elif tid == 0:
            _worker_q8(P, token, pos, tid, np.int64(1))
    return together[0] == 1


# ---- a whole prompt: what is left when BLAS has done the products ----------------------------


def _prompt_rmsnorm(x, weight):
    T, C = x.shape
    out = np.empty((T, C), np.float32)
    for t in prange(T):
        rmsnorm_row(out[t].ctypes.data, x[t].ctypes.data, weight.ctypes.data, C)
    return out


def _prompt_swiglu(gate, up):
    T, F = gate.shape
    out = np.empty((T, F), np.float32)
    for t in prange(T):
        swiglu_row(out[t].ctypes.data, gate[t].ctypes.data, up[t].ctypes.data, F)
    return out


def _prompt_attention(q, k, v):
    """`attention` of `ops`, head by head, each with its keys put into blocks first."""
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
            first = blocks.ctypes.data
            _attend(to, query, first, values, 4 * NKV * hs, seen, hs, weights.ctypes.data)
    return out


def _prompt_quantize(x, group_size):
    T, n = x.shape
    values = np.zeros((T, n), np.int8)
    scales = np.empty((T, n // group_size), np.float32)
    for row in prange(T):
        t = np.int64(row)
        to, tos, source = values[t].ctypes.data, scales[t].ctypes.data, x[t].ctypes.data
        quantize_row(to, tos, source, n, group_size)
    return values, scales


ROWS = 32  # of a matrix, multiplied by every token while they are in the cache


def _prompt_matmul_q8(x, x_scales, w, w_scales, group_size):
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


@functools.cache
def kernel(name: str) -> Any:
    """`step`, `step_q8` or one of the functions `prompt_…` above, jitted.

    Kept on disk where a folder can be written. The name that the cache knows it by has the
    fingerprint of the vector code in it, whose changes the cache would not see.
    """
    function = globals()[f"_{name}"]
    function.__qualname__ = f"{name}_{FINGERPRINT}"
    flags: Any = {"parallel": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **flags)(function)
    except RuntimeError:  # "cannot cache function"
        return njit(**flags)(function)
