"""Same model, prompt and seed: same tokens on every backend, except ties within the bound."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.inference.sampling import argmax, multinomial, probabilities
from pyllm2.llama2.model import Llama2
from pyllm2.testing import bounds, model_bound
from pyllm2.testing.llama2 import strategies
from tests.support.profiles import few
from tests.support.tested import BACKENDS, engine_of


def logits_of(model: Llama2, tokens: np.ndarray) -> np.ndarray:
    return model.forward(tokens, 0, model.new_cache(len(tokens)))


@pytest.mark.parametrize("backend", BACKENDS)
@few()
@given(data=st.data())
def test_greedy_tokens_agree_with_float64(backend: str, data: st.DataObject) -> None:
    """Where the best logit leads by more than twice the bound, it is chosen."""
    model = data.draw(strategies.models(engine_of(backend)))
    tokens = data.draw(strategies.token_ids(model.config))
    value, error = model_bound(model, tokens)
    for row, exact, off in zip(logits_of(model, tokens), value, error[:, 0], strict=True):
        lead = exact.max() - np.partition(exact, -2)[-2] if len(exact) > 1 else np.inf
        if lead > 2 * off:
            assert argmax(row) == int(exact.argmax())


@pytest.mark.parametrize("backend", BACKENDS)
@few()
@given(data=st.data(), coin=st.integers(0, 2**24 - 1), temperature=st.sampled_from([0.5, 1.0, 2.0]))
def test_drawn_tokens_agree_with_float64(
    backend: str, data: st.DataObject, coin: int, temperature: float
) -> None:
    """Where the coin is farther from every boundary of the running sum than its error.

    Logits off by e change a probability by a factor within exp(±2e/T), so a running sum by at
    most expm1(2e/T); adding V float32 terms and the exp itself add (V + 8)·u.
    """
    model = data.draw(strategies.models(engine_of(backend)))
    tokens = data.draw(strategies.token_ids(model.config))
    value, error = model_bound(model, tokens)
    toss = coin / 2**24
    for row, exact, off in zip(logits_of(model, tokens), value, error[:, 0], strict=True):
        e = np.exp((exact - exact.max()) / temperature)
        running = np.cumsum(e / e.sum())
        slack = np.expm1(2 * off / temperature) + (len(e) + 8) * bounds.U
        slack += 100 * bounds.U / temperature  # logits / T rounded, |logits| well below 50
        if (np.abs(running[:-1] - toss) > slack).all():
            expected = min(int(np.searchsorted(running, toss, side="right")), len(e) - 1)
            assert multinomial(probabilities(row, temperature), toss) == expected
