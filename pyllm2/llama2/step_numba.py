"""One token through the whole model as one Numba kernel: `ops_numba` composed, with the tricks.

Decoding reads every weight once, so the memory is the limit and all else must stay out of its way:

- One call a token. The kernel takes one array of addresses and sizes; each further array
  argument would cost more than a norm.
- Threads start once a token and meet at spin barriers between ops. Rows are shared out, sums are
  never split, so the bits do not depend on the number of threads.
- Sixteen floats at a time, four rows at once from four far places of the matrix: the memory
  fetches ahead in four streams, and four sums share one reduction.

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
    FINGERPRINT,
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

# Places in the array P: sizes, then addresses.
(
    C, F, L, NH, NKV, HS, V, POSITIONS,
    EMBEDDING, ATTENTION_NORM, WQ, WK, WV, WO, FFN_NORM, W1, W2, W3, FINAL_NORM, CLASSIFIER,
    KEYS, VALUES, COS, SIN, BLOCKS, LOGITS, X, Q, OUT, GATE, UP, Z, DELTA, SCRATCH,
    SCRATCH_STRIDE, COUNTERS, P_SIZE,
) = range(37)  # fmt: skip


@njit(error_model="numpy")
def _matvec(out, w, x, n, begin, end):
    """out[i] = w[i] · x for rows begin … end - 1 of w, four at a time from four far places."""
    quarter, row = (end - begin) // 4, 4 * n
    for i in range(begin, begin + quarter):
        dot4(out + 4 * i, 4 * quarter, w + i * row, quarter * row, x, n)
    for i in range(begin + 4 * quarter, end):
        dot1(out + 4 * i, 0, w + i * row, 0, x, n)


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


@njit(error_model="numpy")
def _worker(P, token, pos, tid, nt):
    """What thread tid of nt does for one token. Between barriers nobody reads what others write."""
    c, f, nh, nkv, hs = P[C], P[F], P[NH], P[NKV], P[HS]
    kv, mul, seen = nkv * hs, nh // nkv, pos + 1
    y = P[SCRATCH] + tid * P[SCRATCH_STRIDE]  # this thread's own: a normed x, then scores
    scores = y + 4 * c
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
        _matvec(P[Q], P[WQ] + 4 * layer * c * c, y, c, h0 * hs, h1 * hs)
        _matvec(key, P[WK] + 4 * layer * kv * c, y, c, g0 * hs, g1 * hs)
        _matvec(values + 4 * pos * kv, P[WV] + 4 * layer * kv * c, y, c, g0 * hs, g1 * hs)
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

        _matvec(P[DELTA], P[WO] + 4 * layer * c * c, P[OUT], c, c0, c1)
        add(x + 4 * c0, source + 4 * c0, P[DELTA] + 4 * c0, c1 - c0)
        source = x
        _barrier(bar, nt, phase + 1)

        rmsnorm_row(y, x, P[FFN_NORM] + 4 * layer * c, c)
        _matvec(P[GATE], P[W1] + 4 * layer * f * c, y, c, f0, f1)
        _matvec(P[UP], P[W3] + 4 * layer * f * c, y, c, f0, f1)
        swiglu_row(P[Z] + 4 * f0, P[GATE] + 4 * f0, P[UP] + 4 * f0, f1 - f0)
        _barrier(bar, nt, phase + 2)

        _matvec(P[DELTA], P[W2] + 4 * layer * c * f, P[Z], f, c0, c1)
        add(x + 4 * c0, x + 4 * c0, P[DELTA] + 4 * c0, c1 - c0)
        _barrier(bar, nt, phase + 3)
        phase += 4

    rmsnorm_row(y, x, P[FINAL_NORM], c)
    v = P[V]
    _matvec(P[LOGITS], P[CLASSIFIER], y, c, v * tid // nt, v * (tid + 1) // nt)


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


@functools.cache
def kernel(name: str) -> Any:
    """One of `step`, `prompt_rmsnorm`, `prompt_swiglu`, `prompt_attention`, jitted.

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
