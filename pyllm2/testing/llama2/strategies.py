"""hypothesis strategies for Llama-2: op inputs, whole small models, batches.

In training, N rows are B sequences of T positions.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from pyllm2 import backends
from pyllm2.formats.gguf_blocks import HALVES, PACKED, TYPES
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.initial import random_weights
from pyllm2.llama2.model import Llama2
from pyllm2.llama2.rope_scaling import RopeScaling
from pyllm2.llama2.training import TrainableLlama2
from pyllm2.parameters import Packed, PackedLayers, Parameters
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

specification = backends.ops("numpy", package="llama2")
NUMPY = backends.Engine(specification)

epsilons = st.sampled_from([1e-5, 1e-6, 2.0**-20, 0.25])  # of norms: run.c's first
bases = st.sampled_from([10000.0, 5e5, 1e6, 100.0])  # of RoPE: run.c's first


@st.composite
def embedding_inputs(draw: Draw) -> tuple[NDArray[np.int64], Array]:
    T, V, C = draw(sizes(8)), draw(sizes(40)), draw(sizes(40))
    return draw(ids((T,), V)), draw(arrays((V, C)))


@st.composite
def embedding_backward_inputs(draw: Draw) -> tuple[Array, Tokens, Array]:
    N, V, C = draw(sizes(20)), draw(sizes(12)), draw(sizes(40))
    return draw(arrays((N, C))), draw(ids((N,), V)), draw(arrays((V, C)))


@st.composite
def rmsnorm_inputs(draw: Draw) -> tuple[Array, Array, float]:
    T, C = draw(sizes(5)), draw(sizes(300))
    return draw(arrays((T, C))), draw(arrays((C,))), draw(epsilons)


@st.composite
def rmsnorm_backward_inputs(draw: Draw) -> tuple[Array, Array, Array]:
    """Any rows, rows small relative to epsilon, or zeros."""
    x, weight, _ = draw(rmsnorm_inputs())
    x *= np.float32(draw(st.sampled_from([1, 1, 1, 1e-3, 0])))
    return draw(arrays(x.shape)), x, weight


@st.composite
def matmul_inputs(draw: Draw) -> tuple[Array, Array, Array | None]:
    T, C, OC = draw(sizes(20)), draw(sizes(300)), draw(sizes(70))
    b = draw(arrays((OC,))) if draw(st.booleans()) else None
    return draw(arrays((T, C))), draw(arrays((OC, C))), b


@st.composite
def matmul_backward_inputs(draw: Draw) -> tuple[Array, Array, Array]:
    """Often a square weight, for which a transposed product has the right shape too."""
    N, C = draw(sizes(40)), draw(sizes(100))
    OC = C if draw(st.integers(0, 3)) == 0 else draw(sizes(70))
    return draw(arrays((N, OC))), draw(arrays((N, C))), draw(arrays((OC, C)))


@st.composite
def rope_tables_inputs(draw: Draw) -> tuple[int, int, float, Array | None, float]:
    S, pairs, base = draw(st.integers(1, 600)), draw(st.integers(1, 64)), draw(bases)
    divisors = np.float32(0.5) + np.abs(draw(arrays((pairs,), mild)))
    scale = draw(st.sampled_from([1.0, 1.0, 0.5, 1.2079441]))
    return S, 2 * pairs, base, draw(st.sampled_from([None, divisors])), scale


@st.composite
def rope_inputs(draw: Draw) -> tuple[Array, Array, Array]:
    T, N, pairs = draw(sizes(6)), draw(sizes(6)), draw(sizes(24))
    pos = draw(st.integers(0, 500))
    cos, sin = specification.rope_tables(pos + T, 2 * pairs)
    return draw(arrays((T, N, 2 * pairs))), cos[pos:], sin[pos:]


@st.composite
def softmax_inputs(draw: Draw) -> tuple[Array]:
    T, C = draw(sizes(5)), draw(sizes(100))
    return (draw(arrays((T, C), st.one_of(numbers, st.floats(-30, 30, width=32)))),)


@st.composite
def attention_inputs(draw: Draw) -> tuple[Array, Array, Array, int]:
    """(q, k, v, window), scores below a few hundred; beyond that one weight is 1."""
    T, past = draw(sizes(6)), draw(st.integers(0, 20))
    NKV, mul, hs = draw(st.integers(1, 3)), draw(st.integers(1, 3)), 2 * draw(sizes(16))
    P = past + T
    q = draw(arrays((T, NKV * mul, hs), mild))
    k = draw(arrays((P, NKV, hs), mild))
    v = draw(arrays((P, NKV, hs)))
    limit = np.float32(math.sqrt(300.0))
    window = draw(st.one_of(st.just(0), st.integers(1, P + 1)))
    return np.clip(q, -limit, limit), np.clip(k, -limit, limit), v, window


@st.composite
def masks(draw: Draw, shape: tuple[int, ...]) -> Array | None:
    """`keep` of `dropout`: None, a mask, or zeros."""
    p = draw(st.sampled_from([0.0, 0.1, 0.5, 0.75, 1.0]))
    if p == 0:
        return None
    scale = np.float32(1 / (1 - p)) if p < 1 else np.float32(2)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return np.where(random.random(shape) < p, np.float32(0), scale)


@st.composite
def attention_forward_inputs(draw: Draw) -> tuple[Array, Array, Array, Array | None]:
    """(q, k, v, keep), with scores up to 1 or up to a few hundred, where one weight is nearly 1."""
    B, T = draw(st.integers(1, 3)), draw(sizes(9))
    NKV, group, hs = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(sizes(20))
    NH = NKV * group
    limit = draw(st.sampled_from([1.0, 17.0]))
    q, k = (np.clip(draw(arrays((B, T, n, hs), mild)), -limit, limit) for n in (NH, NKV))
    return q, k, draw(arrays((B, T, NKV, hs))), draw(masks((B, NH, T, T)))


@st.composite
def attention_backward_inputs(draw: Draw) -> tuple[Any, ...]:
    q, k, v, keep = draw(attention_forward_inputs())
    out, att = specification.attention_forward(q, k, v, keep)
    return draw(arrays(out.shape)), q, k, v, att, keep


@st.composite
def residual_inputs(draw: Draw) -> tuple[Array, Array]:
    T, C = draw(sizes(5)), draw(sizes(100))
    return draw(arrays((T, C))), draw(arrays((T, C)))


@st.composite
def swiglu_inputs(draw: Draw) -> tuple[Array, Array]:
    T, F = draw(sizes(5)), draw(sizes(100))
    gates = st.one_of(numbers, st.floats(-100, 100, width=32))
    return draw(arrays((T, F), gates)), draw(arrays((T, F)))


@st.composite
def swiglu_backward_inputs(draw: Draw) -> tuple[Array, Array, Array]:
    gate, up = draw(swiglu_inputs())
    return draw(arrays(gate.shape)), gate, up


@st.composite
def dropout_inputs(draw: Draw) -> tuple[Array, Array | None]:
    """Shapes of rows, or of attention weights."""
    shape = draw(st.sampled_from([(1, 1), (4, 6), (7, 33), (2, 3, 4, 4)]))
    return draw(arrays(shape)), draw(masks(shape))


@st.composite
def crossentropy_forward_inputs(draw: Draw) -> tuple[Array, Tokens]:
    N, V = draw(sizes(12)), draw(sizes(60))
    elements = st.one_of(st.floats(-30, 30, width=32), numbers)
    return draw(arrays((N, V), elements)), draw(ids((N,), V, ignored=True))


@st.composite
def crossentropy_backward_inputs(draw: Draw) -> tuple[Array, Array, Tokens]:
    N, V = draw(sizes(12)), draw(sizes(60))
    probs = draw(repeated((N, V), probabilities))
    return draw(arrays((N,))), probs, draw(ids((N,), V, ignored=True))


@st.composite
def quantize_inputs(draw: Draw) -> tuple[Array, int]:
    """Activations, exact halves among them, and a group size that need not divide the width."""
    T, GS = draw(sizes(4)), draw(st.one_of(st.integers(1, 8), st.sampled_from([16, 32, 64])))
    C = GS * draw(sizes(4)) + draw(st.integers(0, GS - 1))
    halves = st.builds(lambda k: k / 2, st.integers(-254, 254))
    x = draw(arrays((T, C), st.one_of(numbers, halves)))
    if draw(st.booleans()):  # a scale of exactly 1, so that the quotients are the halves
        x = np.clip(np.round(2 * x) / 2, -127, 127).astype(np.float32)
        x[:, ::GS] = 127
    return x, GS


@st.composite
def matmul_q8_inputs(draw: Draw) -> tuple[Any, ...]:
    """Quantised rows and a quantised matrix, whose groups may straddle rows."""
    x, GS = draw(quantize_inputs())
    OC = draw(sizes(20))
    values, scales = specification.quantize(x, GS)
    w, w_scales = specification.quantize(draw(arrays((1, OC * x.shape[1]))), GS)
    return values, scales, w.reshape(OC, -1), w_scales[0], GS


@st.composite
def packed_inputs(draw: Draw, most_rows: int = 20) -> tuple[NDArray[np.uint8], int]:
    """Rows of blocks of any bits and their kind. Scales are finite, also subnormal, 0, negative."""
    kind = TYPES[draw(st.sampled_from(PACKED))]
    rows, per_row = draw(sizes(most_rows)), draw(sizes(9 if kind.numbers == 32 else 3))
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (rows * per_row, kind.nbytes), np.uint8)
    few = np.array(draw(st.lists(_halves, min_size=1, max_size=4)), "<f2")
    for at in HALVES[kind.name]:
        chosen = few[random.integers(0, len(few), len(blocks))]
        blocks[:, at : at + 2] = chosen.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1), kind.id


_halves = st.one_of(
    st.floats(-4, 4, width=16), st.sampled_from([1.0, 0.0, 0.01, -0.01, 2.0**-24, -(2.0**-20)])
)


@st.composite
def matmul_packed_inputs(draw: Draw) -> tuple[Any, ...]:
    w, kind = draw(packed_inputs())
    T, C = draw(sizes(20)), w.shape[1] // TYPES[kind].nbytes * TYPES[kind].numbers
    b = draw(arrays((len(w),))) if draw(st.booleans()) else None
    return draw(arrays((T, C))), w, kind, b


# ---- whole models ---------------------------------------------------------------------------


@st.composite
def configs(draw: Draw, most_vocab: int = 40, beyond: bool = True) -> Llama2Config:
    """Small models of every shape: grouped heads, one head, head size 2, odd widths.

    beyond: half of them have what run.c has not
    """
    NKV, mul, pairs = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 6))
    NH = NKV * mul
    config = Llama2Config(
        dim=NH * 2 * pairs,
        hidden_dim=draw(sizes(50)),
        n_layers=draw(st.integers(1, 3)),
        n_heads=NH,
        n_kv_heads=NKV,
        vocab_size=draw(st.integers(1, most_vocab)),
        seq_len=draw(st.integers(1, 24)),
    )
    return draw(beyond_run_c(config)) if beyond and draw(st.booleans()) else config


@st.composite
def beyond_run_c(draw: Draw, config: Llama2Config) -> Llama2Config:
    """The config with everything that later models have, each by chance.

    Not dynamic scaling: a text fed at once is another one than fed token by token.
    """
    hs = draw(st.sampled_from([config.head_size, 2, 6, 16]))
    windows = st.lists(st.integers(0, 8), min_size=config.n_layers, max_size=config.n_layers)
    flags = "qkv_bias output_bias ffn_bias head_norm".split()
    return replace(
        config,
        norm_epsilon=draw(epsilons),
        rope_base=draw(bases),
        rope_scaling=draw(st.none() | scalings(hs)),
        head_size=hs,
        windows=tuple(draw(st.just([]) | windows)),
        **{flag: draw(st.booleans()) for flag in flags},
    )


@st.composite
def scalings(draw: Draw, hs: int) -> RopeScaling:
    """Every kind but dynamic, which depends on the length of the text."""
    factor = draw(st.sampled_from([2.0, 3.5, 8.0]))
    divisors = tuple(1 + factor * i / hs for i in range(hs // 2))
    kind = draw(st.sampled_from(["linear", "llama3", "yarn", "divisors"]))
    return RopeScaling(kind, factor, original=8, attention_factor=1.25, divisors=divisors)


@st.composite
def models(
    draw: Draw, engine: backends.Engine = NUMPY, most_vocab: int = 40, beyond: bool = True
) -> Llama2:
    """A random model on an engine. Random weights expose differences that trained ones hide."""
    config = draw(configs(most_vocab, beyond))
    weights = random_weights(config, draw(st.booleans()), draw(st.integers(0, 2**32 - 1)))
    return Llama2(config, weights, engine)


@st.composite
def packed_models(draw: Draw, engine: backends.Engine = NUMPY, kinds: Any = PACKED) -> Llama2:
    """A random model with matrices in blocks, of another kind in each layer, and some float32."""
    group, NKV = draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 4]))
    few = Llama2Config(
        dim=draw(st.sampled_from([32, 96, 256, 512])),
        hidden_dim=draw(st.sampled_from([32, 160, 256, 768])),
        n_layers=draw(st.integers(1, 3)),
        n_heads=NKV * group,
        n_kv_heads=NKV,
        vocab_size=draw(st.integers(2, 40)),
        seq_len=draw(st.integers(1, 24)),
        head_size=draw(st.sampled_from([32, 64])),
    )
    config = replace(few, qkv_bias=draw(st.booleans()), head_norm=draw(st.booleans()))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weights = random_weights(config, draw(st.booleans()), int(random.integers(2**32)))
    chosen = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=3)), draw(st.booleans())

    def packed(matrix: Any) -> Any:
        """The matrix, or blocks of as many numbers of about the same size."""
        fits = [k for k in chosen[0] if matrix.shape[1] % TYPES[k].numbers == 0]
        kind = int(random.choice([*fits, *[0] * (chosen[1] or not fits)]))
        size = float(np.abs(matrix).max())
        OC, C = matrix.shape
        return random_blocks(random, OC, C, kind, size) if kind else matrix

    changed: dict[str, Any] = {}
    for name in "wq wk wv wo w1 w2 w3 token_embedding classifier".split():
        array = getattr(weights, name)
        if array is not None and array.ndim == 2:
            changed[name] = packed(array)
        elif array is not None:
            changed[name] = PackedLayers.of([packed(one) for one in array], array.shape[2])
    return Llama2(config, replace(weights, **changed), engine)


def random_blocks(random: Any, OC: int, C: int, kind: int, size: float) -> Packed:
    """A matrix of blocks of any bits, whose numbers are about -size to size."""
    block, steps = TYPES[kind], {"Q8_0": 127, "Q6_K": 128 * 32}
    most = steps.get(TYPES[kind].name, 16 if block.numbers == 32 else 64 * 16)
    most *= 2 if block.name in ("Q5_1", "Q5_K") else 1
    rows = random.integers(0, 256, (OC * C // block.numbers, block.nbytes), np.uint8)
    for n, at in enumerate(HALVES[block.name]):
        scale = size / (64 if n and block.numbers == 256 else 1 if n else most)
        scales = (scale * random.uniform(0.3, 1.0, len(rows))).astype("<f2")
        if n and block.numbers == 32:
            scales = -scales
        rows[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    return Packed(rows.reshape(OC, -1), kind)


def token_ids(
    config: Llama2Config, most: int | None = None
) -> st.SearchStrategy[NDArray[np.int64]]:
    """1 to `most` token ids (default: the context length)."""
    longest = min(most or config.seq_len, config.seq_len)
    return hnp.arrays(
        np.int64, st.integers(1, longest), elements=st.integers(0, config.vocab_size - 1)
    )


@st.composite
def trainable_configs(draw: Draw) -> Llama2Config:
    """Small models of every shape: grouped heads, one head, head size 2, odd widths."""
    NKV, group, pairs = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    return Llama2Config(
        dim=NKV * group * 2 * pairs,
        hidden_dim=draw(sizes(30)),
        n_layers=draw(st.integers(1, 2)),
        n_heads=NKV * group,
        n_kv_heads=NKV,
        vocab_size=draw(st.integers(1, 30)),
        seq_len=draw(st.integers(1, 10)),
    )


def random_parameters(config: Llama2Config, seed: int) -> Parameters:
    """Random weights (see `random_weights`) in one vector."""
    params = Parameters(config.shapes())
    weights = random_weights(config, shared_classifier=True, seed=seed)
    for name, array in params.items():
        array[...] = getattr(weights, name)
    return params


@st.composite
def trainable_models(draw: Draw, engine: backends.Engine, dropout: float = 0.0) -> TrainableLlama2:
    """A random model on an engine."""
    config, seed = draw(trainable_configs()), draw(st.integers(0, 2**32 - 1))
    return TrainableLlama2(config, random_parameters(config, seed), engine, dropout, seed)


@st.composite
def batches(draw: Draw, config: Llama2Config) -> tuple[Tokens, Tokens]:
    """Tokens and targets, (B, T), T up to the context length, with repeats and ignored targets."""
    shape = draw(st.integers(1, 3)), draw(st.integers(1, config.seq_len))
    return draw(ids(shape, config.vocab_size)), draw(ids(shape, config.vocab_size, ignored=True))
