"""Causal attention with grouped heads for training, forward and backward: one group per thread.

Every product is the innermost tile of the matrix products, with panels laid out so that the result
of one product is an operand of the next. NR queries at a time lie side by side in the columns of a
block, keys one under another:

    scoresᵀ[s, j] = k[s] · q[j]          outᵀ[i, j] = Σ_s v[s, i] · weights[s, j]

so that a softmax runs down columns and no sum is ever split over a vector. Weights are not kept:
the backward pass has the largest score and the sum of each row and computes them again. What lies
in the future of a whole block of queries is never computed.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from pyllm2.compiling.numba_build import device, kernel
from pyllm2.fast.gemm import LANES, MR, NR, address_of, aligned_zeros, pack_a, pack_b
from pyllm2.fast.ir import atomic_add, get_float, put_float, put_int
from pyllm2.fast.rows import INFINITY, ONE, ZERO, exp
from pyllm2.fast.tile import tile, transpose_a, transpose_b

Array = NDArray[np.float32]

ROW = 4 * NR  # bytes of a row of a block: one number for each of its queries
NEXT, NONE = np.int64(1), np.int64(0)
KEYS, VALUES, KEYS_DOWN, VALUES_DOWN, DKEYS, DVALUES = range(6)  # in `Work.panels`


class Sizes(NamedTuple):
    """Of one sequence and one head."""

    T: int
    P: int  # T, padded
    hs: int
    stride: int  # floats from row to row of qkv
    C: int  # the same of out
    scale: Any  # 1 / √hs


class Work(NamedTuple):
    """Scratch memory of one thread; hp is hs rounded up to MR."""

    scores: Any  # (P, NR), a block of queries against all keys
    dscores: Any  # (P, NR)
    queries: Any  # (hp, NR), queries of a block as columns
    douts: Any  # (hp, NR), their gradients of out
    queries_down: Any  # (hp, NR), the same as panels of MR channels, [t][MR]
    douts_down: Any  # (hp, NR)
    result: Any  # (hp, NR)
    turned: Any  # (NR, NR), scores with queries down and keys across
    numbers: Any  # (4, NR), for each query: largest score, 1/sum, dout · out, 0
    # (6, hp, P): keys and values as panels of MR positions, [i][MR], then as panels of MR
    # channels, [s][MR]; gradients of keys and values, channels down.
    panels: Any


@device("contract")
def _padded(T):
    """Positions, rounded up to whole blocks and panels."""
    return (((T + NR - 1) // NR * NR) + MR - 1) // MR * MR


@device("contract")
def _rounded_up(hs):
    return (hs + MR - 1) // MR * MR


def workspace(threads: int, T: int, hs: int) -> tuple[Array, Array]:
    """For each thread the rows of NR floats of its `Work`, and its panels."""
    P, hp = int(_padded.py_func(T)), int(_rounded_up.py_func(hs))
    width, height = int(NR), 2 * P + 5 * hp + int(NR) + 4
    rows = aligned_zeros(threads * height * width, np.float32)
    panels = aligned_zeros(threads * 6 * hp * P, np.float32)
    return rows.reshape(threads, height, width), panels.reshape(threads, 6, hp, P)


@device("contract")
def _work(rows, panels):
    _, hp, P = panels.shape
    scores, tiles, rest = rows[: 2 * P], rows[2 * P : 2 * P + 5 * hp], rows[2 * P + 5 * hp :]
    return Work(
        scores[:P],
        scores[P:],
        tiles[:hp],
        tiles[hp : 2 * hp],
        tiles[2 * hp : 3 * hp],
        tiles[3 * hp : 4 * hp],
        tiles[4 * hp :],
        rest[:NR],
        rest[NR:],
        panels,
    )


# ---- layouts ----------------------------------------------------------------------------------


@device("contract")
def _panels_of_positions(x, stride, T, hs, out):
    """x: address of T rows of hs floats, `stride` apart   ->   panels of MR rows, 0 past T."""
    for s in range(NONE, _padded(T), MR):
        rows = max(NONE, min(MR, T - s))
        pack_a(out + 4 * s * hs, x + 4 * s * stride, stride, NEXT, rows, hs)


@device("contract")
def _panels_of_channels(x, stride, rows, hs, out, step):
    """The same rows as panels of MR channels, [row][MR], `step` rows apart."""
    for i in range(NONE, hs, MR):
        pack_a(out + 4 * i * step, x + 4 * i, NEXT, stride, min(MR, hs - i), rows)


@device("contract")
def _turn_out(x, x_row, hs, columns, out, out_row):
    """out[c][i] = x[i][c] for i < hs; strides in floats."""
    whole = columns // LANES * LANES
    full = hs // MR * MR
    for i in range(0, full, MR):
        transpose_a(out + 4 * i, 4 * out_row, x + 4 * i * x_row, 4 * x_row, whole)
    for c in range(columns):
        for i in range(full if c < whole else 0, hs):
            put_float(out + 4 * (c * out_row + i), get_float(x + 4 * (i * x_row + c)))


@device("contract")
def _tiles_down(panels, steps, block, out, rows, zeros):
    """out[s, j] = Σ_k panels[s][k] · block[k, j] for s < rows."""
    for s in range(0, rows, MR):
        tile(panels + 4 * s * steps, block, steps, out + ROW * s, ROW, zeros, 0)


@device("contract")
def _mixed_down(panels, step, block, steps, hs, out, zeros):
    """out[i, j] = Σ_s panels[i][s] · block[s, j] for i < hs; panels are `step` rows apart."""
    for i in range(0, hs, MR):
        tile(panels + 4 * i * step, block, steps, out + ROW * i, ROW, zeros, 0)


# ---- one block of queries ---------------------------------------------------------------------


@device("contract")
def _hide_future(scores, first):
    """-inf where a key of the last NR is after the query."""
    for d in range(1, NR):
        row = scores[first + d]
        for j in range(d):
            row[j] = -INFINITY


@device("contract")
def _softmax_columns(scores, rows, scale, numbers):
    """Scores to weights that are still to be divided by their sum; numbers: largest, 1/sum."""
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


@device("contract")
def _weights_again(scores, dscores, rows, scale, numbers):
    """Scores become weights, and gradients of weights those of scores, scaled."""
    largest, inverse, along = numbers[0], numbers[1], numbers[2]
    for s in range(rows):
        row, drow = scores[s], dscores[s]
        for j in range(NR):
            a = exp((row[j] - largest[j]) * scale) * inverse[j]
            row[j] = a
            drow[j] = a * (drow[j] - along[j]) * scale


@device("contract")
def _block_forward(z, w, q, first, out):
    """NR queries of a head, fewer at the end. q, out: addresses of their first rows"""
    seen, n, zeros = first + NR, min(NR, z.T - first), address_of(w.numbers[3])
    scores, result, inverse = address_of(w.scores), address_of(w.result), w.numbers[1]
    pack_b(address_of(w.queries), q, NEXT, z.stride, n, z.hs)
    _tiles_down(address_of(w.panels[KEYS]), z.hs, address_of(w.queries), scores, seen, zeros)
    _hide_future(w.scores, first)
    _softmax_columns(w.scores, seen, z.scale, w.numbers)
    _mixed_down(address_of(w.panels[VALUES_DOWN]), z.P, scores, seen, z.hs, result, zeros)
    for i in range(z.hs):
        row = w.result[i]
        for j in range(NR):
            row[j] *= inverse[j]
    _turn_out(result, NR, z.hs, n, out, z.C)


@device("contract")
def _block_backward(z, w, q, dout, out, first, dq):
    """Backward of the same; adds to the gradients of keys and values. dq: address of a row"""
    seen, n, zeros = first + NR, min(NR, z.T - first), address_of(w.numbers[3])
    scores, dscores = address_of(w.scores), address_of(w.dscores)
    queries, douts, result = address_of(w.queries), address_of(w.douts), address_of(w.result)
    pack_b(queries, q, NEXT, z.stride, n, z.hs)
    pack_b(douts, dout, NEXT, z.C, n, z.hs)
    _panels_of_channels(q, z.stride, n, z.hs, address_of(w.queries_down), NR)
    _panels_of_channels(dout, z.C, n, z.hs, address_of(w.douts_down), NR)
    for j in range(NR):
        total = ZERO
        if j < n:
            for i in range(z.hs):
                at = 4 * (j * z.C + i)
                total += get_float(dout + at) * get_float(out + at)
        w.numbers[2, j] = total
    _tiles_down(address_of(w.panels[KEYS]), z.hs, queries, scores, seen, zeros)
    _tiles_down(address_of(w.panels[VALUES]), z.hs, douts, dscores, seen, zeros)
    _hide_future(w.scores, first)
    _weights_again(w.scores, w.dscores, seen, z.scale, w.numbers)
    _mixed_down(address_of(w.panels[KEYS_DOWN]), z.P, dscores, seen, z.hs, result, zeros)
    _turn_out(result, NR, z.hs, n, dq, z.stride)
    turned, dk, dv = (
        address_of(w.turned),
        address_of(w.panels[DKEYS]),
        address_of(w.panels[DVALUES]),
    )
    queries_down, douts_down = address_of(w.queries_down), address_of(w.douts_down)
    for s in range(NONE, seen, NR):
        _add_products(z, turned, queries_down, dscores + ROW * s, n, dk + 4 * s)
        _add_products(z, turned, douts_down, scores + ROW * s, n, dv + 4 * s)


@device("contract")
def _add_products(z, turned, rows, block, n, sums):
    """sums[i, j] += Σ_t rows[t, i] · block[j, t] for NR keys j and n queries t."""
    for j in range(0, NR, LANES):
        transpose_b(turned + 4 * j, ROW, block + ROW * j, ROW, NR)
    for i in range(0, z.hs, MR):
        to = sums + 4 * i * z.P
        tile(rows + ROW * i, turned, n, to, 4 * z.P, to, 4 * z.P)


# ---- one group: the query heads of one key/value head -----------------------------------------


@device("contract")
def _sizes(qkv, out, hs):
    T, stride = qkv.shape
    scale = np.float32(ONE / np.float32(math.sqrt(np.float32(hs))))
    return Sizes(T, _padded(T), hs, stride, out.shape[1], scale)


@device("contract")
def _group_forward(z, w, qkv, out, sums, g, NKV):
    """qkv: (T, C + 2KV)   out: (T, C)   sums: (heads of the group, 2, T), largest and 1/sum"""
    group = len(sums)
    k = address_of(qkv) + 4 * (z.C + g * z.hs)
    v = k + 4 * NKV * z.hs
    _panels_of_positions(k, z.stride, z.T, z.hs, address_of(w.panels[KEYS]))
    _panels_of_channels(v, z.stride, z.T, z.hs, address_of(w.panels[VALUES_DOWN]), z.P)
    for h in range(group):
        head = (g * group + h) * z.hs
        for first in range(0, z.T, NR):
            q = address_of(qkv) + 4 * (first * z.stride + head)
            _block_forward(z, w, q, first, address_of(out) + 4 * (first * z.C + head))
            for j in range(min(NR, z.T - first)):
                sums[h, 0, first + j] = w.numbers[0, j]
                sums[h, 1, first + j] = w.numbers[1, j]


@device("contract")
def _group_backward(z, w, dout, qkv, out, sums, dqkv, g, NKV):
    """Backward of the same; writes the columns of dqkv that belong to this group."""
    group = len(sums)
    k, KV = address_of(qkv) + 4 * (z.C + g * z.hs), NKV * z.hs
    _panels_of_positions(k, z.stride, z.T, z.hs, address_of(w.panels[KEYS]))
    _panels_of_positions(k + 4 * KV, z.stride, z.T, z.hs, address_of(w.panels[VALUES]))
    _panels_of_channels(k, z.stride, z.T, z.hs, address_of(w.panels[KEYS_DOWN]), z.P)
    w.panels[DKEYS:] = ZERO
    for h in range(group):
        head = (g * group + h) * z.hs
        for first in range(0, z.T, NR):
            for j in range(NR):
                asked = first + j < z.T  # else there is no query: its weights become 0
                w.numbers[0, j] = sums[h, 0, first + j] if asked else ZERO
                w.numbers[1, j] = sums[h, 1, first + j] if asked else ZERO
            down, across = 4 * (first * z.stride + head), 4 * (first * z.C + head)
            q, dq = address_of(qkv) + down, address_of(dqkv) + down
            _block_backward(z, w, q, address_of(dout) + across, address_of(out) + across, first, dq)
    dk = address_of(dqkv) + 4 * (z.C + g * z.hs)
    _turn_out(address_of(w.panels[DKEYS]), z.P, z.hs, z.T, dk, z.stride)
    _turn_out(address_of(w.panels[DVALUES]), z.P, z.hs, z.T, dk + 4 * KV, z.stride)


# ---- all groups -------------------------------------------------------------------------------


@kernel("contract", parallel=True)
def attention_forward(qkv, out, sums, NKV, rows, panels, counter):
    """qkv: (B, T, C + 2KV), rotated   out: (B, T, C)   sums: (B, NH, 2, T), largest and 1/sum

    rows, panels: of `workspace`   counter: address of an int64
    """
    (B, _, C), NH = out.shape, sums.shape[1]
    group, hs = NH // NKV, C // NH
    put_int(counter, 0)
    for thread in prange(len(rows)):
        w = _work(rows[thread], panels[thread])
        while True:
            n = atomic_add(counter, 1)
            if n >= B * NKV:
                break
            b, g = n // NKV, n % NKV
            of_group = sums[b, g * group : (g + 1) * group]
            _group_forward(_sizes(qkv[b], out[b], hs), w, qkv[b], out[b], of_group, g, NKV)


@kernel("contract", parallel=True)
def attention_backward(dout, qkv, out, sums, dqkv, NKV, rows, panels, counter):
    """Backward of the same. dout: (B, T, C)   dqkv: (B, T, C + 2KV), written"""
    (B, _, C), NH = out.shape, sums.shape[1]
    group, hs = NH // NKV, C // NH
    put_int(counter, 0)
    for thread in prange(len(rows)):
        w = _work(rows[thread], panels[thread])
        while True:
            n = atomic_add(counter, 1)
            if n >= B * NKV:
                break
            b, g = n // NKV, n % NKV
            of_group, z = sums[b, g * group : (g + 1) * group], _sizes(qkv[b], out[b], hs)
            _group_backward(z, w, dout[b], qkv[b], out[b], of_group, dqkv[b], g, NKV)
