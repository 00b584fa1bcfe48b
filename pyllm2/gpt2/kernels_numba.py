"""Everything in a training step that is no matrix product, several ops in one pass over memory.

x, out and the like are (N, C) with N = B·T rows, float32. Rows or columns are shared between
threads, and sums are never split between them: the bits do not depend on the number of threads.
No compiled code of another file is called, because Numba's cache would not notice its edits.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit, prange

FINGERPRINT = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]

ZERO, ONE, TWO = (np.float32(x) for x in (0, 1, 2))
EPS = np.float32(1e-5)
FLOOR = np.float32(-10000)  # where llm.c begins its search for the largest score
GELU_CUBIC = np.float32(0.044715)
GELU_CUBIC_3 = np.float32(3) * GELU_CUBIC
GELU_SCALE = np.sqrt(np.float32(2 / np.pi))  # one ulp below the float32 nearest to √(2/π)
COLUMNS = 64  # that a thread sums at a time
LANES = 32  # largest values sought side by side: one alone would wait for each comparison

LOG2_E = np.float32(1 / math.log(2))
LN2_HIGH = np.float32(0.693359375)  # ln 2 in two parts, the first exact
LN2_LOW = np.float32(math.log(2) - 0.693359375)
E2, E3, E4, E5, E6 = (np.float32(1 / math.factorial(n)) for n in (2, 3, 4, 5, 6))
SMALLEST, LARGEST, INFINITY = np.float32(-87.33), np.float32(88.72), np.float32(math.inf)


def _kernel(*fastmath: str, parallel: bool = False) -> Callable[[Any], Any]:
    """njit, kept on disk where that is possible. Not nnan or ninf: a NaN must arrive."""

    def decorate(function: Any) -> Any:
        flags: dict[str, Any] = {
            "fastmath": set(fastmath), "parallel": parallel, "error_model": "numpy",
        }  # fmt: skip
        try:
            return njit(cache=True, **flags)(function)
        except RuntimeError:  # "cannot cache function": no folder can be written
            return njit(**flags)(function)

    return decorate


# ---- one number -------------------------------------------------------------------------------


@_kernel()
def _power_of_two(n):
    """2^n, n from -126 to 127, by its exponent bits."""
    return np.int32((n + np.int32(127)) << np.int32(23)).view(np.float32)


@_kernel("contract")
def exp(x):
    """e^x within an ulp or so: x = n·ln 2 + r, a polynomial in r, n put into the exponent.

    Below the smallest normal result it gives 0, above the largest infinity; NaN stays NaN.
    """
    within = x if x > SMALLEST else SMALLEST  # of NaN too: no number would be its exponent
    n = np.rint((within if within < LARGEST else LARGEST) * LOG2_E)
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    y = ((((E6 * r + E5) * r + E4) * r + E3) * r + E2) * r * r + r + ONE
    half = np.int32(np.int32(n) >> np.int32(1))  # 2^n in two parts: 2^128 is no float32
    y = y * _power_of_two(half) * _power_of_two(np.int32(np.int32(n) - half))
    y = INFINITY if x > LARGEST else y
    return ZERO if x < SMALLEST else y


@_kernel("contract")
def _gelu(x):
    """x/2 · (1 + tanh a) = x / (1 + exp(-2a)), without the cancellation."""
    a = GELU_SCALE * (x + GELU_CUBIC * x * x * x)
    return x / (ONE + exp(-TWO * a))


@_kernel("contract")
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


@_kernel("contract", "reassoc")
def sum_of(x):
    total = ZERO
    for i in range(x.size):
        total += x[i]
    return total


@_kernel("contract", "reassoc")
def _squares(x, mean):
    total = ZERO
    for i in range(x.size):
        total += (x[i] - mean) * (x[i] - mean)
    return total


@_kernel("contract")
def largest_of(x):
    """The largest from -10000 upwards; NaN is passed over."""
    found = np.full(LANES, FLOOR)
    whole = x.size // LANES * LANES
    for start in range(0, whole, LANES):
        piece = x[start : start + LANES]
        for j in range(LANES):
            found[j] = piece[j] if piece[j] > found[j] else found[j]
    largest = found[0]
    for j in range(1, LANES):
        largest = found[j] if found[j] > largest else largest
    for i in range(whole, x.size):
        largest = x[i] if x[i] > largest else largest
    return largest


@_kernel("contract")
def exp_row(x, largest):
    """x = exp(x - largest), in place."""
    for i in range(x.size):
        x[i] = exp(x[i] - largest)


@_kernel("contract")
def _normalize(x, w, b, out):
    """Mean and 1/deviation of a row, and the row normalised, scaled and shifted."""
    C = np.float32(x.size)
    mean = sum_of(x) / C
    rstd = ONE / np.float32(math.sqrt(_squares(x, mean) / C + EPS))
    for c in range(x.size):
        out[c] = rstd * (x[c] - mean) * w[c] + b[c]
    return mean, rstd


@_kernel("contract", "reassoc")
def _projections(dout, x, w, mean, rstd):
    """Means over C of g and g·n, with g = dout·w and n = (x - mean)·rstd."""
    along_one, along_n = ZERO, ZERO
    for c in range(x.size):
        g = dout[c] * w[c]
        along_one += g
        along_n += g * ((x[c] - mean) * rstd)
    return along_one / np.float32(x.size), along_n / np.float32(x.size)


# ---- forward ----------------------------------------------------------------------------------


@_kernel("contract", parallel=True)
def encoder_forward(tokens, wte, wpe, out):
    """out[n] = wte[tokens[n]] + wpe[n mod T]. tokens: (B, T)"""
    B, T = tokens.shape
    for n in prange(B * T):
        b, t = n // T, n % T
        token, position, row = wte[tokens[b, t]], wpe[t], out[n]
        for c in range(row.size):
            row[c] = token[c] + position[c]


@_kernel("contract", parallel=True)
def layernorm_forward(x, w, b, out, mean, rstd):
    for n in prange(len(x)):
        mean[n], rstd[n] = _normalize(x[n], w, b, out[n])


@_kernel("contract", parallel=True)
def residual_layernorm_forward(x, branch, total, w, b, out, mean, rstd):
    """total = x + branch, and its norm."""
    for n in prange(len(x)):
        left, right, row = x[n], branch[n], total[n]
        for c in range(row.size):
            row[c] = left[c] + right[c]
        mean[n], rstd[n] = _normalize(row, w, b, out[n])


@_kernel("contract", parallel=True)
def gelu_forward(x, out):
    for n in prange(len(x)):
        row, result = x[n], out[n]
        for c in range(row.size):
            result[c] = _gelu(row[c])


@_kernel("contract", parallel=True)
def crossentropy(logits, targets, V, losses, dloss, gradient):
    """Loss of each row; with `gradient`, logits become dloss · d(loss)/d(logits), padding 0.

    Without it they become exp(logits - largest). Probabilities exist one row at a time.
    """
    for n in prange(len(logits)):
        row, target = logits[n, :V], targets[n]
        exp_row(row, largest_of(row))
        total = sum_of(row)
        losses[n] = -math.log(row[target] / total)
        if gradient:
            for i in range(row.size):
                row[i] = row[i] / total * dloss
            row[target] = row[target] - dloss
            logits[n, V:] = ZERO


# ---- backward ---------------------------------------------------------------------------------


@_kernel("contract", parallel=True)
def layernorm_backward(dout, x, w, mean, rstd, dx, fresh):
    """dx gets the gradient through a norm: written if fresh, else added."""
    for n in prange(len(x)):
        m, s, d, row, result = mean[n], rstd[n], dout[n], x[n], dx[n]
        along_one, along_n = _projections(d, row, w, m, s)
        if fresh:
            for c in range(row.size):
                result[c] = (d[c] * w[c] - along_one - (row[c] - m) * s * along_n) * s
        else:
            for c in range(row.size):
                result[c] += (d[c] * w[c] - along_one - (row[c] - m) * s * along_n) * s


@_kernel("contract", parallel=True)
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


@_kernel("contract", parallel=True)
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


@_kernel("contract", parallel=True)
def gelu_backward(dout, x):
    """dout becomes dout · gelu'(x)."""
    for n in prange(len(x)):
        row, d = x[n], dout[n]
        for c in range(row.size):
            d[c] *= _gelu_slope(row[c])


@_kernel("contract", parallel=True)
def encoder_backward(dx, tokens, dwte, dwpe, fresh):
    """Adds dx to the rows of dwte that it was looked up from; dwpe is cleared first if fresh.

    Columns are shared out: a token that occurs twice is added twice, in order.
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
