"""Training of Llama-2: losses and gradients of every backend are within their float64 bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.llama2 import family
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.training import MATRICES, TrainableLlama2
from pyllm2.parameters import Parameters
from pyllm2.testing import assert_close, gradcheck, model_bound, training_bound
from pyllm2.testing.bounds import Bounded
from pyllm2.testing.llama2 import strategies
from pyllm2.testing.model_bound import added
from pyllm2.testing.strategies import ids
from tests.support.profiles import few
from tests.support.tested import BACKENDS, engine_of


def assert_gradient(found: Parameters, bounded: dict[str, Bounded]) -> None:
    """Check that every tensor is within its bound."""
    for name, expected in bounded.items():
        assert_close(found[name], expected, f"gradient of {name}")


def drawn(
    data: st.DataObject, backend: str, dropout: float = 0.0
) -> tuple[TrainableLlama2, Any, Any]:
    """A model on a backend, tokens and targets."""
    model = data.draw(strategies.trainable_models(engine_of(backend), dropout))
    return model, *data.draw(strategies.batches(model.config))


def gradient_of(model: TrainableLlama2, tokens: Any, targets: Any, dloss: float = 1.0) -> Any:
    """Losses and gradient, in a buffer that held other numbers."""
    gradient = model.params.zeros_like()
    gradient.flat[...] = 7  # not a gradient yet
    return model.add_gradient(tokens, targets, dloss, gradient, fresh=True), gradient


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
    assert_close(acts.logits, bound.logits, "logits")
    composed = model.backward(acts, np.full_like(acts.losses, dloss))

    losses, gradient = gradient_of(model, tokens, targets, dloss)
    for found in (acts.losses.reshape(tokens.shape), losses, model.losses(tokens, targets)):
        assert found.shape == tokens.shape
        assert_close(found.reshape(-1), bound.losses, "losses")
    for one in (composed, gradient):
        assert_gradient(one, bound.gradient)
    if backend.endswith("-strict"):
        np.testing.assert_array_equal(losses.reshape(-1), acts.losses)
        np.testing.assert_array_equal(gradient.flat, composed.flat)


@pytest.mark.parametrize("backend", BACKENDS)
@few(8)
@given(data=st.data())
def test_micro_batches_add_up(backend: str, data: st.DataObject) -> None:
    """Two micro-batches give the gradient of one batch of all their rows."""
    model, tokens, targets = drawn(data, backend)
    others = data.draw(ids(tokens.shape, model.config.vocab_size))
    bounded = added(
        training_bound(model, tokens, targets, 0.5),
        training_bound(model, others, targets, 0.5),
    )
    _, gradient = gradient_of(model, tokens, targets, 0.5)
    model.add_gradient(others, targets, 0.5, gradient, fresh=False)
    assert_gradient(gradient, bounded)
    both = np.concatenate([tokens, others]), np.concatenate([targets, targets])
    assert_gradient(gradient_of(model, *both, 0.5)[1], bounded)


@pytest.mark.parametrize("backend", BACKENDS)
@few(8)
@given(data=st.data())
def test_targets_of_minus_1_have_no_loss_and_no_gradient(backend: str, data: st.DataObject) -> None:
    """A target of -1 has loss 0; a batch of nothing else has gradient 0."""
    model, tokens, targets = drawn(data, backend)
    losses = gradient_of(model, tokens, targets)[0]
    assert not losses[targets == -1].any()
    losses, gradient = gradient_of(model, tokens, np.full_like(targets, -1))
    assert not losses.any()
    assert not gradient.flat.any()
    silent = np.concatenate([tokens, tokens]), np.concatenate([targets, np.full_like(targets, -1)])
    bound = training_bound(model, tokens, targets)
    assert_gradient(gradient_of(model, *silent)[1], bound.gradient)


@few(10)
@given(data=st.data())
def test_later_tokens_do_not_change_earlier_losses(data: st.DataObject) -> None:
    """The loss at t depends on tokens up to t and the target at t."""
    model, tokens, targets = drawn(data, "numpy")
    B, T = tokens.shape
    t = data.draw(st.integers(0, T - 1))
    other = np.where(np.arange(T) > t, 0, tokens)
    value, error = (a.reshape(B, T) for a in training_bound(model, tokens, targets).losses)
    found = model.losses(other, targets)[:, : t + 1]
    assert (np.abs(found - value[:, : t + 1]) <= error[:, : t + 1]).all()


@pytest.mark.parametrize("backend", BACKENDS)
@few(10)
@given(data=st.data())
def test_training_and_decoding_give_the_same_logits(backend: str, data: st.DataObject) -> None:
    """Logits of whole sequences in training equal those of the decoder."""
    model, tokens, targets = drawn(data, backend)
    bound = training_bound(model, tokens, targets).logits
    assert_close(model.forward(tokens, targets).logits, bound, "logits")
    decoder = family.decoder(model)
    T = tokens.shape[1]
    for b, row in enumerate(tokens):
        value, error = model_bound(decoder, row)
        played = decoder.forward(row, 0, decoder.new_cache(T))
        assert (np.abs(played - value) <= error).all()
        rows = slice(b * T, (b + 1) * T)  # both in float64: the same number
        assert (np.abs(value - bound.value[rows]) <= 1e-9 * (1 + np.abs(value))).all()


def test_matrices_decay_and_norms_do_not() -> None:
    """As in llama2.c: matrices of layers, and the embedding table."""
    assert set(MATRICES) == {name for name in TOY.shapes() if not name.endswith("norm")}


@few(10)
@given(data=st.data())
def test_the_bound_is_small_beside_the_gradient(data: st.DataObject) -> None:
    """A bound that is too wide would prove nothing."""
    model, tokens, targets = drawn(data, "numpy")
    bound = training_bound(model, tokens, targets)
    largest = max(np.abs(value).max() for value, _ in bound.gradient.values())
    for _, error in (bound.logits, bound.losses, *bound.gradient.values()):
        assert (error <= 1e-2 * max(1, largest)).all()


# ---- dropout --------------------------------------------------------------------------------

TOY = Llama2Config(8, 12, 2, 4, 2, 13, 6)


def toy(dropout: float, seed: int = 3) -> TrainableLlama2:
    return TrainableLlama2(
        TOY, strategies.random_parameters(TOY, 1), engine_of("numpy"), dropout, seed
    )


def toy_batch() -> tuple[Any, Any]:
    return tuple(np.random.default_rng(2).integers(0, TOY.vocab_size, (2, 3, 6)))


@pytest.mark.parametrize("backend", BACKENDS)
@few(8)
@given(data=st.data())
def test_dropout_masks_are_the_same_on_every_backend(backend: str, data: st.DataObject) -> None:
    """Losses and gradient are within the bounds of float64 with the same masks."""
    model, tokens, targets = drawn(data, backend, dropout=data.draw(st.sampled_from([0.1, 0.5])))
    bound = training_bound(model, tokens, targets)
    losses, gradient = gradient_of(model, tokens, targets)
    assert_close(losses.reshape(-1), bound.losses, "losses")
    assert_gradient(gradient, bound.gradient)


@pytest.mark.parametrize("backend", BACKENDS)
def test_validation_has_no_dropout(backend: str) -> None:
    """Losses for validation equal those of the same model without dropout, to the bit."""
    tokens, targets = toy_batch()
    engine = engine_of(backend)
    params = strategies.random_parameters(TOY, 1)
    dropping, whole = (TrainableLlama2(TOY, params, engine, p) for p in (0.5, 0.0))
    found, expected = (model.losses(tokens, targets) for model in (dropping, whole))
    np.testing.assert_array_equal(found, expected)
    assert (gradient_of(dropping, tokens, targets)[0] != expected).any()


def test_masks_depend_on_seed_update_and_micro_batch() -> None:
    """They depend on nothing else, so a resumed run draws the same masks."""
    batch = toy_batch()

    def losses(seed: int, update: int, micro_batch: int) -> Any:
        model = toy(0.3, seed)
        gradient = model.params.zeros_like()
        for before in range(5):  # an earlier run
            model.add_gradient(*batch, 1.0, gradient, fresh=before == 0)
        model.begin_update(update)
        for n in range(micro_batch + 1):
            found = model.add_gradient(*batch, 1.0, gradient, fresh=n == 0)
        return found.tolist()

    places = [(s, u, m) for s in (3, 4) for u in (0, 1, 7) for m in (0, 1, 2)]
    found = [losses(*place) for place in places]
    assert len({str(one) for one in found}) == len(places)
    assert [losses(*place) for place in places] == found


def test_dropout_masks_keep_the_mean() -> None:
    """A share p of a mask is 0, the rest 1 / (1 - p); masks of different places differ.

    The standard deviation of the share is √(p·(1-p)/n); eight times that is allowed.
    """
    p, N, C = 0.3, 400, 50
    model = toy(p)
    keep = model._masks(training=True)
    masks = [keep(N, C) for _ in range(3)]
    for mask in masks:
        assert mask.dtype == np.float32
        assert set(np.unique(mask).tolist()) == {0.0, float(np.float32(1 / (1 - p)))}
        assert abs((mask == 0).mean() - p) <= 8 * np.sqrt(p * (1 - p) / mask.size)
    assert (masks[0] != masks[1]).any()
    assert model._masks(training=False)(N, C) is None
    assert toy(0.0)._masks(training=True)(N, C) is None


def test_the_gradient_with_dropout_is_the_derivative_of_the_loss() -> None:
    """In float64: forward and backward use the same masks."""
    (tokens, targets), random = toy_batch(), np.random.default_rng(4)
    model = toy(0.3)
    wide: Any = model.params.flat.astype(np.float64)
    model.params = Parameters(model.params.shapes, wide)
    acts = model.forward(tokens, targets, training=True)
    dlosses: Any = random.normal(size=acts.losses.shape)
    gradient = model.backward(acts, dlosses)

    def weighted() -> Any:
        return dlosses * model.forward(tokens, targets, training=True).losses

    finding = gradcheck.Finding("dropout")
    for name, x in model.params.items():
        gradcheck.check_array(finding, weighted, x, gradient[name], random, most=5)
    assert finding.passed
    assert finding.relative <= 1e-6


def test_dropout_is_where_llama2_c_has_it() -> None:
    """On the embedding, the attention weights and the results of both blocks, nowhere else."""
    tokens, targets = toy_batch()
    acts = toy(0.4).forward(tokens, targets, training=True)
    N, C, (B, T) = tokens.size, TOY.dim, tokens.shape
    assert acts.keep is not None
    dropped = acts.keep == 0
    assert not acts.blocks[0].x[dropped].any()
    assert acts.blocks[0].x[~dropped].all()
    for block in acts.blocks:
        weights, attention, ffn = block.keep
        assert weights is not None
        assert attention is not None
        assert ffn is not None
        assert weights.shape == (B, TOY.n_heads, T, T)
        assert attention.shape == ffn.shape == (N, C)
        np.testing.assert_array_equal(block.middle[attention == 0], block.x[attention == 0])
        assert (block.middle != block.x)[attention != 0].any()
    after = [block.x for block in acts.blocks[1:]] + [acts.x]
    for block, x in zip(acts.blocks, after, strict=True):
        ffn = block.keep[2]
        np.testing.assert_array_equal(x[ffn == 0], block.middle[ffn == 0])
        assert (x != block.middle)[ffn != 0].any()
