"""hypothesis strategies: op inputs, whole models, vocabularies, prompts.

All shrink towards the smallest case that still fails: one layer, one head, one token, zeros.
Inputs stay inside the domain in which the ops are defined (finite, no overflow of float32); what
lies outside belongs to the tests of bad input.
"""

from __future__ import annotations

import math
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from pyllm2.llama2 import ops as specification
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.model import Llama2
from pyllm2.llama2.random_model import random_weights

Array = NDArray[np.float32]
Draw = Any

# Up to 1e4, so that a sum of squares over any width below stays far from overflow; with zeros,
# ties, subnormals and both signs.
numbers = st.one_of(
    st.floats(-4, 4, width=32),
    st.floats(-1e4, 1e4, width=32),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 1e-30, 2.0**-126, 2.0**-149, -(2.0**-130), 1e4]),
)


def arrays(shape: tuple[int, ...], elements: st.SearchStrategy[float] = numbers) -> Draw:
    """float32 arrays of a shape: either element by element, or normal deviates from one seed.

    The first finds edges and shrinks well, the second fills a large array with unlike numbers,
    which is what shows an index gone wrong.
    """
    drawn = hnp.arrays(np.float32, shape, elements=elements)
    scales = st.sampled_from([1.0, 0.01, 30.0])
    return st.one_of(drawn, st.builds(_normal, st.just(shape), st.integers(0, 2**32 - 1), scales))


def _normal(shape: tuple[int, ...], seed: int, scale: float) -> Array:
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def sizes(most: int) -> st.SearchStrategy[int]:
    """1 … most, small first; now and then a size that no vector register divides."""
    return st.one_of(st.integers(1, min(most, 9)), st.integers(1, most))


@st.composite
def embedding_inputs(draw: Draw) -> tuple[NDArray[np.int64], Array]:
    T, V, C = draw(sizes(8)), draw(sizes(40)), draw(sizes(40))
    return draw(hnp.arrays(np.int64, T, elements=st.integers(0, V - 1))), draw(arrays((V, C)))


@st.composite
def rmsnorm_inputs(draw: Draw) -> tuple[Array, Array]:
    T, C = draw(sizes(5)), draw(sizes(300))
    return draw(arrays((T, C))), draw(arrays((C,)))


@st.composite
def matmul_inputs(draw: Draw) -> tuple[Array, Array]:
    T, C, OC = draw(sizes(20)), draw(sizes(300)), draw(sizes(70))
    return draw(arrays((T, C))), draw(arrays((OC, C)))


@st.composite
def rope_tables_inputs(draw: Draw) -> tuple[int, int]:
    return draw(st.integers(1, 600)), 2 * draw(st.integers(1, 64))


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
def attention_inputs(draw: Draw) -> tuple[Array, Array, Array]:
    """(q, k, v) whose scores stay below a few hundred: beyond, softmax is a choice of one."""
    T, past = draw(sizes(6)), draw(st.integers(0, 20))
    NKV, mul, hs = draw(st.integers(1, 3)), draw(st.integers(1, 3)), 2 * draw(sizes(16))
    P = past + T
    mild = st.floats(-8, 8, width=32)
    q = draw(arrays((T, NKV * mul, hs), mild))
    k = draw(arrays((P, NKV, hs), mild))
    v = draw(arrays((P, NKV, hs)))
    limit = np.float32(math.sqrt(300.0))
    return np.clip(q, -limit, limit), np.clip(k, -limit, limit), v


@st.composite
def swiglu_inputs(draw: Draw) -> tuple[Array, Array]:
    T, F = draw(sizes(5)), draw(sizes(100))
    gates = st.one_of(numbers, st.floats(-100, 100, width=32))
    return draw(arrays((T, F), gates)), draw(arrays((T, F)))


@st.composite
def residual_inputs(draw: Draw) -> tuple[Array, Array]:
    T, C = draw(sizes(5)), draw(sizes(100))
    return draw(arrays((T, C))), draw(arrays((T, C)))


