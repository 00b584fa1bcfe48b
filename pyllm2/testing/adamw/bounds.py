"""Error bounds of the optimizer's ops (`pyllm2.training.ops`): float64 values and errors."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from pyllm2.testing.bounds import POW_ULP, SLACK, TINY, Bounded, U, gamma

U64 = 2.0**-53


def adamw_update(
    w: ArrayLike,
    dw: ArrayLike,
    m: ArrayLike,
    v: ArrayLike,
    t: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    scale: float = 1.0,
) -> tuple[Bounded, Bounded, Bounded]:
    """The new w, m and v; hyperparameters are rounded to float32 first.

    m: at most four roundings per term (1 - β1, scale, product, sum), γ_4 of the absolute terms.
    v: at most six, and all terms are positive.
    A correction c = 1 - βᵗ has one rounding and POW_ULP of βᵗ, which is large relative to c for
    small t. The quotient m̂ / (√v̂ + ε) is bounded by intervals, because √ has an infinite slope at
    0: the extremes of v̂ and of m̂, and four roundings (root, sum, quotient, one for a reciprocal).
    Decay, rate and subtraction: γ_4 of the absolute terms.
    """
    w, dw, m, v = (np.asarray(a, np.float64) for a in (w, dw, m, v))
    lr, b1, b2, eps, decay, scale = (
        float(np.float32(h)) for h in (lr, beta1, beta2, eps, weight_decay, scale)
    )
    g = scale * dw
    new_m = b1 * m + (1 - b1) * g
    e_m = gamma(4) * (np.abs(b1 * m) + np.abs((1 - b1) * g)) + TINY * 4
    new_v = b2 * v + (1 - b2) * g * g
    e_v = gamma(6) * new_v + TINY * (3 + 3 * np.abs(g))

    c1, c2 = 1 - b1**t, 1 - b2**t
    e_c1, e_c2 = (U * c + 2 * POW_ULP * U * b**t for c, b in ((c1, b1), (c2, b2)))
    m_hat, v_hat = new_m / c1, new_v / c2
    e_m_hat = (np.abs(new_m) + e_m) / (c1 - e_c1) * (1 + gamma(2)) - np.abs(m_hat) + TINY
    least = np.sqrt(np.maximum((new_v - e_v) / (c2 + e_c2) * (1 - gamma(2)) - TINY, 0)) + eps
    most = np.sqrt((new_v + e_v) / (c2 - e_c2) * (1 + gamma(2)) + TINY) + eps
    step = m_hat / (np.sqrt(v_hat) + eps)
    largest = (np.abs(m_hat) + e_m_hat) / least
    smallest = np.maximum(np.abs(m_hat) - e_m_hat, 0) / most
    e_step = np.maximum(largest - np.abs(step), np.abs(step) - smallest)
    e_step += np.where(e_m_hat > np.abs(m_hat), e_m_hat / least, 0) + gamma(4) * largest

    new_w = w - lr * (step + decay * w)
    terms = lr * (np.abs(step) + e_step + decay * np.abs(w))
    e_w = lr * e_step + gamma(4) * terms + U * np.abs(new_w) + TINY * (2 + 2 * lr)
    return Bounded(new_w, SLACK * e_w), Bounded(new_m, SLACK * e_m), Bounded(new_v, SLACK * e_v)


def global_norm(dw: ArrayLike) -> Bounded:
    """Summed in float64: squares of float32 are exact, the sum has n roundings, the root one."""
    dw = np.asarray(dw, np.float64)
    value = math.sqrt(math.fsum(dw * dw))
    return Bounded(np.array(value), np.array((len(dw) / 2 + 3) * U64 * value))
