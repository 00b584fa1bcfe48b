"""Attention for training, forward and backward: matrix products, one head per thread.

Queries come in blocks of rows, and a block meets only the keys up to its own last row: what lies
in the future of the whole block is never computed.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from pyllm2.compiling.numba_build import device, kernel
from pyllm2.fast.gemm import NOTHING, Matrix, address_of, gemm_alone
from pyllm2.fast.gpt2.kernels import FLOOR
from pyllm2.fast.ir import atomic_add, put_int
from pyllm2.fast.rows import ONE, ZERO, exp_row, largest_of, sum_of

ROWS = 96  # queries of a block
NEXT = np.int64(1)  # the stride of neighbours


@device("contract")
def _scale(hs):
    return np.float32(ONE / np.float32(math.sqrt(np.float32(hs))))


@device("contract")
def _softmax_row(row, seen, scale):
    """Scores to weights, in place; 0 for the positions after the first `seen`."""
    past = row[:seen]
    for s in range(seen):
        past[s] *= scale
    exp_row(past, largest_of(past, FLOOR))
    total = sum_of(past)
    factor = ZERO if total == ZERO else ONE / total  # NaN stays
    for s in range(seen):
        past[s] *= factor
    row[seen:] = ZERO


@device("contract")
def _dscores_row(datt, att, seen, scale):
    """datt becomes the gradient of the scores, and 0 after the first `seen`."""
    along = ZERO
    for s in range(seen):
        along += att[s] * datt[s]
    for s in range(seen):
        datt[s] = att[s] * (datt[s] - along) * scale
    datt[seen:] = ZERO


@device("contract")
def _head_forward(qkv, C, out, att, work):
    """One head: its hs columns of qkv (T, 3C) and of out (T, C); att (T, T)."""
    (T, hs), C3, q = out.shape, 3 * C, address_of(qkv)
    keys, values = Matrix(q + 4 * C, NEXT, C3), Matrix(q + 8 * C, C3, NEXT)
    for first in range(0, T, ROWS):
        last = min(first + ROWS, T)
        n = last - first
        queries = Matrix(q + 4 * C3 * first, C3, NEXT)
        weights = Matrix(address_of(att[first:]), T, NEXT)
        result = Matrix(address_of(out[first:]), C, NEXT)
        gemm_alone(queries, keys, weights, NOTHING, n, last, hs, work)
        for t in range(first, last):
            _softmax_row(att[t], t + 1, _scale(hs))
        gemm_alone(weights, values, result, NOTHING, n, hs, last, work)


@device("contract")
def _head_backward(dout, qkv, C, att, dqkv, datt, work):
    """One head: its hs columns of dout (T, C), qkv and dqkv (T, 3C); datt (ROWS, T) is scratch.

    The last block of queries sees all keys and writes every row of dk and dv; the others add.
    """
    (T, hs), C3 = dout.shape, 3 * C
    q, dq, scores = address_of(qkv), address_of(dqkv), address_of(datt)
    keys, values = Matrix(q + 4 * C, C3, NEXT), Matrix(q + 8 * C, NEXT, C3)
    dkeys, dvalues = Matrix(dq + 4 * C, C3, NEXT), Matrix(dq + 8 * C, C3, NEXT)
    for block in range((T - 1) // ROWS, -1, -1):
        first = block * ROWS
        last = min(first + ROWS, T)
        n, above = last - first, 4 * C3 * first
        queries, dqueries = Matrix(q + above, C3, NEXT), Matrix(dq + above, C3, NEXT)
        weights = Matrix(address_of(att[first:]), NEXT, T)
        d = Matrix(address_of(dout[first:]), C, NEXT)
        gemm_alone(d, values, Matrix(scores, T, NEXT), NOTHING, n, last, hs, work)
        for t in range(first, last):
            _dscores_row(datt[t - first, :last], att[t, :last], t + 1, _scale(hs))
        k_start, v_start = (NOTHING, NOTHING) if last == T else (dkeys, dvalues)
        gemm_alone(Matrix(scores, T, NEXT), keys, dqueries, NOTHING, n, hs, last, work)
        gemm_alone(Matrix(scores, NEXT, T), queries, dkeys, k_start, last, hs, n, work)
        gemm_alone(weights, d, dvalues, v_start, last, hs, n, work)


@kernel("contract", parallel=True)
def attention_forward(qkv, att, out, works, counter):
    """qkv: (B, T, 3C)   att: (B, NH, T, T)   out: (B, T, C)   counter: address of an int64

    works: for each thread the address of a workspace of `fast.gemm`
    """
    (B, _, C), NH = out.shape, att.shape[1]
    hs = C // NH
    put_int(counter, 0)
    for thread in prange(len(works)):
        while True:
            n = atomic_add(counter, 1)
            if n >= B * NH:
                break
            b, h = n // NH, n % NH
            head = slice(h * hs, (h + 1) * hs)
            _head_forward(qkv[b, :, head], C, out[b, :, head], att[b, h], works[thread])


@kernel("contract", parallel=True)
def attention_backward(dout, qkv, att, dqkv, scratch, works, counter):
    """Backward of the same. dqkv: (B, T, 3C), written   scratch: (threads, ROWS, T)"""
    (B, _, C), NH = dout.shape, att.shape[1]
    hs = C // NH
    put_int(counter, 0)
    for thread in prange(len(works)):
        datt, work = scratch[thread], works[thread]
        while True:
            n = atomic_add(counter, 1)
            if n >= B * NH:
                break
            b, h = n // NH, n % NH
            head, grad = slice(h * hs, (h + 1) * hs), dqkv[b]
            d, x = dout[b, :, head], qkv[b, :, head]
            _head_backward(d, x, C, att[b, h], grad[:, head], datt, work)