@st.composite
def quantize_inputs(draw: Draw) -> tuple[Array, int]:
    """Activations and a group size, which need not divide the width; exact halves among them."""
    T, GS = draw(sizes(4)), draw(st.one_of(st.integers(1, 8), st.sampled_from([16, 32, 64])))
    C = GS * draw(sizes(4)) + draw(st.integers(0, GS - 1))
    halves = st.builds(lambda k: k / 2, st.integers(-254, 254))
    x = draw(arrays((T, C), st.one_of(numbers, halves)))
    if draw(st.booleans()):  # a scale of exactly 1: the quotients are the halves themselves
        x = np.clip(np.round(2 * x) / 2, -127, 127).astype(np.float32)
        x[:, ::GS] = 127
    return x, GS


@st.composite
def matmul_q8_inputs(draw: Draw) -> tuple[Any, ...]:
    """Quantised rows and a quantised matrix; ragged groups where the group size divides no row."""
    x, GS = draw(quantize_inputs())
    OC = draw(sizes(20))
    values, scales = specification.quantize(x, GS)
    w, w_scales = specification.quantize(draw(arrays((1, OC * x.shape[1]))), GS)
    return values, scales, w.reshape(OC, -1), w_scales[0], GS


@st.composite
def configs(draw: Draw, most_vocab: int = 40) -> Llama2Config:
    """Every shape, small: grouped heads, one head, head size 2, widths that nothing divides."""
    NKV, mul, pairs = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 6))
    NH = NKV * mul
    return Llama2Config(
        dim=NH * 2 * pairs,
        hidden_dim=draw(sizes(50)),
        n_layers=draw(st.integers(1, 3)),
        n_heads=NH,
        n_kv_heads=NKV,
        vocab_size=draw(st.integers(1, most_vocab)),
        seq_len=draw(st.integers(1, 24)),
    )


@st.composite
def models(draw: Draw, ops: Any = specification, most_vocab: int = 40) -> Llama2:
    """A whole random model over an ops module. Trained toys hide what random weights show."""
    config = draw(configs(most_vocab))
    weights = random_weights(config, draw(st.booleans()), draw(st.integers(0, 2**32 - 1)))
    return Llama2(config, weights, ops)


def token_ids(
    config: Llama2Config, most: int | None = None
) -> st.SearchStrategy[NDArray[np.int64]]:
    """Ids that fit the vocabulary, at least one, at most `most` or the context."""
    longest = min(most or config.seq_len, config.seq_len)
    return hnp.arrays(
        np.int64, st.integers(1, longest), elements=st.integers(0, config.vocab_size - 1)
    )


texts = st.one_of(
    st.text(st.sampled_from("abc de\n"), max_size=40),
    st.text(max_size=40),
    st.sampled_from(
        ["", " ", "   ", "<s>", "</s>", "<0x0A>", "\u2581", "日本語", "🦙 llama", "a\0b"]
    ),
)


@st.composite
def vocabularies(draw: Draw) -> tuple[list[bytes], list[float]]:
    """Pieces and scores as in tokenizer.bin: specials, 256 bytes, characters, merges of those.

    Scores repeat on purpose: ties must go to the leftmost pair.
    """
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n"] + [b"<0x%02X>" % i for i in range(256)]
    alphabet = draw(st.lists(st.sampled_from("abcdé日🦙<s>/0xA "), unique=True, max_size=12))
    ordinary = [b" ", *(c.encode() for c in alphabet if c != " ")]
    for left, right in draw(st.lists(st.tuples(st.integers(0), st.integers(0)), max_size=30)):
        merged = ordinary[left % len(ordinary)] + ordinary[right % len(ordinary)]
        if merged not in ordinary and len(merged) <= 24:
            ordinary.append(merged)
    scores = draw(st.lists(st.integers(-9, 0), min_size=len(ordinary), max_size=len(ordinary)))
    return pieces + ordinary, [0.0] * len(pieces) + [float(s) for s in scores]
