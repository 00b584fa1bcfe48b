"""Kernels of a GPT-2 training step other than matrix products and attention; some fuse two ops.

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
    ONE,
    ZERO,
    exp,
    exp_row,
    largest_of,
    scale_probabilities,
    sum_of,
)

TWO = np.float32(2)
FLOOR = np.float32(-10000)  # where llm.c begins its search for the largest score
GELU_CUBIC = np.float32(0.044715)
GELU_CUBIC_3 = np.float32(3) * GELU_CUBIC
GELU_SCALE = np.sqrt(np.float32(2 / np.pi))  # one ulp below the float32 nearest to √(2/π)

# ---- one number -------------------------------------------------------------------------------


@device("contract")
def _gelu(x):
    """x/2 · (1 + tanh a) = x / (1 + exp(-2a)), without the cancellation."""
    a = GELU_SCALE * (x + GELU_CUBIC * x * x * x)
    return x / (ONE + exp(-TWO * a))


@device("contract")
def _gelu_slope(x):
    """With s = (1 + tanh a)/2: s + 2·x·s·(1 - s)·a', and 1 - s not from s, so nothing cancels."""
    a = GELU_SCALE * (x + GELU_CUBIC * x * x * x)
    e = exp(-TWO * abs(a))
    larger = ONE / (ONE + e)
    smaller = e * larger
    s = larger if a >= ZERO else smaller
    inner = GELU_SCALE * (ONE + GELU_CUBIC_3 * x * x)
    return s + x * (TWO * larger * smaller) * inner


# ---- one row ----------------------------------------------------------------------------------


@device("contract", "reassoc")
def _squares(x, mean):
    total = ZERO
    for i in range(x.size):
        total += (x[i] - mean) * (x[i] - mean)
    return total


@device("contract")
def _normalize(x, w, b, out):
    """out = rstd · (x - mean) · w + b; returns mean and rstd = 1 / standard deviation."""
    C = np.float32(x.size)
    mean = sum_of(x) / C
    rstd = ONE / np.float32(math.sqrt(_squares(x, mean) / C + EPS))
    for c in range(x.size):
        out[c] = rstd * (x[c] - mean) * w[c] + b[c]
    return mean, rstd


@device("contract", "reassoc")
def _projections(dout, x, w, mean, rstd):
    """Means over C of g and g·n, with g = dout·w and n = (x - mean)·rstd."""
    along_one, along_n = ZERO, ZERO
    for c in range(x.size):
        g = dout[c] * w[c]
        along_one += g
        along_n += g * ((x[c] - mean) * rstd)
    return along_one / np.float32(x.size), along_n / np.float32(x.size)


# ---- forward ----------------------------------------------------------------------------------


@kernel("contract", parallel=True)
def encoder_forward(tokens, wte, wpe, out):
    """out[n] = wte[tokens[n]] + wpe[n mod T]. tokens: (B, T)"""
    B, T = tokens.shape
    for n in prange(B * T):
        b, t = n // T, n % T
        token, position, row = wte[tokens[b, t]], wpe[t], out[n]
        for c in range(row.size):
            row[c] = token[c] + position[c]


@kernel("contract", parallel=True)
def layernorm_forward(x, w, b, out, mean, rstd):
    for n in prange(len(x)):
        mean[n], rstd[n] = _normalize(x[n], w, b, out[n])


@kernel("contract", parallel=True)
def residual_layernorm_forward(x, branch, total, w, b, out, mean, rstd):
    """total = x + branch, out = layernorm(total)."""
    for n in prange(len(x)):
        left, right, row = x[n], branch[n], total[n]
        for c in range(row.size):
            row[c] = left[c] + right[c]
        mean[n], rstd[n] = _normalize(row, w, b, out[n])


@kernel("contract", parallel=True)
def gelu_forward(x, out):
    for n in prange(len(x)):
        row, result = x[n], out[n]
        for c in range(row.size):
            result[c] = _gelu(row[c])


