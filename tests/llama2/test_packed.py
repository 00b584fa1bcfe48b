"""Models with matrices in blocks of GGUF: the dequantised model's results, on every backend."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2 import backends
from pyllm2.formats.gguf_blocks import HALVES, PACKED, TYPES
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.initial import random_weights
from pyllm2.llama2.model import Llama2
from pyllm2.parameters import Packed, PackedLayers
from pyllm2.testing import model_bound
from pyllm2.testing.llama2 import strategies
from tests.support.profiles import few

AVAILABLE = [name for name in backends.NAMES if backends.why_not(name) is None]


def on(model: Llama2, backend: str) -> Llama2:
    return Llama2(model.config, model.weights, backends.engine(backend))


def fed(model: Llama2, tokens: Any, cut: int) -> np.ndarray:
    """Logits of a prompt of `cut` tokens, then of the others one by one."""
    cache = model.new_cache(len(tokens))
    found = [model.forward(tokens[:cut], 0, cache)] if cut else []
    found += [model.forward(tokens[t : t + 1], t, cache) for t in range(cut, len(tokens))]
    return np.concatenate(found)


def drawn(data: st.DataObject) -> tuple[Llama2, np.ndarray, int]:
    model = data.draw(strategies.packed_models())
    tokens = data.draw(strategies.token_ids(model.config))
    return model, tokens, data.draw(st.integers(0, len(tokens)))


@few()
@given(data=st.data())
@pytest.mark.parametrize("backend", AVAILABLE)
def test_logits_are_those_of_the_dequantised_model(backend: str, data: st.DataObject) -> None:
    """Within its bound; prompts and single tokens, all kinds."""
    model, tokens, cut = drawn(data)
    bound = model_bound(model.unpacked(), tokens)
    found = fed(on(model, backend), tokens, cut)
    assert (np.abs(found - bound.value) <= bound.error).all()


@few()
@given(data=st.data())
@pytest.mark.parametrize("backend", [n for n in AVAILABLE if n != "c"])
def test_logits_have_the_bits_of_the_dequantised_model(backend: str, data: st.DataObject) -> None:
    """`numba` too, up to 32 tokens at once: it multiplies the same floats in the same order."""
    model, tokens, cut = drawn(data)
    model = on(model, backend)
    assert np.array_equal(fed(model, tokens, cut), fed(model.unpacked(), tokens, cut))


@pytest.mark.parametrize("backend", AVAILABLE)
@pytest.mark.parametrize("kind", PACKED, ids=lambda kind: TYPES[kind].name)
def test_a_fault_in_one_block_leaves_the_bound(backend: str, kind: int) -> None:
    """So the first property sees a scale that is off by an eighth, in every kind."""
    random = np.random.default_rng(1)
    config = Llama2Config(256, 256, 1, 2, 2, 20, 8)
    weights = random_weights(config, True, 1)
    right = [strategies.random_blocks(random, 256, 256, kind, 0.1)]
    rows = right[0].rows.copy()
    at = HALVES[TYPES[kind].name][0]
    half = rows[3, at : at + 2].view("<f2")
    half[...] = half * np.float16(1.125)
    tokens = np.arange(8)
    model = Llama2(config, replace(weights, wo=PackedLayers.of(right, 256)), strategies.NUMPY)
    bound = model_bound(model.unpacked(), tokens)
    for matrix, inside in ((right[0], True), (Packed(rows, kind), False)):
        stack = PackedLayers.of([matrix], 256)
        other = Llama2(config, replace(weights, wo=stack), backends.engine(backend))
        off = np.abs(fed(other, tokens, 3) - bound.value) <= bound.error
        assert off.all() == inside


@given(data=st.data())
def test_a_stack_gives_back_its_matrices(data: st.DataObject) -> None:
    """Of any kinds, each at the start of a cache line; a part of it, too."""
    model = data.draw(strategies.packed_models())
    stack: Any = model.weights.w2
    matrices = [stack[layer] for layer in range(len(stack))]
    again = PackedLayers.of(matrices, stack.shape[2])
    assert again.nbytes == stack.nbytes == sum(m.nbytes for m in matrices)
    part = again.part(len(again) // 2, len(again))
    for found, wanted in [*zip(again, matrices, strict=True), (part[0], matrices[len(again) // 2])]:
        assert type(found) is type(wanted)
        one, other = (m.rows if isinstance(m, Packed) else m for m in (found, wanted))
        assert np.array_equal(one, other)
        assert one.ctypes.data % 64 == 0
