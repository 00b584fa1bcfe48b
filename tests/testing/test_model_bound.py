"""The bound of a whole model: every backend is inside, a slightly wrong op is outside."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2 import backends
from pyllm2.testing import assert_close, model_bound
from pyllm2.testing.gpt2 import strategies as gpt2
from pyllm2.testing.llama2 import strategies as llama2
from pyllm2.testing.strategies import ids
from tests.support.profiles import few
from tests.support.tested import able, engine_of


@few(10)
@given(st.data())
def test_logits_of_gpt2_lie_within_the_bound(data: Any) -> None:
    """On every backend, for a prompt and for single tokens after it."""
    model = data.draw(gpt2.models())
    T = data.draw(st.integers(1, model.config.max_seq_len))
    tokens = data.draw(ids((T,), model.config.vocab_size))
    prompt = data.draw(st.integers(1, T))
    bounded = model_bound(model, tokens)
    for backend in able():
        rival = type(model)(model.config, model.params, engine_of(backend, "gpt2"))
        cache = rival.new_cache(T)
        found = [rival.forward(tokens[:prompt], 0, cache)]
        found += [rival.forward(tokens[t : t + 1], t, cache) for t in range(prompt, T)]
        assert_close(np.concatenate(found), bounded, f"logits on {backend}")


def scaled(ops: Any, name: str, factor: float) -> Any:
    """The ops, with the first result of one multiplied by a factor."""

    def wrong(*arguments: Any) -> Any:
        found = getattr(ops, name)(*arguments)
        if isinstance(found, tuple):
            return (found[0] * np.float32(factor), *found[1:])
        return found * np.float32(factor)

    return SimpleNamespace(**{**vars(ops), name: wrong})


@pytest.mark.parametrize(
    ("family", "name"),
    [("llama2", "attention"), ("llama2", "rmsnorm"), ("gpt2", "attention_forward")],
)
def test_an_op_that_is_off_by_a_thousandth_is_seen_in_the_logits(family: str, name: str) -> None:
    """In a model of two layers."""
    if family == "llama2":
        config: Any = llama2.Llama2Config(12, 20, 2, 2, 1, 30, 8)
        weights = llama2.random_weights(config, shared_classifier=True, seed=1)
        model: Any = llama2.Llama2(config, weights, backends.engine("numpy"))
    else:
        config = gpt2.GPT2Config(8, 30, 2, 2, 12, 32)
        params = gpt2.random_parameters(config, seed=1)
        model = gpt2.GPT2(config, params, backends.engine("numpy", family="gpt2"))
    tokens = np.arange(8) * 3
    bounded = model_bound(model, tokens)
    assert_close(model.forward(tokens, 0, model.new_cache(8)), bounded)
    wrong = model.with_ops(scaled(model.ops, name, 1.001))
    with pytest.raises(AssertionError, match="values are off"):
        assert_close(wrong.forward(tokens, 0, wrong.new_cache(8)), bounded)