@kernel("contract", parallel=True)
def crossentropy(logits, targets, V, losses, dloss, gradient):
    """Loss of each row; with `gradient`, logits become dloss · d(loss)/d(logits), padding 0.

    Without it they become exp(logits - largest). Probabilities exist one row at a time.
    """
    for n in prange(len(logits)):
        row, target = logits[n, :V], targets[n]
        exp_row(row, largest_of(row, FLOOR))
        total = sum_of(row)
        losses[n] = -math.log(row[target] / total)
        if gradient:
            scale_probabilities(row, total, dloss)
            row[target] = row[target] - dloss
            logits[n, V:] = ZERO


# ---- backward ---------------------------------------------------------------------------------


@kernel("contract", parallel=True)
def layernorm_backward(dout, x, w, mean, rstd, dx, fresh):
    """dx = gradient through a norm: written if fresh, else added."""
    for n in prange(len(x)):
        m, s, d, row, result = mean[n], rstd[n], dout[n], x[n], dx[n]
        along_one, along_n = _projections(d, row, w, m, s)
        if fresh:
            for c in range(row.size):
                result[c] = (d[c] * w[c] - along_one - (row[c] - m) * s * along_n) * s
        else:
            for c in range(row.size):
                result[c] += (d[c] * w[c] - along_one - (row[c] - m) * s * along_n) * s


@kernel("contract", parallel=True)
def layernorm_parameters(dout, x, mean, rstd, dw, db, fresh):
    """dw = Σ_n normalised x · dout, db = Σ_n dout: written if fresh, else added."""
    N, C = x.shape
    for chunk in prange((C + COLUMNS - 1) // COLUMNS):
        first = np.int64(chunk) * COLUMNS
        w_sums, b_sums = dw[first : first + COLUMNS], db[first : first + COLUMNS]
        if fresh:
            w_sums[:] = ZERO
            b_sums[:] = ZERO
        for n in range(N):
            d, row = dout[n, first : first + COLUMNS], x[n, first : first + COLUMNS]
            for c in range(row.size):
                w_sums[c] += (row[c] - mean[n]) * rstd[n] * d[c]
                b_sums[c] += d[c]


@kernel("contract", parallel=True)
def bias_backward(dout, db, fresh):
    """db = Σ_n dout: written if fresh, else added."""
    N, C = dout.shape
    for chunk in prange((C + COLUMNS - 1) // COLUMNS):
        first = np.int64(chunk) * COLUMNS
        sums = db[first : first + COLUMNS]
        if fresh:
            sums[:] = ZERO
        for n in range(N):
            d = dout[n, first : first + COLUMNS]
            for c in range(d.size):
                sums[c] += d[c]


@kernel("contract", parallel=True)
def gelu_backward(dout, x):
    """dout becomes dout · gelu'(x)."""
    for n in prange(len(x)):
        row, d = x[n], dout[n]
        for c in range(row.size):
            d[c] *= _gelu_slope(row[c])


@kernel("contract", parallel=True)
def encoder_backward(dx, tokens, dwte, dwpe, fresh):
    """Add dx to the rows of dwte that were looked up, and to dwpe, cleared first if fresh.

    Threads share columns, so a token that occurs twice is added twice, in order.
    """
    B, T = tokens.shape
    C = dx.shape[1]
    for chunk in prange((C + COLUMNS - 1) // COLUMNS):
        first = np.int64(chunk) * COLUMNS
        if fresh:
            dwpe[:, first : first + COLUMNS] = ZERO
        for b in range(B):
            for t in range(T):
                d = dx[b * T + t, first : first + COLUMNS]
                token = dwte[tokens[b, t], first : first + COLUMNS]
                position = dwpe[t, first : first + COLUMNS]
                for c in range(d.size):
                    token[c] += d[c]
                    position[c] += d[c]
