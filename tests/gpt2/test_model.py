"""The whole model, both directions: every backend is where float64 says it should be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.gpt2.model import GPT2
from pyllm2.testing import assert_close, gpt2_strategies, training_bound
from pyllm2.testing.gpt2_model_bound import added
from pyllm2.training.parameters import Parameters
from tests.tested import BACKENDS, ops_of


def assert_gradient(found: Parameters, bounded: dict[str, Any]) -> None:
    """Every tensor within its bound."""
    for name, expected in bounded.items():
        assert_close(found[name], expected, f"gradient of {name}")


def drawn(data: st.DataObject, backend: str) -> tuple[GPT2, Any, Any]:
    """A model on a backend, tokens and targets."""
    model = data.draw(gpt2_strategies.gpt2_models(ops_of(backend, "gpt2")))
    return model, *data.draw(gpt2_strategies.batches(model.config))


@pytest.mark.parametrize("backend", BACKENDS)
@given(data=st.data())
def test_losses_logits_and_gradients_lie_within_the_bound(
    backend: str, data: st.DataObject
) -> None:
    """Of the ops put together, one by one."""
    model, tokens, targets = drawn(data, backend)
    dloss = data.draw(st.sampled_from([1.0, 1 / tokens.size]))
    bound = training_bound(model, tokens, targets, dloss)
    acts = model.forward(tokens, targets)
    assert acts.losses is not None
    assert_close(acts.logits, bound.logits, "logits")
    assert_close(acts.losses, bound.losses, "losses")
    gradient = model.backward(acts, np.full_like(acts.losses, dloss))
    assert_gradient(gradient, bound.gradient)
    assert not gradient.wte[model.config.vocab_size :].any(), "padding learns nothing"


@pytest.mark.parametrize("backend", BACKENDS)
@given(data=st.data())
def test_what_a_trainer_asks_is_the_composition_of_ops(backend: str, data: st.DataObject) -> None:
    """`losses` and `add_gradient`, which a rival may have in one piece."""
    model, tokens, targets = drawn(data, backend)
    bound = training_bound(model, tokens, targets, 0.125)
    assert_close(model.losses(tokens, targets), bound.losses, "losses")
    gradient = model.params.zeros_like()
    gradient.flat[...] = 7  # not a gradient yet
    losses = model.add_gradient(tokens, targets, 0.125, gradient, fresh=True)
    assert_close(losses, bound.losses, "losses beside the gradient")
    assert_gradient(gradient, bound.gradient)
    assert not gradient.wte[model.config.vocab_size :].any(), "padding learns nothing"
    if backend.endswith("-strict"):
        acts = model.forward(tokens, targets)
        assert acts.losses is not None
        composed = model.backward(acts, np.full_like(acts.losses, 0.125))
        np.testing.assert_array_equal(losses, acts.losses)
        np.testing.assert_array_equal(gradient.flat, composed.flat)


@pytest.mark.parametrize("backend", BACKENDS)
@given(data=st.data())
def test_two_small_batches_are_one_large_batch(backend: str, data: st.DataObject) -> None:
    """Gradients accumulate: rows one after the other, or all at once, in any order of rows."""
    model, tokens, targets = drawn(data, backend)
    other_tokens, other_targets = (
        data.draw(gpt2_strategies.ids(tokens.shape, model.config.vocab_size)) for _ in range(2)
    )
    bounded = added(
        training_bound(model, tokens, targets, 0.5),
        training_bound(model, other_tokens, other_targets, 0.5),
    )
    gradient = model.params.zeros_like()
    model.add_gradient(tokens, targets, 0.5, gradient, fresh=True)
    model.add_gradient(other_tokens, other_targets, 0.5, gradient, fresh=False)
    assert_gradient(gradient, bounded)
    both = np.concatenate([tokens, other_tokens]), np.concatenate([targets, other_targets])
    model.add_gradient(*both, 0.5, gradient, fresh=True)
    assert_gradient(gradient, bounded)


@given(data=st.data())
def test_later_tokens_do_not_change_earlier_losses(data: st.DataObject) -> None:
    """The loss at t depends on tokens up to t and the target at t."""
    model, tokens, targets = drawn(data, "numpy")
    t = data.draw(st.integers(0, tokens.shape[1] - 1))
    other = np.where(np.arange(tokens.shape[1]) > t, 0, tokens)
    bound = training_bound(model, tokens, targets).losses
    found = model.losses(other, targets)[:, : t + 1]
    assert (np.abs(found - bound.value[:, : t + 1]) <= bound.error[:, : t + 1]).all()


@given(data=st.data())
def test_padding_rows_change_nothing_but_their_logits(data: st.DataObject) -> None:
    """The same losses and gradients, to the bit, whatever the padding of wte holds."""
    model, tokens, targets = drawn(data, "numpy")
    V, gradients = model.config.vocab_size, []
    for padding in (0, 30):
        model.params.wte[V:] = padding
        gradients.append(model.params.zeros_like())
        gradients.append(model.add_gradient(tokens, targets, 1.0, gradients[-1], fresh=True))
    np.testing.assert_array_equal(gradients[1], gradients[3])
    np.testing.assert_array_equal(gradients[0].flat, gradients[2].flat)


@given(data=st.data())
def test_the_bound_is_small_beside_the_gradient(data: st.DataObject) -> None:
    """A bound that lets anything pass would prove nothing.

    Of a row of four channels or more; with fewer, x - mean may be nothing but rounding.
    """
    model, tokens, targets = drawn(data, "numpy")
    bound = training_bound(model, tokens, targets, 1.0)
    if model.config.channels >= 4:
        largest = max(np.abs(value).max() for value, _ in bound.gradient.values())
        for _, error in (bound.logits, bound.losses, *bound.gradient.values()):
            assert (error <= 1e-2 * max(1, largest)).all()
