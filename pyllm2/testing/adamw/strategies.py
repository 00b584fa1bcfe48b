"""hypothesis strategies for the optimizer's ops, `pyllm2.training.ops`."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from pyllm2.testing.strategies import Array, Draw, arrays, sizes


@st.composite
def adamw_update_inputs(draw: Draw) -> tuple[Any, ...]:
    """Any step number; gradients of zeros, or scaled down by clipping; rates up to 10.

    In the first step the moments are zero, as in training.
    """
    n = draw(sizes(200))
    w, dw, m, v = (draw(arrays((n,))) for _ in range(4))
    if draw(st.integers(0, 5)) == 0:
        dw[...] = 0
    t = draw(st.one_of(st.just(1), st.integers(1, 10), st.integers(1, 10000)))
    if t == 1:
        m[...], v[...] = 0, 0
    lr = draw(st.sampled_from([0.0, 1e-8, 1e-4, 3e-4, 0.1, 10.0]))
    beta1 = draw(st.sampled_from([0.9, 0.0, 0.5, 0.95]))
    beta2 = draw(st.sampled_from([0.999, 0.0, 0.95, 0.99]))
    eps = draw(st.sampled_from([1e-8, 1e-3]))
    weight_decay = draw(st.sampled_from([0.0, 0.01, 0.1]))
    scale = draw(st.one_of(st.just(1.0), st.floats(0, 1)))
    return w, dw, m, np.abs(v), t, lr, beta1, beta2, eps, weight_decay, scale


@st.composite
def global_norm_inputs(draw: Draw) -> tuple[Array]:
    return (draw(arrays((draw(sizes(300)),))),)
