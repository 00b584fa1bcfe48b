"""Everything in a training step of Llama-2 that is no product and no attention, ops fused.

x, out and the like are (N, C) with N = B·T rows, float32. Rows or columns are shared between
threads, and sums are never split between them: the bits do not depend on the number of threads.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
from numba import njit, prange

from pyllm2 import tile_numba
from pyllm2.gpt2 import kernels_numba
from pyllm2.gpt2.kernels_numba import COLUMNS, LANES, exp, exp_row, sum_of
from pyllm2.tile_numba import kernel

FINGERPRINT = hashlib.sha256(
    Path(__file__).read_bytes()
    + tile_numba.FINGERPRINT.encode()
    + kernels_numba.FINGERPRINT.encode()
).hexdigest()[:12]

ZERO, ONE = np.float32(0), np.float32(1)
EPS = np.float32(1e-5)
INFINITY = np.float32(math.inf)


# ---- one row ----------------------------------------------------------------------------------


@njit(fastmath={"contract", "reassoc"}, error_model="numpy")
def _dot(x, y):
    total = ZERO
    for c in range(x.size):
        total += x[c] * y[c]
    return total


@njit(fastmath={"contract", "reassoc"}, error_model="numpy")
def _projection(dout, w, x):
    """Σ dout · w · x"""
    total = ZERO
    for c in range(x.size):
        total += dout[c] * w[c] * x[c]
    return total


@njit(fastmath={"contract"}, error_model="numpy")
def _normalize(x, w, out):
    """The row scaled to unit root-mean-square, then by w; by how much."""
    r = ONE / np.float32(math.sqrt(_dot(x, x) / np.float32(x.size) + EPS))
    for c in range(x.size):
        out[c] = w[c] * (r * x[c])
    return r


@njit(fastmath={"contract"}, error_model="numpy")
def _largest_of(x):
    """NaN is passed over. Side by side: one alone would wait for each comparison."""
    found = np.full(LANES, -INFINITY)
    whole = x.size // LANES * LANES
    for start in range(0, whole, LANES):
        piece = x[start : start + LANES]
        for j in range(LANES):
            found[j] = piece[j] if piece[j] > found[j] else found[j]
    largest = -INFINITY
    for j in range(LANES):
        largest = found[j] if found[j] > largest else largest
    for i in range(whole, x.size):
        largest = x[i] if x[i] > largest else largest
    return largest


# ---- forward ----------------------------------------------------------------------------------


def _embedding(tokens, table, out):
    """tokens: (N,)"""
    for n in prange(len(out)):
        out[n] = table[tokens[n]]


def _rmsnorm(x, w, out, reciprocals):
    for n in prange(len(x)):
        reciprocals[n] = _normalize(x[n], w, out[n])


def _residual_rmsnorm(x, branch, total, w, out, reciprocals):
    """total = x + branch, and its norm."""
    for n in prange(len(x)):
        left, right, row = x[n], branch[n], total[n]
        for c in range(row.size):
            row[c] = left[c] + right[c]
        reciprocals[n] = _normalize(row, w, out[n])


def _rope(x, cos, sin, direction):
    """Turn the pairs of the first columns of each row, in place; direction -1 turns them back.

    x: (N, C), N = B·T   cos, sin: (T, pairs), pairs of all heads that are turned
    """
    T, pairs = cos.shape
    for n in prange(len(x)):
        row, c, s = x[n], cos[n % T], sin[n % T]
        for i in range(pairs):
            a, b = row[2 * i], row[2 * i + 1]
            turn = direction * s[i]
            row[2 * i] = a * c[i] - b * turn
            row[2 * i + 1] = a * turn + b * c[i]


def _swiglu(gate_up, out):
    """gate_up: (N, 2F), gates first   out: (N, F)"""
    F = out.shape[1]
    for n in prange(len(out)):
        gate, up, row = gate_up[n, :F], gate_up[n, F:], out[n]
        for f in range(F):
            row[f] = gate[f] * (ONE / (ONE + exp(-gate[f]))) * up[f]


def _crossentropy(logits, targets, losses, dloss, gradient):
    """Loss of each row; with `gradient`, logits become dloss · d(loss)/d(logits).

    targets: (N,), below 0: not asked. Probabilities exist one row at a time.
    """
    for n in prange(len(logits)):
        row, target = logits[n], targets[n]
        asked = target >= 0
        largest = _largest_of(row)
        found = row[target] - largest if asked else ZERO
        exp_row(row, largest)
        total = sum_of(row)
        losses[n] = np.float32(math.log(total)) - found if asked else ZERO
        if gradient:
            scale = dloss if asked else ZERO
            for i in range(row.size):
                row[i] = row[i] / total * scale
            if asked:
                row[target] = row[target] - dloss


# ---- backward ---------------------------------------------------------------------------------


def _rmsnorm_backward(dout, x, w, reciprocals, dx, fresh):
    """dx gets the gradient through a norm: written if fresh, else added."""
    for n in prange(len(x)):
        r, d, row, result = reciprocals[n], dout[n], x[n], dx[n]
        along = _projection(d, w, row) * r / np.float32(row.size)
        if fresh:
            for c in range(row.size):
                result[c] = (d[c] * w[c] - row[c] * r * along) * r
        else:
            for c in range(row.size):
                result[c] += (d[c] * w[c] - row[c] * r * along) * r


def _rmsnorm_weight(dout, x, reciprocals, dw, fresh):
    """dw = Σ_n normalised x · dout: written if fresh, else added."""
    N, C = x.shape
    for chunk in prange((C + COLUMNS - 1) // COLUMNS):
        first = np.int64(chunk) * COLUMNS
        sums = dw[first : first + COLUMNS]
        if fresh:
            sums[:] = ZERO
        for n in range(N):
            d, row, r = (
                dout[n, first : first + COLUMNS],
                x[n, first : first + COLUMNS],
                reciprocals[n],
            )
            for c in range(sums.size):
                sums[c] += row[c] * r * d[c]


def _swiglu_backward(gate_up, dhidden):
    """gate_up becomes its own gradient, dhidden what it is the gradient of: the swiglu again."""
    F = dhidden.shape[1]
    for n in prange(len(dhidden)):
        gate, up, row = gate_up[n, :F], gate_up[n, F:], dhidden[n]
        for f in range(F):
            g, u, d = gate[f], up[f], row[f]
            e = exp(-abs(g))
            larger = ONE / (ONE + e)
            smaller = e * larger
            sigmoid = larger if g >= ZERO else smaller
            other = smaller if g >= ZERO else larger  # 1 - sigmoid, without cancellation
            gate[f] = d * u * sigmoid * (ONE + g * other)
            up[f] = d * g * sigmoid
            row[f] = g * sigmoid * u


def _embedding_backward(dx, tokens, dtable):
    """Adds dx to the rows of dtable that it was looked up from.

    Columns are shared out: a token that occurs twice is added twice, in order.
    """
    N, C = dx.shape
    for chunk in prange((C + COLUMNS - 1) // COLUMNS):
        first = np.int64(chunk) * COLUMNS
        for n in range(N):
            d, row = dx[n, first : first + COLUMNS], dtable[tokens[n], first : first + COLUMNS]
            for c in range(d.size):
                row[c] += d[c]


embedding, rmsnorm, residual_rmsnorm, rope, swiglu, crossentropy = (
    kernel(FINGERPRINT, parallel=True)(function)
    for function in (_embedding, _rmsnorm, _residual_rmsnorm, _rope, _swiglu, _crossentropy)
)
rmsnorm_backward, rmsnorm_weight, swiglu_backward, embedding_backward = (
    kernel(FINGERPRINT, parallel=True)(function)
    for function in (_rmsnorm_backward, _rmsnorm_weight, _swiglu_backward, _embedding_backward)
)
