"""The arithmetic behind every error bound: rounding model, library functions, sums of products.

Each model's `bounds.py` has one function per op, with the op's name and arguments. It returns
`Bounded(value, error)`: the formula evaluated in float64 and, per element, the largest error that a
correct float32 implementation can show. No bound depends on the order of additions or on fused
multiply-add, so it holds for NumPy, BLAS, SIMD and C alike.

The model of arithmetic (Higham, Accuracy and Stability of Numerical Algorithms, ch. 2 and 3):

    fl(a op b) = (a op b)(1 + δ) + η,   |δ| ≤ u = 2⁻²⁴,   |η| ≤ 2⁻¹⁴⁹ (underflow)
    n roundings in a row:   Π(1 + δ_i) = 1 + θ_n,   |θ_n| ≤ γ_n = n·u / (1 - n·u)

A library function counts with its worst error in units in the last place; 1 ulp is at most 2u
relative. SLACK covers second-order terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array64 = NDArray[np.float64]
Growth = Callable[[float], float]  # how n roundings add up: gamma, or random_walk

U = 2.0**-24  # unit roundoff of float32
TINY = 2.0**-149  # smallest subnormal
SMALLEST_NORMAL = 2.0**-126
SLACK = 1.001

# Worst errors measured, in ulp. NumPy's float32: exp 2, cosh 2.5, log 3.9, tanh 1.4; glibc's exp 1.
EXP_ULP = 3
POW_ULP = 1
COS_ULP = 1
TANH_ULP = 2
COSH_ULP = 3
LOG_ULP = 4

SHARP_UP_TO = 1024
CONFIDENCE = 8.0


class Bounded(NamedTuple):
    """A float64 value and the largest error that a float32 implementation may show."""

    value: Array64
    error: Array64


def gamma(n: float) -> float:
    """γ_n: the relative error of n roundings, and of a sum of n products in any order.

    Rigorous up to n = 1024. Beyond that the worst case n·u is far larger than any real error, and
    the probabilistic form λ·√n·u with λ = 8 is used (Higham & Mary 2019; Ipsen & Zhou 2019): for
    independent rounding errors of mean zero it fails with probability below 2·exp(-λ²/2) = 3e-14
    per sum.
    """
    if n <= SHARP_UP_TO:
        return n * U / (1 - n * U)
    return math.expm1(CONFIDENCE * random_walk(n))


def random_walk(n: float) -> float:
    """√n·u: the standard deviation of n independent roundings of mean zero.

    Not a bound by itself: `model_bound` multiplies the result by a confidence.
    """
    return math.sqrt(n) * U


def growths(counts: NDArray[np.integer], growth: Growth) -> Array64:
    """`growth` of every count; 0 for a count of 0."""
    table = np.array([0.0] + [growth(n) for n in range(1, int(counts.max(initial=0)) + 1)])
    return table[counts]


def float64(*arrays: ArrayLike) -> list[Array64]:
    return [np.asarray(a, np.float64) for a in arrays]


def product(a: Array64, b: Array64, growth: Growth) -> Bounded:
    """The matrix product a @ b, sums of n products: γ_n · Σ|a·b|, and one underflow per product.

    Each term passes one rounding of its product and at most n - 1 of the sum, in any order.
    """
    n = a.shape[-1]
    return Bounded(a @ b, growth(n) * (np.abs(a) @ np.abs(b)) + n * TINY)


def addition(a: Array64, b: Array64) -> Bounded:
    """One addition, one rounding: u·|a + b|. A sum never underflows inexactly."""
    return Bounded(a + b, U * np.abs(a + b))


def exact(value: Array64) -> Bounded:
    """A copy: no error at all."""
    return Bounded(value, np.zeros_like(value))
