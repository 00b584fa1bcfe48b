"""Tokens fed together have the bits that they have alone: short prompts, and one token each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2 import backends
from pyllm2.inference.language_model import LanguageModel
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.initial import random_weights
from pyllm2.llama2.model import Llama2
from pyllm2.parameters import Quantized
from pyllm2.testing.llama2 import strategies
from tests.support.profiles import few
from tests.support.tested import BACKENDS, engine_of

TOGETHER = [name for name in BACKENDS if name in ("numba", "c-strict", "numba-strict")]


def in_groups(stack: np.ndarray, size: int) -> Quantized:
    values, scales = backends.ops("numpy").quantize(stack.reshape(len(stack), -1), size)
    return Quantized(values.reshape(stack.shape), scales, size)


@st.composite
def models(draw: Any, engine: backends.Engine) -> Llama2:
    """A drawn model; every third is int8."""
    if draw(st.integers(0, 2)):
        return draw(strategies.models(engine))
    model = draw(strategies.models(engine, beyond=False))
    config, weights = model.config, vars(model.weights).copy()
    size = draw(st.sampled_from([2, config.dim]))
    names = "wq wk wv wo w1 w2 w3".split()
    if any(weights[name].shape[-1] % size for name in names):
        return model
    for name in names:
        weights[name] = in_groups(weights[name], size)
    weights["classifier"] = in_groups(weights["token_embedding"][None], size)[0]
    return Llama2(config, type(model.weights)(**weights), engine)


def one_by_one(model: Llama2, tokens: np.ndarray, cache: Any) -> np.ndarray:
    steps = (model.forward(tokens[t : t + 1], t, cache) for t in range(len(tokens)))
    return np.concatenate(list(steps))


@pytest.mark.parametrize("backend", TOGETHER)
@few(60)
@given(data=st.data())
def test_a_short_prompt_has_the_bits_of_its_tokens_one_by_one(
    backend: str, data: st.DataObject
) -> None:
    """Logits, keys and values, wherever the prompt is cut; then single tokens again."""
    model = data.draw(models(engine_of(backend)))
    tokens = data.draw(strategies.token_ids(model.config))
    alone, together = (model.new_cache(len(tokens)) for _ in range(2))
    logits, pos = one_by_one(model, tokens, alone), 0
    while pos < len(tokens):
        n = data.draw(st.integers(1, len(tokens) - pos))
        last_only = data.draw(st.booleans())
        found = model.forward(tokens[pos : pos + n], pos, together, last_only)
        np.testing.assert_array_equal(found, logits[pos : pos + n][-len(found) :])
        pos += n
    np.testing.assert_array_equal(alone.keys, together.keys)
    np.testing.assert_array_equal(alone.values, together.values)


@pytest.mark.parametrize("backend", BACKENDS)
@few(40)
@given(data=st.data())
def test_each_conversation_has_the_bits_that_it_has_alone(
    backend: str, data: st.DataObject
) -> None:
    """Conversations of any lengths begin and end at any time; up to more than one call takes."""
    model = data.draw(models(engine_of(backend)))
    texts = data.draw(st.lists(strategies.token_ids(model.config), min_size=1, max_size=18))
    alone = [one_by_one(model, text, model.new_cache(len(text))) for text in texts]
    rooms = [data.draw(st.integers(len(text), model.config.seq_len)) for text in texts]
    caches, places = [model.new_cache(room) for room in rooms], [0] * len(texts)
    starts = [data.draw(st.integers(0, 3)) for _ in texts]
    for now in range(max(map(len, texts)) + 3):
        busy = [k for k, text in enumerate(texts) if starts[k] <= now and places[k] < len(text)]
        if not busy:
            continue
        tokens = np.array([texts[k][places[k]] for k in busy])
        positions, theirs = [places[k] for k in busy], [caches[k] for k in busy]
        found = model.forward_each(tokens, positions, theirs)
        for k, row in zip(busy, found, strict=True):
            np.testing.assert_array_equal(row, alone[k][places[k]])
            places[k] += 1


@pytest.mark.skipif("numba" not in BACKENDS, reason="numba is not tested")
def test_a_conversation_that_is_fed_otherwise_between_keeps_its_keys() -> None:
    """A long prompt, a rewind, and tokens together with another conversation."""
    engine = engine_of("numba")
    config = Llama2Config(24, 20, 2, 4, 2, 30, 96)
    model = LanguageModel(Llama2(config, random_weights(config, True, 3), engine), None, "numba")
    ids = [int(i) for i in np.random.default_rng(0).integers(0, config.vocab_size, 90)]
    used, fresh = model.start(), model.start()
    used.feed(ids[:20])
    used.feed(ids[20:70])  # a long one
    used.feed(ids[70:75])
    used.rewind(30)
    used.feed(ids[30:70])
    fresh.feed(ids[:30])
    fresh.feed(ids[30:70])
    for a, b in ((70, 71), (71, 80)):
        np.testing.assert_allclose(used.feed(ids[a:b]), fresh.feed(ids[a:b]), atol=1e-4)
