"""hypothesis strategies for GPT-2: op inputs, whole small models, batches."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from pyllm2.backends import Engine
from pyllm2.gpt2 import ops as specification
from pyllm2.gpt2.config import GPT2Config
from pyllm2.gpt2.model import GPT2
from pyllm2.gpt2.training import MATRICES, TrainableGPT2
from pyllm2.parameters import Parameters
from pyllm2.testing.strategies import (
    Array,
    Draw,
    Tokens,
    arrays,
    ids,
    mild,
    numbers,
    probabilities,
    repeated,
    sizes,
)

NUMPY = Engine(specification)


@st.composite
def batch_shapes(draw: Draw, most_positions: int = 9) -> tuple[int, int]:
    """(B, T); a single position and numbers of rows that 8 divides come up often."""
    if draw(st.booleans()):
        return draw(st.sampled_from([(1, 1), (2, 4), (8, 1)]))
    return draw(st.integers(1, 3)), draw(st.integers(1, most_positions))


@st.composite
def encoder_forward_inputs(draw: Draw) -> tuple[Any, ...]:
    (B, T), C, V = draw(batch_shapes()), draw(sizes(40)), draw(sizes(12))
    S, padding = T + draw(st.integers(0, 3)), draw(st.integers(0, 3))
    return draw(ids((B, T), V)), draw(arrays((V + padding, C))), draw(arrays((S, C)))


@st.composite
def encoder_backward_inputs(draw: Draw) -> tuple[Any, ...]:
    tokens, wte, wpe = draw(encoder_forward_inputs())
    return draw(arrays((*tokens.shape, wte.shape[1]))), tokens, wte, wpe


@st.composite
def layernorm_forward_inputs(draw: Draw) -> tuple[Array, Array, Array]:
    """Any rows, rows with a large offset, nearly constant or constant rows."""
    (B, T), C = draw(batch_shapes()), draw(sizes(150))
    x = draw(arrays((B, T, C)))
    offset, spread = draw(st.sampled_from([(0, 1), (1000, 1), (3, 1e-3), (-7, 0), (0, 0)]))
    x = (np.float32(offset) + np.float32(spread) * x).astype(np.float32)
    return x, draw(arrays((C,))), draw(arrays((C,)))


@st.composite
def layernorm_backward_inputs(draw: Draw) -> tuple[Array, ...]:
    x, w, b = draw(layernorm_forward_inputs())
    _, mean, rstd = specification.layernorm_forward(x, w, b)
    return draw(arrays(x.shape)), x, w, mean, rstd


@st.composite
def matmul_forward_inputs(draw: Draw) -> tuple[Array, Array, Array | None]:
    """Often a square weight, for which a transposed product has the right shape too."""
    (B, T), C = draw(batch_shapes()), draw(sizes(100))
    OC = C if draw(st.integers(0, 3)) == 0 else draw(sizes(70))
    b = draw(arrays((OC,))) if draw(st.booleans()) else None
    return draw(arrays((B, T, C))), draw(arrays((OC, C))), b


@st.composite
def matmul_backward_inputs(draw: Draw) -> tuple[Array, Array, Array]:
    x, w, _ = draw(matmul_forward_inputs())
    return draw(arrays((*x.shape[:2], len(w)))), x, w


@st.composite
def attention_forward_inputs(draw: Draw) -> tuple[Array, int, int]:
    """(qkv, NH, first), with scores up to 1, up to a few hundred, or a row far below -10000."""
    (B, P), NH, hs = draw(batch_shapes()), draw(st.integers(1, 3)), draw(sizes(20))
    C = NH * hs
    limit = draw(st.sampled_from([1.0, 17.0]))
    qk = np.clip(draw(arrays((B, P, 2 * C), mild)), -limit, limit)
    qkv = np.concatenate([qk, draw(arrays((B, P, C)))], axis=-1)
    if draw(st.integers(0, 7)) == 0:
        below = draw(st.integers(0, P - 1))  # this query times any key is -40000 per channel
        qkv[:, below, :C], qkv[:, :, C : 2 * C] = -200, 200
    first = draw(st.integers(0, P - 1)) if draw(st.booleans()) else 0
    return qkv, NH, first


@st.composite
def attention_backward_inputs(draw: Draw) -> tuple[Array, Array, Array]:
    qkv, NH, _ = draw(attention_forward_inputs())
    _, att = specification.attention_forward(qkv, NH)
    B, T, C3 = qkv.shape
    return draw(arrays((B, T, C3 // 3))), qkv, att


@st.composite
def gelu_forward_inputs(draw: Draw) -> tuple[Array]:
    """Numbers around 0, and ±60, where cosh overflows."""
    (B, T), F = draw(batch_shapes()), draw(sizes(70))
    elements = st.one_of(st.floats(-12, 12, width=32), numbers, st.sampled_from([60.0, -60.0]))
    return (draw(arrays((B, T, F), elements)),)


@st.composite
def gelu_backward_inputs(draw: Draw) -> tuple[Array, Array]:
    (x,) = draw(gelu_forward_inputs())
    return draw(arrays(x.shape)), x


@st.composite
def residual_forward_inputs(draw: Draw) -> tuple[Array, Array]:
    shape = (*draw(batch_shapes()), draw(sizes(60)))
    return draw(arrays(shape)), draw(arrays(shape))


@st.composite
def residual_backward_inputs(draw: Draw) -> tuple[Array]:
    return (draw(arrays((*draw(batch_shapes()), draw(sizes(60))))),)


@st.composite
def softmax_forward_inputs(draw: Draw) -> tuple[Array, int]:
    """Padding as large as other logits; sometimes all logits of a row far below -10000."""
    (B, T), V, padding = draw(batch_shapes()), draw(sizes(60)), draw(st.integers(0, 5))
    elements = st.one_of(st.floats(-30, 30, width=32), numbers)
    logits = draw(arrays((B, T, V + padding), elements))
    return logits + np.float32(draw(st.sampled_from([0, 0, 0, -10000, -20200]))), V


@st.composite
def crossentropy_forward_inputs(draw: Draw) -> tuple[Array, Tokens]:
    (B, T), V, padding = draw(batch_shapes()), draw(sizes(60)), draw(st.integers(0, 5))
    probs = draw(repeated((B, T, V + padding), probabilities))
    return probs, draw(ids((B, T), V))


@st.composite
def crossentropy_softmax_backward_inputs(draw: Draw) -> tuple[Any, ...]:
    """The padding of probs is not 0, so that a backward must ignore it."""
    probs, targets = draw(crossentropy_forward_inputs())
    V = int(targets.max()) + 1 + draw(st.integers(0, probs.shape[-1] - 1 - int(targets.max())))
    return draw(arrays(targets.shape)), probs, targets, V


# ---- whole models ---------------------------------------------------------------------------


@st.composite
def configs(draw: Draw) -> GPT2Config:
    """Small models of every shape: one head, head size 1, a vocabulary with or without padding.

    Mostly four channels or more: layernorm of two channels is ±1, with almost no gradient.
    """
    NH, V = draw(st.integers(1, 3)), draw(st.integers(1, 30))
    hs = draw(st.one_of(st.integers(4, 9), st.integers(4, 9), st.integers(1, 3)))
    return GPT2Config(
        max_seq_len=draw(st.integers(1, 10)),
        vocab_size=V,
        num_layers=draw(st.integers(1, 2)),
        num_heads=NH,
        channels=NH * hs,
        padded_vocab_size=V + draw(st.sampled_from([0, 1, 7])),
    )


def random_parameters(config: GPT2Config, seed: int) -> Parameters:
    """Normal deviates: activations near 1, norm weights around 1, padding rows like the others."""
    random = np.random.default_rng(seed)
    p = Parameters(config.shapes())
    for name, a in p.items():
        scale = 1.0 if name in ("wte", "wpe") else a.shape[-1] ** -0.5 if name in MATRICES else 0.2
        mean = 1.0 if name in ("ln1w", "ln2w", "lnfw") else 0.0
        a[...] = random.normal(mean, scale, a.shape)
    return p


@st.composite
def models(draw: Draw, engine: Engine = NUMPY) -> GPT2:
    """A random model on an engine, token by token."""
    config = draw(configs())
    return GPT2(config, random_parameters(config, draw(st.integers(0, 2**32 - 1))), engine)


@st.composite
def trainable_models(draw: Draw, engine: Engine = NUMPY) -> TrainableGPT2:
    """A random model on an engine."""
    config = draw(configs())
    return TrainableGPT2(config, random_parameters(config, draw(st.integers(0, 2**32 - 1))), engine)


@st.composite
def batches(draw: Draw, config: GPT2Config) -> tuple[Tokens, Tokens]:
    """Tokens and targets, (B, T), T up to the context length, with repeats."""
    B, T = draw(st.integers(1, 3)), draw(st.integers(1, config.max_seq_len))
    return draw(ids((B, T), config.vocab_size)), draw(ids((B, T), config.vocab_size))
