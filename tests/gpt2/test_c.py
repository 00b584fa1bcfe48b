"""What Python adds to csrc/gpt2 and adamw.c: fresh outputs, kept buffers, threads, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pyllm2.gpt2.config import GPT2Config
from pyllm2.gpt2.training import TrainableGPT2
from pyllm2.parameters import Parameters
from tests.support.tested import BACKENDS, engine_of, ops_of

C_BACKENDS = [backend for backend in BACKENDS if backend.startswith("c")]
CONFIG = GPT2Config(
    max_seq_len=8, vocab_size=11, num_layers=2, num_heads=2, channels=6, padded_vocab_size=12
)


def random_model(backend: str, seed: int = 0, config: GPT2Config = CONFIG) -> TrainableGPT2:
    params = Parameters(config.shapes())
    params.flat[...] = np.random.default_rng(seed).normal(0, 0.5, params.flat.size)
    return TrainableGPT2(config, params, engine_of(backend, "gpt2"))


def batch(B: int, T: int, seed: int = 0) -> Any:
    """tokens, targets: (B, T), int64 as a data loader may give them"""
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, (2, B, T))


@pytest.mark.parametrize("backend", [b for b in C_BACKENDS if b.endswith("-strict")])
def test_the_whole_model_is_the_composition_of_its_ops(backend: str) -> None:
    """A strict build gives equal bits."""
    model, (tokens, targets) = random_model(backend), batch(2, 5)
    acts = model.forward(tokens, targets)
    composed = model.backward(acts, np.full((2, 5), 0.1, np.float32))
    grads = composed.zeros_like()
    losses = model.add_gradient(tokens, targets, 0.1, grads, fresh=True)
    np.testing.assert_array_equal(losses, acts.losses)
    np.testing.assert_array_equal(model.losses(tokens, targets), acts.losses)
    np.testing.assert_array_equal(grads.flat, composed.flat)


@pytest.mark.parametrize("backend", C_BACKENDS)
def test_a_fresh_gradient_does_not_depend_on_what_was_there(backend: str) -> None:
    """The same batch twice gives the same bits, whatever grads and the buffers held."""
    model, (tokens, targets) = random_model(backend), batch(2, 4)
    first, second = model.params.zeros_like(), model.params.zeros_like()
    second.flat.fill(np.nan)
    for grads in (first, second):
        model.add_gradient(tokens, targets, 0.5, grads, fresh=True)
    assert first.flat.any()
    np.testing.assert_array_equal(first.flat, second.flat)


@pytest.mark.parametrize("backend", C_BACKENDS)
def test_a_gradient_that_is_not_fresh_is_added(backend: str) -> None:
    """Added to zeros it equals a fresh one; with dloss 0 nothing changes."""
    model, (tokens, targets) = random_model(backend), batch(2, 4)
    grads, fresh = model.params.zeros_like(), model.params.zeros_like()
    model.add_gradient(tokens, targets, 0.5, fresh, fresh=True)
    model.add_gradient(tokens, targets, 0.5, grads, fresh=False)
    np.testing.assert_array_equal(grads.flat, fresh.flat)
    model.add_gradient(tokens, targets, 0.0, grads, fresh=False)
    np.testing.assert_array_equal(grads.flat, fresh.flat)


@pytest.mark.parametrize("backend", C_BACKENDS)
def test_kept_buffers_do_not_affect_results(backend: str) -> None:
    """Shapes, models and batches may alternate; earlier losses do not change."""
    one, other = random_model(backend, 1), random_model(backend, 2)
    deeper = GPT2Config(8, 11, 3, 3, 6, 13)
    wanted = {}
    for again in range(2):
        for model in (one, other, random_model(backend, 3, deeper)):
            for B, T in ((2, 3), (3, 2), (2, 3)):
                tokens, targets = batch(B, T, seed=B)
                grads = model.params.zeros_like()
                losses = model.add_gradient(tokens, targets, 1.0, grads, fresh=True)
                key = (model.params.flat[0], B, T)
                if again:
                    np.testing.assert_array_equal(losses, wanted[key][0])
                    np.testing.assert_array_equal(grads.flat, wanted[key][1])
                np.testing.assert_array_equal(model.losses(tokens, targets), losses)
                wanted[key] = losses, grads.flat
    assert len(wanted) == 6


@pytest.mark.parametrize("backend", C_BACKENDS)
def test_parameters_are_read_at_every_call(backend: str) -> None:
    """They may be changed in place or replaced by a read-only vector."""
    model, (tokens, targets) = random_model(backend, 1), batch(1, 4)
    before = model.losses(tokens, targets)
    model.params.flat *= np.float32(1.5)
    changed = model.losses(tokens, targets)
    assert (changed != before).any()
    flat = random_model(backend, 1).params.flat
    flat.flags.writeable = False
    model.params = Parameters(CONFIG.shapes(), flat)
    np.testing.assert_array_equal(model.losses(tokens, targets), before)


@pytest.mark.parametrize("backend", C_BACKENDS)
def test_a_backward_does_not_change_its_arguments(backend: str) -> None:
    """encoder_backward returns sums and leaves the caller's gradients as they are."""
    ops, (tokens, _) = ops_of(backend, "gpt2"), batch(2, 3)
    dwte, dwpe = np.ones((12, 6), np.float32), np.ones((8, 6), np.float32)
    dout = np.ones((2, 3, 6), np.float32)
    dwte_after, dwpe_after = ops.encoder_backward(dout, tokens, dwte, dwpe)
    assert (dwte == 1).all()
    assert (dwpe == 1).all()
    times = np.bincount(tokens.ravel(), minlength=12)
    np.testing.assert_array_equal(dwte_after, 1 + np.repeat(times[:, None], 6, axis=1))
    np.testing.assert_array_equal(dwpe_after[:, 0], [3, 3, 3, 1, 1, 1, 1, 1])


