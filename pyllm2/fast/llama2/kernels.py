"""Kernels of a Llama-2 training step other than matrix products and attention; some fuse two ops.

x, out and similar arguments are float32, (N, C) with N = B·T rows. Threads share rows or columns
and never split a sum: the bits do not depend on the number of threads.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from pyllm2.compiling.numba_build import device, kernel
from pyllm2.fast.rows import (
    COLUMNS,
    EPS,
    INFINITY,
    ONE,
    ZERO,
    exp,
    exp_row,
    largest_of,
    scale_probabilities,
    sum_of,
)

# ---- one row ----------------------------------------------------------------------------------


@device("contract", "reassoc")
def _dot(x, y):
    total = ZERO
    for c in range(x.size):
        total += x[c] * y[c]
    return total


@device("contract", "reassoc")
def _projection(dout, w, x):
    """Σ dout · w · x"""
    total = ZERO
    for c in range(x.size):
        total += dout[c] * w[c] * x[c]
    return total


@device("contract")
def _normalize(x, w, out):
    """out = w · (r · x), r = 1 / root-mean-square of the row; returns r."""
    r = ONE / np.float32(math.sqrt(_dot(x, x) / np.float32(x.size) + EPS))
    for c in range(x.size):
        out[c] = w[c] * (r * x[c])
    return r


# ---- forward ----------------------------------------------------------------------------------


@kernel("contract", parallel=True)
def embedding(tokens, table, out):
    """tokens: (N,)"""
    for n in prange(len(out)):
        out[n] = table[tokens[n]]


@kernel("contract", parallel=True)
def rmsnorm(x, w, out, reciprocals):
    for n in prange(len(x)):
        reciprocals[n] = _normalize(x[n], w, out[n])


@kernel("contract", parallel=True)
def residual_rmsnorm(x, branch, total, w, out, reciprocals):
    """total = x + branch, out = rmsnorm(total)."""
    for n in prange(len(x)):
        left, right, row = x[n], branch[n], total[n]
        for c in range(row.size):
            row[c] = left[c] + right[c]
        reciprocals[n] = _normalize(row, w, out[n])


@kernel("contract", parallel=True)
def rope(x, cos, sin, direction):
    """Rotate the pairs in the first columns of each row, in place; direction -1 rotates back.

    x: (N, C), N = B·T   cos, sin: (T, pairs), for all heads that are rotated
    """
    T, pairs = cos.shape
    for n in prange(len(x)):
        row, c, s = x[n], cos[n % T], sin[n % T]
        for i in range(pairs):
            a, b = row[2 * i], row[2 * i + 1]
            turn = direction * s[i]
            row[2 * i] = a * c[i] - b * turn
            row[2 * i + 1] = a * turn + b * c[i]


@kernel("contract", parallel=True)
def swiglu(gate_up, out):
    """gate_up: (N, 2F), gates first   out: (N, F)"""
    F = out.shape[1]
    for n in prange(len(out)):
        gate, up, row = gate_up[n, :F], gate_up[n, F:], out[n]
        for f in range(F):
            row[f] = gate[f] * (ONE / (ONE + exp(-gate[f]))) * up[f]


@kernel("contract", parallel=True)
def crossentropy(logits, targets, losses, dloss, gradient):
    """Loss of each row; with `gradient`, logits become dloss · d(loss)/d(logits).

    targets: (N,), below 0: no loss. Probabilities exist one row at a time.
    """
    for n in prange(len(logits)):
        row, target = logits[n], targets[n]
        asked = target >= 0
        largest = largest_of(row, -INFINITY)
        found = row[target] - largest if asked else ZERO
        exp_row(row, largest)
        total = sum_of(row)
        losses[n] = np.float32(math.log(total)) - found if asked else ZERO
        if gradient:
            scale = dloss if asked else ZERO
            scale_probabilities(row, total, scale)
            if asked:
                row[target] = row[target] - dloss


# ---- backward ---------------------------------------------------------------------------------


@kernel("contract", parallel=True)
def rmsnorm_backward(dout, x, w, reciprocals, dx, fresh):
    """dx = gradient through a norm: written if fresh, else added."""
    for n in prange(len(x)):
        r, d, row, result = reciprocals[n], dout[n], x[n], dx[n]
        along = _projection(d, w, row) * r / np.float32(row.size)
        if fresh:
            for c in range(row.size):
                result[c] = (d[c] * w[c] - row[c] * r * along) * r
        else:
            for c in range(row.size):
                result[c] += (d[c] * w[c] - row[c] * r * along) * r


@kernel("contract", parallel=True)
def rmsnorm_weight(dout, x, reciprocals, dw, fresh):
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


@kernel("contract", parallel=True)
def swiglu_backward(gate_up, dhidden):
    """gate_up becomes its gradient, and dhidden the result of the forward, recomputed."""
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


@kernel("contract", parallel=True)
def embedding_backward(dx, tokens, dtable):
    """Add dx to the rows of dtable that were looked up.

    Threads share columns, so a token that occurs twice is added twice, in order.
    """
    N, C = dx.shape
    for chunk in prange((C + COLUMNS - 1) // COLUMNS):
        first = np.int64(chunk) * COLUMNS
        for n in range(N):
            d, row = dx[n, first : first + COLUMNS], dtable[tokens[n], first : first + COLUMNS]
            for c in range(d.size):
                row[c] += d[c]
