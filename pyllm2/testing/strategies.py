"""hypothesis strategies that all models share: sizes, float32 arrays, token ids, texts.

All shrink towards the smallest case that still fails: size 1, zeros. Inputs stay inside the domain
of the ops (finite, no overflow of float32); anything outside belongs to the tests of bad input.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import DTypeLike, NDArray

Array = NDArray[np.float32]
Tokens = NDArray[np.integer]
Draw = Any

# Up to 1e4, so that a sum of squares over any width used here stays far from overflow; with zeros,
# ties, subnormals and both signs.
numbers = st.one_of(
    st.floats(-4, 4, width=32),
    st.floats(-1e4, 1e4, width=32),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 1e-30, 2.0**-126, 2.0**-149, -(2.0**-130), 1e4]),
)
mild = st.floats(-8, 8, width=32)
probabilities = st.one_of(
    st.floats(0, 1, width=32),
    st.sampled_from([0.0, 1.0, 1 - 2.0**-24, 0.5, 2.0**-126, 2.0**-149, 1e-40]),
)


_seeds = st.integers(0, 2**32 - 1)
_scales = st.sampled_from([1.0, 0.01, 30.0])
_id_numbers = st.one_of(st.integers(0, 2**20), st.sampled_from([0, -1]))  # modulo V: 0 and V - 1
_id_kinds: st.SearchStrategy[Any] = st.sampled_from([np.int32, np.int64])


# To build a strategy costs more than to draw from it: those that depend on an argument are kept.
@functools.cache
def sizes(most: int) -> st.SearchStrategy[int]:
    """1 … most, small ones first; large ones that no vector width divides come up as well."""
    return st.one_of(st.integers(1, min(most, 9)), st.integers(1, most))


@functools.cache
def _few(elements: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(elements, min_size=1, max_size=8)


@st.composite
def arrays(
    draw: Draw, shape: tuple[int, ...], elements: st.SearchStrategy[float] = numbers
) -> Array:
    """float32 arrays of a shape: `repeated` elements, or normal deviates from a seed.

    The first kind finds edge cases and ties. The second fills the array with different numbers,
    which exposes wrong indices; it shrinks to 1, 2, 3 ...
    """
    if draw(st.booleans()):
        return draw(repeated(shape, elements))
    seed, scale = draw(_seeds), np.float32(draw(_scales))
    if seed == 0:
        return scale * np.resize(np.arange(1, 98, dtype=np.float32), shape)
    return scale * np.random.default_rng(seed).standard_normal(shape, np.float32)


@st.composite
def repeated(
    draw: Draw,
    shape: tuple[int, ...],
    elements: st.SearchStrategy[Any],
    dtype: DTypeLike = np.float32,
) -> NDArray[Any]:
    """Arrays of 1 to 8 drawn elements, repeated in turn or at random places.

    Much cheaper than to draw every element, and each of up to 8 elements is still drawn by itself.
    """
    few = np.array(draw(_few(elements)), dtype)
    if math.prod(shape) <= len(few) or draw(st.booleans()):
        return np.resize(few, shape)
    return few[np.random.default_rng(draw(_seeds)).integers(0, len(few), shape)]


@st.composite
def ids(draw: Draw, shape: tuple[int, ...], V: int, ignored: bool = False) -> Tokens:
    """Token ids in [0, V), int32 or int64; 0 and V - 1 come up often.

    ignored: -1, which a loss ignores, comes up as well
    """
    found = draw(repeated(shape, _id_numbers, np.int64)) % V
    if ignored:
        found[draw(repeated(shape, st.booleans(), np.bool_))] = -1
    return found.astype(draw(_id_kinds))


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

    Scores repeat, so that ties (which go to the leftmost pair) come up.
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
