"""Attention forward and backward for training: products by `gemm_numba`, a head to a thread.

Queries come in blocks of rows, and a block meets only the keys up to its own last row: what lies
in the future of the whole block is never computed.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
from numba import njit, prange

from pyllm2.gpt2 import gemm_numba, kernels_numba
from pyllm2.gpt2.gemm_numba import gemm_alone
from pyllm2.gpt2.kernels_numba import exp_row, largest_of, sum_of
from pyllm2.gpt2.tile_numba import atomic_add, kernel, put_int

FINGERPRINT = hashlib.sha256(
    Path(__file__).read_bytes()
    + gemm_numba.FINGERPRINT.encode()
    + kernels_numba.FINGERPRINT.encode()
).hexdigest()[:12]

ROWS = 96  # queries of a block

ZERO, ONE = np.float32(0), np.float32(1)


@njit
def _scale(hs):
    return np.float32(ONE / np.float32(math.sqrt(np.float32(hs))))


@njit
def _softmax_row(row, seen, scale):
    """Scores to weights, in place; 0 for the positions after the first `seen`."""
    past = row[:seen]
    for s in range(seen):
        past[s] *= scale
    exp_row(past, largest_of(past))
    total = sum_of(past)
    factor = ZERO if total == ZERO else ONE / total  # NaN stays
    for s in range(seen):
        past[s] *= factor
    row[seen:] = ZERO


@njit
def _dscores_row(datt, att, seen, scale):
    """datt becomes the gradient of the scores, and 0 after the first `seen`."""
    along = ZERO
    for s in range(seen):
        along += att[s] * datt[s]
    for s in range(seen):
        datt[s] = att[s] * (datt[s] - along) * scale
    datt[seen:] = ZERO


@njit
def _head_forward(qkv, C, out, att, work):
    """One head: qkv (T, 3C) and out (T, C), of which it sees hs columns; att (T, T)."""
    T, hs = len(qkv), out.shape[1]
    q = qkv.ctypes.data
    k, v = q + 4 * C, q + 8 * C
    for first in range(0, T, ROWS):
        last = min(first + ROWS, T)
        block = att[first:last]
        gemm_alone(q + 12 * C * first, 3 * C, 1, k, 1, 3 * C, block.ctypes.data, T, 0, 0,
                   last - first, last, hs, work, 1)  # fmt: skip
        for t in range(first, last):
            _softmax_row(att[t], t + 1, _scale(hs))
        gemm_alone(block.ctypes.data, T, 1, v, 3 * C, 1, out[first:].ctypes.data, C, 0, 0,
                   last - first, hs, last, work, 1)  # fmt: skip


@njit
def _head_backward(dout, qkv, C, att, dqkv, datt, work):
    """One head: dout (T, C), qkv and dqkv (T, 3C), hs columns of each; datt (ROWS, T) is room.

    The last block of queries sees all keys and so writes every row of dk and dv; the others add.
    """
    T, hs = len(qkv), dout.shape[1]
    q, dq, room = qkv.ctypes.data, dqkv.ctypes.data, datt.ctypes.data
    k, v, dk, dv = q + 4 * C, q + 8 * C, dq + 4 * C, dq + 8 * C
    for block in range((T - 1) // ROWS, -1, -1):
        first = block * ROWS
        last = min(first + ROWS, T)
        n, above = last - first, 12 * C * first
        weights, d = att[first:].ctypes.data, dout[first:].ctypes.data
        gemm_alone(d, C, 1, v, 1, 3 * C, room, T, 0, 0, n, last, hs, work, 1)
        for t in range(first, last):
            _dscores_row(datt[t - first, :last], att[t, :last], t + 1, _scale(hs))
        gemm_alone(room, T, 1, k, 3 * C, 1, dq + above, 3 * C, 0, 0, n, hs, last, work, 1)
        k_before, v_before = (0, 0) if last == T else (dk, dv)
        gemm_alone(room, 1, T, q + above, 3 * C, 1, dk, 3 * C, k_before, 3 * C,
                   last, hs, n, work, 1)  # fmt: skip
        gemm_alone(weights, 1, T, d, C, 1, dv, 3 * C, v_before, 3 * C, last, hs, n, work, 1)


def _forward(qkv, att, out, works, counter):
    """qkv: (B, T, 3C)   att: (B, NH, T, T)   out: (B, T, C)   counter: address of an int64

    works: for each thread the address of a workspace of `gemm_numba`
    """
    B, T, C = out.shape
    NH = att.shape[1]
    hs = C // NH
    put_int(counter, 0)
    for thread in prange(len(works)):
        while True:
            n = atomic_add(counter, 1)
            if n >= B * NH:
                break
            b, h = n // NH, n % NH
            columns = slice(h * hs, (h + 1) * hs)
            _head_forward(qkv[b, :, columns], C, out[b, :, columns], att[b, h], works[thread])


def _backward(dout, qkv, att, dqkv, room, works, counter):
    """The same backwards. dqkv: (B, T, 3C), written   room: (threads, ROWS, T)"""
    B, T, C = dout.shape
    NH = att.shape[1]
    hs = C // NH
    put_int(counter, 0)
    for thread in prange(len(works)):
        while True:
            n = atomic_add(counter, 1)
            if n >= B * NH:
                break
            b, h = n // NH, n % NH
            columns = slice(h * hs, (h + 1) * hs)
            _head_backward(dout[b, :, columns], qkv[b, :, columns], C, att[b, h],
                           dqkv[b, :, columns], room[thread], works[thread])  # fmt: skip


attention_forward = kernel(FINGERPRINT, parallel=True)(_forward)
attention_backward = kernel(FINGERPRINT, parallel=True)(_backward)
