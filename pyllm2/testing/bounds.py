"""What an op may be off by: a float64 evaluation, and a forward error bound with its derivation.

Every function here has the name and arguments of an op of `pyllm2.llama2.ops`, takes float32 (or
float64) arrays, and gives `Bounded(value, error)`: the formula evaluated in float64, and, element
by element, how far a float32 implementation may be from it. Nothing depends on the order of
additions or on fused multiply-add, so the same bound holds for NumPy, BLAS, SIMD, C and a kernel
of yours.

The model of arithmetic (Higham, Accuracy and Stability of Numerical Algorithms, ch. 2 and 3):

    fl(a op b) = (a op b)(1 + δ) + η,   |δ| ≤ u = 2⁻²⁴,   |η| ≤ 2⁻¹⁴⁹ (underflow)
    n roundings in a row:   Π(1 + δ_i) = 1 + θ_n,   |θ_n| ≤ γ_n = n·u / (1 - n·u)

Library functions are given by their worst error in units in the last place; 1 ulp is at most 2u
relative. Second-order terms are covered by SLACK.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array64 = NDArray[np.float64]
Growth = Callable[[float], float]  # how n roundings add up: gamma, or random_walk

U = 2.0**-24
TINY = 2.0**-149  # smallest subnormal
SMALLEST_NORMAL = 2.0**-126
SLACK = 1.001
EPS = float(np.float32(1e-5))
ROPE_BASE = 10000.0

# Worst errors seen, in ulp: NumPy's float32 exp against glibc's 2, glibc's own 1.
EXP_ULP = 3
POW_ULP = 1
COS_ULP = 1

SHARP_UP_TO = 1024
CONFIDENCE = 8.0


class Bounded(NamedTuple):
    """A float64 value and the largest error that a float32 implementation may show."""

    value: Array64
    error: Array64


def gamma(n: float) -> float:
    """γ_n: the relative error of n roundings, and of a sum of n products in any order.

    Rigorous up to n = 1024. Beyond, where n·u grows far past what ever happens, the probabilistic
    form λ·√n·u with λ = 8 (Higham & Mary 2019; Ipsen & Zhou 2019): rounding errors taken as
    independent with mean zero, it fails with probability below 2·exp(-λ²/2) = 3e-14 a sum.
    """
    if n <= SHARP_UP_TO:
        return n * U / (1 - n * U)
    return math.expm1(CONFIDENCE * random_walk(n))


def random_walk(n: float) -> float:
    """√n·u: the standard deviation of n roundings if they are independent with mean zero.

    Not a bound by itself; `model_bound` uses it where it multiplies by a confidence at the end.
    """
    return math.sqrt(n) * U


def embedding(tokens: NDArray[np.integer], table: ArrayLike) -> Bounded:
    """A copy: no error at all."""
    value = np.asarray(table, np.float64)[tokens]
    return Bounded(value, np.zeros_like(value))


def residual(x: ArrayLike, y: ArrayLike) -> Bounded:
    """One addition, one rounding: u·|x + y| (a sum never underflows inexactly)."""
    value = np.asarray(x, np.float64) + np.asarray(y, np.float64)
    return Bounded(value, U * np.abs(value))


def matmul(x: ArrayLike, w: ArrayLike, growth: Growth = gamma) -> Bounded:
    """C products and C - 1 additions: γ_C · Σ|x·w|, and an underflow a product.

    Each term passes at most one rounding of its product and C - 1 of the sum, whatever the order.
    """
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    C = x.shape[-1]
    return Bounded(x @ w.T, growth(C) * (np.abs(x) @ np.abs(w).T) + C * TINY)


def rmsnorm(x: ArrayLike, weight: ArrayLike, growth: Growth = gamma) -> Bounded:
    """Relative: γ of C/2 + 6 roundings.

    The mean of squares has only positive terms: C roundings (products and sum), one for the
    division by C, one for adding epsilon. The root halves a relative error. Then the root itself,
    the reciprocal and two products: four more. Squares that underflow are lost in the epsilon.
    Of the three factors any two may be multiplied first and underflow, and the third scales that.
    """
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    C = x.shape[-1]
    scale = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + EPS)
    value = weight * x * scale
    relative = growth((C + 2) / 2 + 5)
    underflow = TINY * (2 + np.abs(weight) + np.abs(x) + scale)
    return Bounded(value, SLACK * relative * np.abs(value) + underflow)


def rope_tables(S: int, hs: int) -> tuple[Bounded, Bounded]:
    """Cosine and sine of p / 10000^(h/hs); the error of the angle passes through undamped.

    h/hs is rounded once, and the exponential magnifies that by ln(10000)·h/hs; the power is off by
    POW_ULP, the reciprocal and the product with p by one rounding each. |cos'| and |sin'| are at
    most 1, so the angle's absolute error is the table's, plus COS_ULP of a number up to 1.
    """
    h_over_hs = np.arange(0, hs, 2) / hs
    angle = np.arange(S)[:, None] / ROPE_BASE**h_over_hs  # (S, hs/2)
    roundings = math.log(ROPE_BASE) * h_over_hs + 2 * POW_ULP + 2
    error = SLACK * angle * roundings * U + 2 * COS_ULP * U
    return Bounded(np.cos(angle), error), Bounded(np.sin(angle), error)


def rope(x: ArrayLike, cos: ArrayLike, sin: ArrayLike, growth: Growth = gamma) -> Bounded:
    """Two products and one sum: γ_2 · (|a·cos| + |b·sin|), the tables taken as given."""
    x = np.asarray(x, np.float64)
    cos, sin = (np.asarray(t, np.float64)[:, None, :] for t in (cos, sin))
    a, b = x[..., 0::2], x[..., 1::2]
    value, error = np.empty_like(x), np.empty_like(x)
    value[..., 0::2], value[..., 1::2] = a * cos - b * sin, a * sin + b * cos
    error[..., 0::2] = growth(2) * (np.abs(a * cos) + np.abs(b * sin)) + 2 * TINY
    error[..., 1::2] = growth(2) * (np.abs(a * sin) + np.abs(b * cos)) + 2 * TINY
    return Bounded(value, error)


def softmax(x: ArrayLike, x_error: ArrayLike = 0.0, growth: Growth = gamma) -> Bounded:
    """exp of differences to the largest, over their sum.

    With d = x - max: the subtraction is off by u·|d| and by what x itself is off (x_error, up to
    twice: for x and for the maximum), which exp turns into a relative error; exp adds EXP_ULP.
    So e_i is off by ε_i relative, the sum by the p-weighted mean of ε plus γ_C; then one division.
    Terms that underflow are off by a subnormal at most, and the sum is at least 1; exp may flush
    what is no normal number to zero.
    """
    x, x_error = np.asarray(x, np.float64), np.asarray(x_error, np.float64)
    C = x.shape[-1]
    d = x - np.max(x, axis=-1, keepdims=True)
    e = np.exp(d)
    p = e / np.sum(e, axis=-1, keepdims=True)
    visible = np.isfinite(d)
    largest = np.max(np.where(visible, x_error, 0.0), axis=-1, keepdims=True)
    shift = np.where(visible, U * np.abs(d) + x_error + largest, 0.0)
    epsilon = np.expm1(np.minimum(shift, 700.0)) + 2 * EXP_ULP * U
    mean = np.sum(p * epsilon, axis=-1, keepdims=True) + growth(C)
    with np.errstate(divide="ignore"):
        relative = np.where(mean < 1, (1 + epsilon) / np.maximum(1 - mean, 0.0) - 1, np.inf)
    flushed = np.where(e < 2 * SMALLEST_NORMAL, 2 * SMALLEST_NORMAL, 4 * TINY)
    error = np.minimum(SLACK * (relative + U) * p, 1.0) + np.where(visible, flushed, 0.0)
    return Bounded(p, error)


def attention(q: ArrayLike, k: ArrayLike, v: ArrayLike, growth: Growth = gamma) -> Bounded:
    """Scores as a sum of hs products over a root, softmax of those, then a sum of P products.

    Scores: γ of hs + 2 roundings (the root and the division) on Σ|q·k| / √hs. They enter
    `softmax` as x_error. The output is Σ p·v: the errors of p against |v|, and γ_P · Σ p·|v|.
    """
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    T, NH, hs = q.shape
    P, NKV, _ = k.shape
    future = np.arange(P) > np.arange(P - T, P)[:, None]
    value, error = np.empty((T, NH, hs)), np.empty((T, NH, hs))
    for h in range(NH):
        g = h // (NH // NKV)
        scores = np.where(future, -np.inf, q[:, h] @ k[:, g].T / math.sqrt(hs))
        scores_error = growth(hs + 2) * (np.abs(q[:, h]) @ np.abs(k[:, g]).T) / math.sqrt(hs)
        p, p_error = softmax(scores, scores_error + hs * TINY, growth)
        value[:, h] = p @ v[:, g]
        error[:, h] = (p_error + growth(P) * (p + p_error)) @ np.abs(v[:, g]) + P * TINY
    return Bounded(value.reshape(T, NH * hs), SLACK * error.reshape(T, NH * hs))


def swiglu(gate: ArrayLike, up: ArrayLike, growth: Growth = gamma) -> Bounded:
    """Relative: exp's ulp, and one rounding each for 1 + e, its reciprocal, and two products.

    Where the sigmoid is below the smallest normal number (gate under -87) it is off by that
    number at most, exp's overflow to infinity included.
    """
    gate, up = np.asarray(gate, np.float64), np.asarray(up, np.float64)
    with np.errstate(over="ignore"):
        value = gate / (1 + np.exp(-gate)) * up
    relative = growth(2 * EXP_ULP + 4)
    underflow = SMALLEST_NORMAL * np.abs(gate * up) * (gate < -87)
    underflow += TINY * (2 + np.abs(up) + np.abs(gate))
    return Bounded(value, SLACK * relative * np.abs(value) + underflow)


def matmul_q8(
    x: NDArray[np.int8],
    x_scales: ArrayLike,
    w: NDArray[np.int8],
    w_scales: ArrayLike,
    group_size: int,
    growth: Growth = gamma,
) -> Bounded:
    """Exact integers a group; two products with scales and a sum across groups in float32.

    So γ of n_groups + 2 on the sum of absolute terms, for groups below 2²⁴ / 127² = 1040.
    """
    (T, C), OC = x.shape, len(w)
    x_scales, w_scales = np.asarray(x_scales, np.float64), np.asarray(w_scales, np.float64)
    value, total, underflow = np.zeros((T, OC)), np.zeros((T, OC)), np.zeros((T, OC))
    n_groups = C // group_size
    for g in range(n_groups):
        j = slice(g * group_size, (g + 1) * group_size)
        scales = w_scales[(np.arange(OC) * C + g * group_size) // group_size]
        integers = x[:, j].astype(np.int64) @ w[:, j].T.astype(np.int64)
        term = integers * scales * x_scales[:, g : g + 1]
        value += term
        total += np.abs(term)
        # Of the three factors any two may be multiplied first, and the third scales what is lost.
        underflow += TINY * (2 + np.abs(integers) + scales + x_scales[:, g : g + 1])
    return Bounded(value, growth(n_groups + 2) * total + underflow)


class Perturbed:
    """An ops module in float64 that knocks every result up or down by its bound, at random.

    The bounds are those of this file with the random walk √n·u in place of γ_n. Hand it to
    `Llama2`: the spread of the logits over several seeds shows how the errors of all ops add up in
    this model on this input (see `model_bound`).
    Seed None gives the unperturbed float64 evaluation.
    """

    def __init__(self, seed: int | None) -> None:
        self._random = None if seed is None else np.random.default_rng(seed)

    def _knock(self, bounded: Bounded) -> Array64:
        if self._random is None:
            return bounded.value
        signs = self._random.integers(0, 2, bounded.value.shape) * 2 - 1
        return bounded.value + signs * bounded.error

    def _knock_all(self, result: Bounded | tuple[Bounded, ...]) -> Any:
        """Of an op with one result, or with several."""
        if isinstance(result, Bounded):
            return self._knock(result)
        return tuple(map(self._knock, result))

    def rope_tables(self, S: int, hs: int) -> tuple[Array64, Array64]:
        cos, sin = rope_tables(S, hs)
        return self._knock(cos), self._knock(sin)

    def __getattr__(self, name: str) -> Any:
        if name in {"embedding", "residual"}:
            bound = globals()[name]
            return lambda *arguments: self._knock(bound(*arguments))
        if name in {"matmul", "rmsnorm", "rope", "attention", "swiglu"}:
            bound = globals()[name]
            return lambda *arguments: self._knock(bound(*arguments, growth=random_walk))
        raise AttributeError(name)


TRIALS = 8


def model_bound(model: Any, tokens: NDArray[np.integer]) -> Bounded:
    """Logits of a `Llama2` after each token in float64, and what a float32 backend may be off by.

    A whole model is too deep for worst-case arithmetic: bounds multiplied through its layers say
    nothing. So the first-order error of a logit is written as Σ J_k·ε_k over all results k of all
    ops. For independent roundings of mean zero ε_k has a standard deviation of at most b_k, the
    op's bound with √n·u for γ_n, and the logit's error σ² = Σ (J_k·b_k)², which `Perturbed`
    estimates by random signs over TRIALS runs of the model. The tails are those of a sum of
    bounded independent terms, P(|error| > λσ) ≤ 2·exp(-λ²/2) (Hoeffding); λ = CONFIDENCE = 8
    makes that 3e-14. σ is taken as the largest of a row of logits, so that its estimate from few
    trials holds.

    tokens: (T,)   ->   value (T, V), error (T, 1)
    """
    value = _logits(model, tokens, None)
    squares = sum((_logits(model, tokens, seed) - value) ** 2 for seed in range(TRIALS))
    sigma = np.sqrt(np.max(np.asarray(squares), axis=-1, keepdims=True) / TRIALS)
    return Bounded(value, CONFIDENCE * sigma + TINY)


def _logits(model: Any, tokens: NDArray[np.integer], seed: int | None) -> Array64:
    judge = type(model)(model.config, model.weights, Perturbed(seed))
    logits: Array64 = judge.forward(tokens, 0, judge.new_cache(len(tokens)))
    return logits
