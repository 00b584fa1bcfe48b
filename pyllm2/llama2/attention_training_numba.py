"""Causal attention with grouped heads for training, forward and backward: a group to a thread.

Every product is the innermost tile of the matrix products, with its panels laid out so that the
result of one is the operand of the next. Queries come NR at a time and lie side by side in a
vector, keys one under another:

    scoresᵀ[s, j] = k[s] · q[j]          outᵀ[i, j] = Σ_s v[s, i] · weights[s, j]

so that a softmax runs down columns and no sum is ever split over a vector. Weights are not kept:
the backward has the largest score and the sum of each row, and makes them again. What lies in the
future of a whole block of queries is never computed.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import njit, prange

from pyllm2 import gemm_numba
from pyllm2.gemm_numba import pack_a, pack_b
from pyllm2.gpt2 import kernels_numba
from pyllm2.gpt2.kernels_numba import exp
from pyllm2.tile_numba import (
    LANES,
    MR,
    NR,
    atomic_add,
    get_float,
    kernel,
    put_float,
    put_int,
    tile,
    turn_a,
    turn_b,
)  # fmt: skip

FINGERPRINT = hashlib.sha256(
    Path(__file__).read_bytes()
    + gemm_numba.FINGERPRINT.encode()
    + kernels_numba.FINGERPRINT.encode()
).hexdigest()[:12]

ZERO, ONE = np.float32(0), np.float32(1)
INFINITY = np.float32(math.inf)
ROW = 4 * NR  # bytes of a row of a block: one number for each of its queries


@njit
def padded(T):
    """Positions, rounded up to whole blocks and panels."""
    blocks = (T + NR - 1) // NR * NR
    return (blocks + MR - 1) // MR * MR


class Work(NamedTuple):
    """What a backward of one thread works in."""

    scores: Any
    dscores: Any
    keys: Any
    values: Any
    keys_down: Any
    columns: Any
    rows: Any
    result: Any
    turned: Any
    dkv: Any
    numbers: Any


def room(threads: int, T: int, hs: int) -> dict[str, np.ndarray]:
    """What a thread works in, by the names of the kernels' arguments."""
    P, hp = padded.py_func(T), -(-hs // MR) * MR
    shapes = {
        "scores": (P, NR), "dscores": (P, NR),  # a block of queries against all keys
        "keys": (P * hs,), "values": (P * hs,),  # panels of MR keys, [i][MR]
        "keys_down": (hp * P,), "values_down": (hp * P,),  # panels of MR channels, [s][MR]
        "columns": (2, hp, NR),  # queries and douts of a block, [i][NR]
        "rows": (2, hp * NR),  # the same as panels of MR channels, [t][MR]
        "result": (hp, NR),
        "turned": (NR, NR),
        "dkv": (2, hp, P),  # gradients of keys and values, channels down
        "numbers": (4, NR),  # largest score, 1/sum, dout · out of each query; zeros
    }  # fmt: skip
    return {name: np.zeros((threads, *shape), np.float32) for name, shape in shapes.items()}


@njit
def _address(array):
    """Signed, as the numbers it is added to: every mixture would be compiled on its own."""
    return np.int64(array.ctypes.data)


@njit
def _panels_of_keys(x, stride, T, hs, out):
    """x: address of T rows of hs floats, `stride` apart   ->   panels of MR rows, 0 past T."""
    for s in range(0, padded(T), MR):
        pack_a(
            out + 4 * s * hs, x + 4 * s * stride, stride, np.int64(1), max(0, min(MR, T - s)), hs
        )


@njit
def _panels_of_channels(x, stride, rows, hs, out, step):
    """The same rows as panels of MR channels, [row][MR], with room for `step` rows."""
    for i in range(0, hs, MR):
        at = out + 4 * i * step
        pack_a(at, x + 4 * i, np.int64(1), stride, min(MR, hs - i), rows)


@njit
def _turn_out(x, x_row, hs, columns, out, out_row):
    """out[c][i] = x[i][c] for i < hs; strides in floats."""
    whole = columns // LANES * LANES
    full = hs // MR * MR
    for i in range(0, full, MR):
        turn_a(out + 4 * i, 4 * out_row, x + 4 * i * x_row, 4 * x_row, whole)
    for c in range(columns):
        for i in range(full if c < whole else 0, hs):
            put_float(out + 4 * (c * out_row + i), get_float(x + 4 * (i * x_row + c)))


@njit
def _tiles_down(panels, steps, block, out, rows, zeros):
    """out[s, j] = Σ_k panels[s][k] · block[k, j] for s < rows."""
    for s in range(0, rows, MR):
        tile(panels + 4 * s * steps, block, steps, out + ROW * s, ROW, zeros, 0)


@kernel(FINGERPRINT)
def _hide_future(scores, first):
    """-inf where a key of the last NR is after the query."""
    for d in range(1, NR):
        row = scores[first + d]
        for j in range(d):
            row[j] = -INFINITY


@kernel(FINGERPRINT)
def _softmax_columns(scores, rows, scale, numbers):
    """Scores to weights that are still to be divided by their sum; 1/sum and the largest score."""
    largest, sums = numbers[0], numbers[1]
    for j in range(NR):
        largest[j] = -INFINITY
        sums[j] = ZERO
    for s in range(rows):
        row = scores[s]
        for j in range(NR):
            largest[j] = row[j] if row[j] > largest[j] else largest[j]
    for s in range(rows):
        row = scores[s]
        for j in range(NR):
            e = exp((row[j] - largest[j]) * scale)
            row[j] = e
            sums[j] += e
    for j in range(NR):
        sums[j] = ONE / sums[j]


@kernel(FINGERPRINT)
def _weights_again(scores, dscores, rows, scale, numbers):
    """Scores become weights, and gradients of weights those of scores, scaled."""
    largest, inverse, along = numbers[0], numbers[1], numbers[2]
    for s in range(rows):
        row, drow = scores[s], dscores[s]
        for j in range(NR):
            a = exp((row[j] - largest[j]) * scale) * inverse[j]
            row[j] = a
            drow[j] = a * (drow[j] - along[j]) * scale


@njit
def _block_forward(q, stride, first, n, hs, scale, keys, values, P, scores, column, result,
                   numbers, out, out_row):  # fmt: skip
    """NR queries of a head, or the n that are left."""
    seen, zeros, one = first + NR, _address(numbers[3]), np.int64(1)
    pack_b(_address(column), q, one, stride, n, hs)
    _tiles_down(keys, hs, _address(column), _address(scores), seen, zeros)
    _hide_future(scores, first)
    _softmax_columns(scores, seen, scale, numbers)
    at, inverse = _address(result), numbers[1]
    for i in range(0, hs, MR):
        tile(values + 4 * i * P, _address(scores), seen, at + ROW * i, ROW, zeros, 0)
    for i in range(hs):
        row = result[i]
        for j in range(NR):
            row[j] *= inverse[j]
    _turn_out(at, NR, hs, n, out, out_row)


@njit
def _block_backward(q, stride, dout, out, out_row, first, n, hs, scale, w, dq):
    """The same backwards. dq: address of its first row."""
    seen, zeros, one, P = first + NR, _address(w.numbers[3]), np.int64(1), w.dkv.shape[2]
    pack_b(_address(w.columns[0]), q, one, stride, n, hs)
    pack_b(_address(w.columns[1]), dout, one, out_row, n, hs)
    _panels_of_channels(q, stride, n, hs, _address(w.rows[0]), NR)
    _panels_of_channels(dout, out_row, n, hs, _address(w.rows[1]), NR)
    for j in range(NR):
        total = ZERO
        if j < n:
            for i in range(hs):
                at = 4 * (j * out_row + i)
                total += get_float(dout + at) * get_float(out + at)
        w.numbers[2, j] = total
    _tiles_down(_address(w.keys), hs, _address(w.columns[0]), _address(w.scores), seen, zeros)
    _tiles_down(_address(w.values), hs, _address(w.columns[1]), _address(w.dscores), seen, zeros)
    _hide_future(w.scores, first)
    _weights_again(w.scores, w.dscores, seen, scale, w.numbers)
    panels, at = _address(w.keys_down), _address(w.result)
    for i in range(0, hs, MR):
        tile(panels + 4 * i * P, _address(w.dscores), seen, at + ROW * i, ROW, zeros, 0)
    _turn_out(at, NR, hs, n, dq, stride)
    for s in range(0, seen, NR):
        for which in range(2):  # dk from dscores and queries, dv from weights and douts
            source = _address(w.dscores) if which == 0 else _address(w.scores)
            for j in range(0, NR, LANES):
                turn_b(_address(w.turned) + 4 * j, ROW, source + ROW * (s + j), ROW, NR)
            for i in range(0, hs, MR):
                sums = _address(w.dkv[which]) + 4 * (i * P + s)
                tile(_address(w.rows[which]) + ROW * i, _address(w.turned), n, sums, 4 * P,
                     sums, 4 * P)  # fmt: skip


@njit
def _group_forward(qkv, C, KV, g, group, hs, out, sums, scores, keys, values_down, columns,
                   result, numbers):  # fmt: skip
    """All query heads of key/value head g. qkv: (T, C + 2KV)   out: (T, C)   sums: (group, 2, T)"""
    T, stride = qkv.shape
    P, scale = padded(T), np.float32(ONE / np.float32(math.sqrt(np.float32(hs))))
    k = _address(qkv) + 4 * (C + g * hs)
    _panels_of_keys(k, stride, T, hs, _address(keys))
    _panels_of_channels(k + 4 * KV, stride, T, hs, _address(values_down), P)
    for h in range(group):
        head = (g * group + h) * hs
        for first in range(0, T, NR):
            n = min(NR, T - first)
            q = _address(qkv) + 4 * (first * stride + head)
            to = _address(out) + 4 * (first * C + head)
            _block_forward(q, stride, first, n, hs, scale, _address(keys), _address(values_down),
                           P, scores, columns[0], result, numbers, to, C)  # fmt: skip
            for j in range(n):
                sums[h, 0, first + j], sums[h, 1, first + j] = numbers[0, j], numbers[1, j]


@njit
def _group_backward(dout, qkv, C, KV, g, group, hs, out, sums, dqkv, w):
    """The same backwards; writes the columns of dqkv that are this group's."""
    T, stride = qkv.shape
    P, scale = padded(T), np.float32(ONE / np.float32(math.sqrt(np.float32(hs))))
    k = _address(qkv) + 4 * (C + g * hs)
    _panels_of_keys(k, stride, T, hs, _address(w.keys))
    _panels_of_keys(k + 4 * KV, stride, T, hs, _address(w.values))
    _panels_of_channels(k, stride, T, hs, _address(w.keys_down), P)
    w.dkv[:] = ZERO
    for h in range(group):
        head = (g * group + h) * hs
        for first in range(0, T, NR):
            n = min(NR, T - first)
            for j in range(NR):  # beyond n there is no query: its weights become 0
                w.numbers[0, j] = sums[h, 0, first + j] if j < n else ZERO
                w.numbers[1, j] = sums[h, 1, first + j] if j < n else ZERO
            down, across = 4 * (first * stride + head), 4 * (first * C + head)
            _block_backward(_address(qkv) + down, stride, _address(dout) + across,
                            _address(out) + across, C, first, n, hs, scale, w,
                            _address(dqkv) + down)  # fmt: skip
    for which in range(2):
        to = _address(dqkv) + 4 * (C + which * KV + g * hs)
        _turn_out(_address(w.dkv[which]), P, hs, T, to, stride)


def _forward(qkv, out, sums, NKV, scores, keys, values_down, columns, result, numbers, counter):
    """qkv: (B, T, C + 2KV), turned   out: (B, T, C)   sums: (B, NH, 2, T)

    counter: address of an int64. All others are of `room`.
    """
    (B, _, C), NH = out.shape, sums.shape[1]
    hs, group = C // NH, NH // NKV
    put_int(counter, 0)
    for thread in prange(len(scores)):
        while True:
            n = atomic_add(counter, 1)
            if n >= B * NKV:
                break
            b, g = n // NKV, n % NKV
            of_group = sums[b, g * group : (g + 1) * group]
            _group_forward(qkv[b], C, NKV * hs, g, group, hs, out[b], of_group, scores[thread],
                           keys[thread], values_down[thread], columns[thread], result[thread],
                           numbers[thread])  # fmt: skip


def _backward(dout, qkv, out, sums, dqkv, NKV, scores, dscores, keys, values, keys_down, columns,
              rows, result, turned, dkv, numbers, counter):  # fmt: skip
    """The same backwards. dout: (B, T, C)   dqkv: (B, T, C + 2KV), written"""
    (B, _, C), NH = out.shape, sums.shape[1]
    hs, group = C // NH, NH // NKV
    put_int(counter, 0)
    for thread in prange(len(scores)):
        w = Work(scores[thread], dscores[thread], keys[thread], values[thread], keys_down[thread],
                 columns[thread], rows[thread], result[thread], turned[thread], dkv[thread],
                 numbers[thread])  # fmt: skip
        while True:
            n = atomic_add(counter, 1)
            if n >= B * NKV:
                break
            b, g = n // NKV, n % NKV
            of_group = sums[b, g * group : (g + 1) * group]
            _group_backward(dout[b], qkv[b], C, NKV * hs, g, group, hs, out[b], of_group,
                            dqkv[b], w)  # fmt: skip


attention_forward = kernel(FINGERPRINT, parallel=True)(_forward)
attention_backward = kernel(FINGERPRINT, parallel=True)(_backward)
