"""Training of GPT-2: losses and gradients of every backend are within their float64 bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.gpt2.training import TrainableGPT2
from pyllm2.parameters import Parameters
from pyllm2.testing import assert_close, training_bound
from pyllm2.testing.gpt2 import strategies
from pyllm2.testing.model_bound import added
from pyllm2.testing.strategies import ids
from tests.gpt2 import second_definition
from tests.support.profiles import few
from tests.support.tested import BACKENDS, engine_of


def assert_gradient(found: Parameters, bounded: dict[str, Any]) -> None:
    """Check that every tensor is within its bound."""
    for name, expected in bounded.items():
        assert_close(found[name], expected, f"gradient of {name}")


def drawn(data: st.DataObject, backend: str) -> tuple[TrainableGPT2, Any, Any]:
    """A model on a backend, tokens and targets."""
    model = data.draw(strategies.trainable_models(engine_of(backend, "gpt2")))
    return model, *data.draw(strategies.batches(model.config))


@pytest.mark.parametrize("backend", BACKENDS)
@few()
@given(data=st.data())
def test_losses_logits_and_gradients_lie_within_the_bound(
    backend: str, data: st.DataObject
) -> None:
    """Those of the composition of ops, and those of the whole passes that a trainer calls."""
    model, tokens, targets = drawn(data, backend)
    dloss = data.draw(st.sampled_from([1.0, 1 / tokens.size]))
    bound = training_bound(model, tokens, targets, dloss)
    acts = model.forward(tokens, targets)
    assert acts.losses is not None
    assert_close(acts.logits, bound.logits, "logits")
    composed = model.backward(acts, np.full_like(acts.losses, dloss))

    gradient = model.params.zeros_like()
    gradient.flat[...] = 7  # not a gradient yet
    losses = model.add_gradient(tokens, targets, dloss, gradient, fresh=True)
    for found in (acts.losses, losses, model.losses(tokens, targets)):
        assert_close(found, bound.losses, "losses")
    for one in (composed, gradient):
        assert_gradient(one, bound.gradient)
        assert not one.wte[model.config.vocab_size :].any(), "padding learns nothing"
    if backend.endswith("-strict"):
        np.testing.assert_array_equal(losses, acts.losses)
        np.testing.assert_array_equal(gradient.flat, composed.flat)


@pytest.mark.parametrize("backend", BACKENDS)
@few(8)
@given(data=st.data())
def test_two_small_batches_are_one_large_batch(backend: str, data: st.DataObject) -> None:
    """Two micro-batches give the gradient of one batch of all their rows."""
    model, tokens, targets = drawn(data, backend)
    other_tokens, other_targets = (
        data.draw(ids(tokens.shape, model.config.vocab_size)) for _ in range(2)
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


@few()
@given(data=st.data())
def test_the_model_is_the_published_one(data: st.DataObject) -> None:
    """In float64 its losses equal those of a second definition. (gradcheck tests the gradient.)"""
    model, tokens, targets = drawn(data, "numpy")
    wide: Any = model.params.flat.astype(np.float64)
    judge = TrainableGPT2(model.config, Parameters(model.params.shapes, wide), model.engine)
    expected = second_definition.losses(model.config, model.params, tokens, targets)
    np.testing.assert_allclose(judge.losses(tokens, targets), expected, rtol=1e-9, atol=1e-9)


@few()
@given(data=st.data())
def test_later_tokens_do_not_change_earlier_losses(data: st.DataObject) -> None:
    """The loss at t depends on tokens up to t and the target at t."""
    model, tokens, targets = drawn(data, "numpy")
    t = data.draw(st.integers(0, tokens.shape[1] - 1))
    other = np.where(np.arange(tokens.shape[1]) > t, 0, tokens)
    bound = training_bound(model, tokens, targets).losses
    found = model.losses(other, targets)[:, : t + 1]
    assert (np.abs(found - bound.value[:, : t + 1]) <= bound.error[:, : t + 1]).all()


@few()
@given(data=st.data())
def test_padding_rows_change_nothing_but_their_logits(data: st.DataObject) -> None:
    """Losses and gradients have the same bits, whatever the padding of wte holds."""
    model, tokens, targets = drawn(data, "numpy")
    V, gradients = model.config.vocab_size, []
    for padding in (0, 30):
        model.params.wte[V:] = padding
        gradients.append(model.params.zeros_like())
        gradients.append(model.add_gradient(tokens, targets, 1.0, gradients[-1], fresh=True))
    np.testing.assert_array_equal(gradients[1], gradients[3])
    np.testing.assert_array_equal(gradients[0].flat, gradients[2].flat)


@few()
@given(data=st.data())
def test_the_bound_is_small_beside_the_gradient(data: st.DataObject) -> None:
    """A bound that is too wide would prove nothing.

    At least four channels: with fewer, x - mean may consist of rounding errors.
    """
    model, tokens, targets = drawn(data, "numpy")
    bound = training_bound(model, tokens, targets, 1.0)
    if model.config.channels >= 4:
        largest = max(np.abs(value).max() for value, _ in bound.gradient.values())
        for _, error in (bound.logits, bound.losses, *bound.gradient.values()):
            assert (error <= 1e-2 * max(1, largest)).all()
