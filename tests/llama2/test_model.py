"""The whole model: prefill equals decoding, and every backend is within its float64 bound."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.initial import random_weights
from pyllm2.llama2.model import Llama2
from pyllm2.testing import model_bound
from pyllm2.testing.llama2 import strategies
from tests.support.profiles import few
from tests.support.tested import BACKENDS, engine_of


def step_by_step(model: Llama2, tokens: np.ndarray) -> np.ndarray:
    cache = model.new_cache(len(tokens))
    rows = [model.forward(tokens[t : t + 1], t, cache)[0] for t in range(len(tokens))]
    return np.stack(rows)


@pytest.mark.parametrize("backend", BACKENDS)
@few()
@given(data=st.data())
def test_prefill_of_n_tokens_equals_n_single_steps(backend: str, data: st.DataObject) -> None:
    """Both lie within the propagated bound of the float64 evaluation of the same model."""
    model = data.draw(strategies.models(engine_of(backend)))
    tokens = data.draw(strategies.token_ids(model.config))
    value, error = model_bound(model, tokens)
    prefill = model.forward(tokens, 0, model.new_cache(len(tokens)))
    assert prefill.dtype == np.float32
    assert (np.abs(prefill - value) <= error).all()
    assert (np.abs(step_by_step(model, tokens) - value) <= error).all()


@pytest.mark.parametrize("backend", BACKENDS)
@few()
@given(data=st.data())
def test_a_prompt_may_be_cut_anywhere(backend: str, data: st.DataObject) -> None:
    """Feeding a text in two pieces gives the last logits of feeding it whole."""
    model = data.draw(strategies.models(engine_of(backend)))
    tokens = data.draw(strategies.token_ids(model.config))
    cut = data.draw(st.integers(0, len(tokens) - 1))
    value, error = model_bound(model, tokens)
    cache = model.new_cache(len(tokens))
    if cut:
        model.forward(tokens[:cut], 0, cache)
    last = model.forward(tokens[cut:], cut, cache, last_only=True)
    assert last.shape == (1, model.config.vocab_size)
    assert (np.abs(last[0] - value[-1]) <= error[-1]).all()


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b in ("c", "c-strict", "numba")])
@few()
@given(data=st.data())
def test_a_whole_forward_equals_the_composition_of_ops(backend: str, data: st.DataObject) -> None:
    """A forward in one kernel: equal bits if strict, otherwise within the bound."""
    model = data.draw(strategies.models(engine_of(backend)))
    assert model.engine.forward is not None
    tokens = data.draw(strategies.token_ids(model.config))
    cut = data.draw(st.integers(0, len(tokens) - 1))
    whole, composed = (model.new_cache(len(tokens)) for _ in range(2))
    if cut:
        model.forward(tokens[:cut], 0, whole)
    last = model.forward(tokens[cut:], cut, whole, last_only=True)
    logits = model.with_ops(model.ops).forward(tokens, 0, composed)
    if backend.endswith("-strict"):
        np.testing.assert_array_equal(last[0], logits[-1])
        np.testing.assert_array_equal(whole.keys, composed.keys)
        np.testing.assert_array_equal(whole.values, composed.values)
    else:
        value, error = model_bound(model, tokens)
        assert (np.abs(last[0] - value[-1]) <= error[-1]).all()


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b.endswith("-strict")])
@few()
@given(data=st.data())
def test_strict_prefill_equals_single_steps_to_the_bit(backend: str, data: st.DataObject) -> None:
    """A strict build adds in one order, whatever the number of tokens in a call."""
    model = data.draw(strategies.models(engine_of(backend)))
    tokens = data.draw(strategies.token_ids(model.config))
    prefill = model.forward(tokens, 0, model.new_cache(len(tokens)))
    np.testing.assert_array_equal(prefill, step_by_step(model, tokens))


@few()
@given(data=st.data())
def test_future_tokens_do_not_change_the_past(data: st.DataObject) -> None:
    """Logits at position t depend on tokens up to t only."""
    model = data.draw(strategies.models())
    tokens = data.draw(strategies.token_ids(model.config))
    other = data.draw(strategies.token_ids(model.config))
    t = data.draw(st.integers(0, len(tokens) - 1))
    mixed = np.concatenate([tokens[: t + 1], other])[: max(len(tokens), t + 1)]
    value, error = model_bound(model, tokens)
    logits = model.forward(mixed, 0, model.new_cache(len(mixed)))
    assert (np.abs(logits[: t + 1] - value[: t + 1]) <= error[: t + 1]).all()


@few()
@given(data=st.data())
def test_positions_already_used_cannot_leak_into_a_new_conversation(data: st.DataObject) -> None:
    """A used cache gives the same bits when the conversation starts again."""
    model = data.draw(strategies.models())
    tokens = data.draw(strategies.token_ids(model.config))
    cache = model.new_cache(model.config.seq_len)
    first = model.forward(tokens, 0, cache)
    np.testing.assert_array_equal(model.forward(tokens, 0, cache), first)


@few()
@given(data=st.data())
def test_the_bound_is_small_beside_the_logits(data: st.DataObject) -> None:
    """A bound that is too wide would prove nothing: it is below a hundredth of the logits."""
    model = data.draw(strategies.models())
    tokens = data.draw(strategies.token_ids(model.config))
    value, error = model_bound(model, tokens)
    assert (error <= 1e-2 * np.maximum(1, np.abs(value).max())).all()


@few()
@given(strategies.models(), st.integers(1, 24))
def test_a_cache_needs_the_memory_that_cache_nbytes_says(model: Llama2, positions: int) -> None:
    """Keys, values and tables; beyond those, at most three times the tables for temporaries."""
    cache = model.new_cache(positions)
    tables = cache.cos.nbytes + cache.sin.nbytes
    held = cache.keys.nbytes + cache.values.nbytes + tables
    assert held <= model.cache_nbytes(positions) <= held + 3 * tables


@few()
@given(data=st.data())
def test_the_first_token_and_block_that_are_not_finite(data: st.DataObject) -> None:
    """Of several bad tokens the first; one that is finite until a layer is named with the layer."""
    config = Llama2Config(8, 12, 2, 2, 1, 9, 8)
    weights = random_weights(config, True, data.draw(st.integers(0, 99)))
    tokens = data.draw(st.lists(st.integers(0, 8), min_size=1, max_size=8).map(np.array))
    place = data.draw(st.sampled_from(["embedding", "layer 1, attention", "layer 0, feed-forward"]))
    bad = data.draw(st.lists(st.sampled_from(tokens.tolist()), min_size=1, unique=True))
    first = min(tokens.tolist().index(i) for i in bad)
    if place == "embedding":
        weights.token_embedding[bad, 3] = data.draw(st.sampled_from([np.nan, np.inf]))
    elif "attention" in place:
        weights.wo[1, 3, 4], first = np.nan, 0
    else:
        weights.w2[0, 5, 6], first = np.inf, 0
    model = Llama2(config, weights, engine_of("numpy"))
    with np.errstate(all="ignore"):
        assert model.where_not_finite(tokens, 0, model.new_cache(8)) == (first, place)


def test_a_finite_model_has_no_such_place() -> None:
    model = Llama2(
        config := Llama2Config(8, 12, 2, 2, 1, 9, 8),
        random_weights(config, True, 1),
        engine_of("numpy"),
    )
    assert model.where_not_finite(np.arange(8), 0, model.new_cache(8)) is None
