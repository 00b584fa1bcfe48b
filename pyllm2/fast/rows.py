"""Device functions on one row of float32 that both families use."""

from __future__ import annotations

import math

import numpy as np

from pyllm2.compiling.numba_build import device

ZERO, ONE = np.float32(0), np.float32(1)
EPS = np.float32(1e-5)
INFINITY = np.float32(math.inf)
COLUMNS = 64  # that a thread sums at a time, where rows are added up
LANES = 32  # candidates for the largest value: one alone would wait for each comparison

LOG2_E = np.float32(1 / math.log(2))
LN2_HIGH = np.float32(0.693359375)  # ln 2 in two parts, the first exact
LN2_LOW = np.float32(math.log(2) - 0.693359375)
E2, E3, E4, E5, E6 = (np.float32(1 / math.factorial(n)) for n in (2, 3, 4, 5, 6))
SMALLEST, LARGEST = np.float32(-87.33), np.float32(88.72)


@device()
def _power_of_two(n):
    """2^n, n from -126 to 127, by its exponent bits."""
    return np.int32((n + np.int32(127)) << np.int32(23)).view(np.float32)


@device("contract")
def exp(x):
    """e^x within about 1 ulp: x = n·ln 2 + r, a polynomial in r, and n put into the exponent.

    Below -87.33, where results are no normal numbers, it is 0; above 88.72, just below where they
    exceed float32, infinity; NaN stays NaN.
    """
    within = x if x > SMALLEST else SMALLEST  # NaN too: no number would be its exponent
    n = np.rint((within if within < LARGEST else LARGEST) * LOG2_E)
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    y = ((((E6 * r + E5) * r + E4) * r + E3) * r + E2) * r * r + r + ONE
    half = np.int32(np.int32(n) >> np.int32(1))  # 2^n in two factors: 2^128 is no float32
    y = y * _power_of_two(half) * _power_of_two(np.int32(np.int32(n) - half))
    y = INFINITY if x > LARGEST else y
    return ZERO if x < SMALLEST else y


@device("contract", "reassoc")
def sum_of(x):
    total = ZERO
    for i in range(x.size):
        total += x[i]
    return total


@device("contract")
def largest_of(x, floor):
    """The largest element above `floor`, else `floor`; NaN is passed over."""
    found = np.full(LANES, floor)
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


@device("contract")
def exp_row(x, largest):
    """x = exp(x - largest), in place."""
    for i in range(x.size):
        x[i] = exp(x[i] - largest)


@device("contract")
def scale_probabilities(row, total, scale):
    """row = row / total · scale, in place."""
    for i in range(row.size):
        row[i] = row[i] / total * scale
