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

from pyllm2 import gemm_numba
from pyllm2.gemm_numba import gemm_alone
from pyllm2.gpt2 import kernels_numba
from pyllm2.gpt2.kernels_numba import exp_row, largest_of, sum_of
from pyllm2.tile_numba import atomic_add, kernel, put_int

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
def _address(array):
    """Signed, as the numbers it is added to: every mixture would be compiled on its own."""
    return np.int64(array.ctypes.data)


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
    (T, hs), C3, one, none = out.shape, 3 * C, np.int64(1), np.int64(0)  # literals: compiled anew
    q = _address(qkv)
    k, v = q + 4 * C, q + 8 * C
    for first in range(0, T, ROWS):
        last = min(first + ROWS, T)
        n, weights = last - first, _address(att[first:])
        gemm_alone(q + 4 * C3 * first, C3, one, k, one, C3, weights, T, none, none,
                   n, last, hs, work, one)  # fmt: skip
        for t in range(first, last):
            _softmax_row(att[t], t + 1, _scale(hs))
        gemm_alone(weights, T, one, v, C3, one, _address(out[first:]), C, none, none,
                   n, hs, last, work, one)  # fmt: skip


@njit
def _head_backward(dout, qkv, C, att, dqkv, datt, work):
    """One head: dout (T, C), qkv and dqkv (T, 3C), hs columns of each; datt (ROWS, T) is room.

    The last block of queries sees all keys and so writes every row of dk and dv; the others add.
    """
    (T, hs), C3, one, none = dout.shape, 3 * C, np.int64(1), np.int64(0)
    q, dq, room = _address(qkv), _address(dqkv), _address(datt)
    k, v, dk, dv = q + 4 * C, q + 8 * C, dq + 4 * C, dq + 8 * C
    for block in range((T - 1) // ROWS, -1, -1):
        first = block * ROWS
        last = min(first + ROWS, T)
        n, above = last - first, 4 * C3 * first
        weights, d = _address(att[first:]), _address(dout[first:])
        gemm_alone(d, C, one, v, one, C3, room, T, none, none, n, last, hs, work, one)
        for t in range(first, last):
            _dscores_row(datt[t - first, :last], att[t, :last], t + 1, _scale(hs))
        k_start, v_start = (none, none) if last == T else (dk, dv)
        gemm_alone(room, T, one, k, C3, one, dq + above, C3, none, none, n, hs, last, work, one)
        gemm_alone(room, one, T, q + above, C3, one, dk, C3, k_start, C3, last, hs, n, work, one)
        gemm_alone(weights, one, T, d, C, one, dv, C3, v_start, C3, last, hs, n, work, one)


def _forward(qkv, att, out, works, counter):
    """qkv: (B, T, 3C)   att: (B, NH, T, T)   out: (B, T, C)   counter: address of an int64

    works: for each thread the address of a workspace of `gemm_numba`
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
            columns = slice(h * hs, (h + 1) * hs)
            _head_forward(qkv[b, :, columns], C, out[b, :, columns], att[b, h], works[thread])


def _backward(dout, qkv, att, dqkv, room, works, counter):
    """The same backwards. dqkv: (B, T, 3C), written   room: (threads, ROWS, T)"""
    (B, _, C), NH = dout.shape, att.shape[1]
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
