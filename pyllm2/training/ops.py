"""The specification of AdamW (Loshchilov & Hutter 2019), as llm.c's CPU trainer computes it.

Rivals (`ops_numba`, `ops_c`) have the same names and argument order. Arrays are flat.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

ONE = np.float32(1)
CHUNK = 2**16  # elements per chunk: the temporaries of one chunk stay in the cache


def adamw_update(
    w: Array,
    dw: Array,
    m: Array,
    v: Array,
    t: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    scale: float = 1.0,
) -> None:
    """One AdamW step. Writes w, m and v.

        g = scale · dw          m = β1 m + (1 - β1) g          v = β2 v + (1 - β2) g²
        w = w - lr · ( (m / (1 - β1ᵗ)) / (√(v / (1 - β2ᵗ)) + ε) + weight_decay · w )

    w, dw, m, v: (n,) float32, m and v zero before the first step   t: 1, 2, 3, …
    Hyperparameters are rounded to float32 first. m and v start at zero and are biased towards it
    by the factors 1 - βᵗ; the divisions correct that. Weight decay acts on w, not through g.
    scale: factor on the gradient, from clipping.
    """
    lr_, b1, b2, eps_, decay, scale_ = map(np.float32, (lr, beta1, beta2, eps, weight_decay, scale))
    correction1 = ONE - b1 ** np.float32(t)
    correction2 = ONE - b2 ** np.float32(t)
    for start in range(0, len(w), CHUNK):
        i = slice(start, start + CHUNK)
        g = scale_ * dw[i]
        m[i] = b1 * m[i] + (ONE - b1) * g
        v[i] = b2 * v[i] + (ONE - b2) * g * g
        m_hat, v_hat = m[i] / correction1, v[i] / correction2
        w[i] -= lr_ * (m_hat / (np.sqrt(v_hat) + eps_) + decay * w[i])


def global_norm(dw: Array) -> float:
    """Euclidean norm of the gradient of all parameters, √Σ dw², summed in float64.

    dw: (n,) float32   ->   float
    """
    total = 0.0
    for start in range(0, len(dw), CHUNK):
        piece = dw[start : start + CHUNK].astype(np.float64)
        total += float(piece @ piece)
    return math.sqrt(total)