@pytest.mark.parametrize("backend", C_BACKENDS)
def test_a_gradient_that_c_could_only_copy_is_refused(backend: str) -> None:
    """Writing into a copy would lose the gradient silently."""
    model, (tokens, targets) = random_model(backend), batch(1, 3)
    n = CONFIG.parameters()
    for flat in (np.zeros(n), np.zeros(2 * n, np.float32)[::2]):
        for fresh in (True, False):
            with pytest.raises(TypeError, match="contiguous float32 array"):
                model.add_gradient(tokens, targets, 1, Parameters(CONFIG.shapes(), flat), fresh)


@pytest.mark.parametrize("backend", C_BACKENDS)
@pytest.mark.parametrize("bad", [0, 2, 3])
def test_adamw_refuses_what_it_cannot_write_into(backend: str, bad: int) -> None:
    """Parameters and moments in float64, with gaps or read-only; any gradient can be read."""
    ops = ops_of(backend, "training")
    read_only = np.ones(4, np.float32)
    read_only.flags.writeable = False
    hyper = (1, 0.1, 0.9, 0.99, 1e-8, 0)
    for a in (np.ones(4), np.ones(8, np.float32)[::2], read_only):
        arrays = [np.ones(4, np.float32) for _ in range(4)]
        arrays[1] = a
        ops.adamw_update(*arrays, *hyper)
        assert (arrays[0] < 1).all()
        arrays[bad] = a
        with pytest.raises(TypeError, match="contiguous writeable float32 array"):
            ops.adamw_update(*arrays, *hyper)


@pytest.mark.parametrize("backend", C_BACKENDS)
@pytest.mark.parametrize("exponent", [0, 100, -100])
def test_the_global_norm_is_taken_in_double(backend: str, exponent: int) -> None:
    """Squares of scaled 3, 4 and 5 leave the range of float32, but not of double."""
    dw = np.ldexp(np.float32([3, 0, -4]), exponent)
    assert ops_of(backend, "training").global_norm(dw) == 5 * 2.0**exponent
