"""Whole passes of the Numba engine; `test_model.py` has the tests for every backend."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("numba", reason="needs numba")
import numba

if numba.config.DISABLE_JIT:
    pytest.skip("then there is no engine", allow_module_level=True)

from pyllm2.backends import Engine, engine
from pyllm2.fast.gpt2 import kernels
from pyllm2.fast.gpt2.attention import ROWS
from pyllm2.fast.rows import COLUMNS, LANES
from pyllm2.gpt2 import ops as specification
from pyllm2.gpt2.config import GPT2Config
from pyllm2.gpt2.training import TrainableGPT2
from pyllm2.parameters import Parameters
from pyllm2.testing import assert_close, training_bound
from pyllm2.testing.gpt2 import bounds, strategies
from tests.gpt2 import golden as files
from tests.support.profiles import few

ENGINE = engine("numba", family="gpt2")

# More than one block of queries, more channels than one thread sums, odd head sizes, a vocabulary
# that LANES does not divide, padding.
LONG = GPT2Config(ROWS + 40, LANES + 5, 2, 3, COLUMNS + 11, LANES + 9)


def model_of(config: GPT2Config, on: Engine, seed: int = 0) -> tuple[TrainableGPT2, Any, Any]:
    """A random model; tokens and targets of two full rows."""
    random = np.random.default_rng(seed)
    params = Parameters(config.shapes())
    params.flat[...] = 0.3 * random.standard_normal(params.flat.size)
    shape = (2, config.max_seq_len)
    tokens, targets = (random.integers(0, config.vocab_size, shape) for _ in range(2))
    return TrainableGPT2(config, params, on), tokens, targets


def step(
    model: TrainableGPT2, tokens: Any, targets: Any, dloss: float = 0.5
) -> tuple[Any, Parameters]:
    """Losses and gradient; grads holds NaN before."""
    grads = model.params.zeros_like()
    grads.flat[...] = np.nan
    return model.add_gradient(tokens, targets, dloss, grads, fresh=True), grads


def test_long_sequences_lie_within_the_bound() -> None:
    """Attention works in more than one block of queries."""
    model, tokens, targets = model_of(LONG, ENGINE)
    bound = training_bound(model, tokens, targets, 0.5)
    losses, grads = step(model, tokens, targets)
    assert_close(losses, bound.losses, "losses")
    assert_close(model.losses(tokens, targets), bound.losses, "losses alone")
    for name, expected in bound.gradient.items():
        assert_close(grads[name], expected, f"gradient of {name}")


def test_gelu_lies_within_the_bound_of_the_op() -> None:
    """From -20 to 20, and tiny numbers: the bound of a whole model would be too wide."""
    grid = np.linspace(-20, 20, 4001)
    x = np.concatenate([grid, 1e-20 * grid]).astype(np.float32)[None]
    dout = np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    out, dx = np.empty_like(x), dout.copy()
    kernels.gelu_forward(x, out)
    kernels.gelu_backward(dx, x)
    assert_close(out, bounds.gelu_forward(x), "gelu")
    assert_close(dx, bounds.gelu_backward(dout, x), "gelu backward")


def test_a_gradient_is_added_to_what_was_there() -> None:
    """The same batch twice gives twice its gradient, within one rounding."""
    model, tokens, targets = model_of(LONG, ENGINE)
    _, once = step(model, tokens, targets)
    twice = Parameters(once.shapes, once.flat.copy())
    model.add_gradient(tokens, targets, 0.5, twice, fresh=False)
    bound = training_bound(model, tokens, targets, 0.5)
    for name, (value, error) in bound.gradient.items():
        room = 2 * error + 2.0**-23 * np.abs(2 * value)
        assert (np.abs(twice[name] - 2 * value) <= room).all(), name


@few(10)
@given(data=st.data())
def test_the_same_bits_again_and_for_any_number_of_threads(data: st.DataObject) -> None:
    """A resumed run continues with the same bits."""
    model = data.draw(strategies.trainable_models(ENGINE))
    tokens, targets = data.draw(strategies.batches(model.config))
    losses, grads = step(model, tokens, targets)
    for other in (ENGINE, engine("numba", 1, "gpt2"), engine("numba", 2, "gpt2")):
        again = TrainableGPT2(model.config, model.params, other)
        other_losses, other_grads = step(again, tokens, targets)
        np.testing.assert_array_equal(losses, other_losses)
        np.testing.assert_array_equal(grads.flat, other_grads.flat)
        np.testing.assert_array_equal(losses, again.losses(tokens, targets))


def test_the_number_of_threads_is_restored_and_changes_no_bit() -> None:
    """There is enough work for both threads."""
    config = GPT2Config(64, 300, 1, 4, 128, 320)
    usual, results = numba.get_num_threads(), []
    for threads in (1, 2):
        model, tokens, targets = model_of(config, engine("numba", threads, "gpt2"))
        results.append(step(model, tokens, targets))
        assert numba.get_num_threads() == usual
    (losses, grads), (other_losses, other_grads) = results
    np.testing.assert_array_equal(losses, other_losses)
    np.testing.assert_array_equal(grads.flat, other_grads.flat)


def test_batches_of_other_shapes_in_between_change_nothing() -> None:
    """Buffers are used again: the contents from an earlier batch must not matter."""
    model, tokens, targets = model_of(LONG, engine("numba", family="gpt2"))
    losses, grads = step(model, tokens, targets)
    for B, T in [(1, 1), (2, 7), (1, LONG.max_seq_len)]:
        step(model, tokens[:B, :T], targets[:B, :T])
        model.losses(tokens[:B, :T], targets[:B, :T])
    other, other_tokens, other_targets = model_of(LONG, model.engine, seed=1)
    step(other, other_tokens, other_targets)
    again, again_grads = step(model, tokens, targets)
    np.testing.assert_array_equal(losses, again)
    np.testing.assert_array_equal(grads.flat, again_grads.flat)


def test_losses_are_not_overwritten_by_the_next_batch() -> None:
    """Each call returns a new array."""
    model, tokens, targets = model_of(LONG, ENGINE)
    losses = model.losses(tokens, targets)
    kept = losses.copy()
    model.losses(targets, tokens)
    np.testing.assert_array_equal(losses, kept)


def test_evaluating_first_changes_no_gradient() -> None:
    """Evaluation needs smaller buffers, which training must not use."""
    model, tokens, targets = model_of(LONG, engine("numba", family="gpt2"))
    found = model.losses(tokens, targets)
    losses, grads = step(model, tokens, targets)
    np.testing.assert_array_equal(found, losses)
    _, expected = step(TrainableGPT2(LONG, model.params, ENGINE), tokens, targets)
    np.testing.assert_array_equal(grads.flat, expected.flat)


@pytest.mark.parametrize("weight", ["wpe", "qkvb", "fcw", "lnfw"])
def test_nan_propagates(weight: str) -> None:
    """A NaN weight gives the losses and gradients that plain ops give."""
    model, tokens, targets = model_of(LONG, ENGINE)
    model.params[weight].flat[0] = np.nan
    losses, grads = step(model, tokens, targets)
    expected, tensors = step(model.with_ops(specification), tokens, targets)
    np.testing.assert_array_equal(np.isnan(losses), np.isnan(expected))
    for name, tensor in tensors.items():
        assert np.isnan(grads[name])[np.isnan(tensor)].all(), name


def test_a_row_of_logits_below_the_floor_is_nan_and_an_underflow_infinite() -> None:
    """As in the specification, the maximum starts at -10000."""
    config = GPT2Config(1, 2, 1, 1, 4, 3)
    for scale, expected in [(-1e5, np.nan), (1e3, np.inf)]:
        model, _, _ = model_of(config, ENGINE)
        model.params.lnfw[:], model.params.lnfb[:] = 0, 1
        model.params.wte[:] = [[scale / 4], [(scale if scale < 0 else 0) / 4], [np.inf]]
        found = model.losses(np.zeros((1, 1), int), np.ones((1, 1), int))
        np.testing.assert_array_equal(found, [[np.float32(expected)]])


def test_float64_parameters_use_plain_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that read addresses would read float64 as float32."""
    # NumPy's ops: Numba would compile every plain op for float64, for this test alone.
    assert ENGINE.losses is not None
    monkeypatch.setattr(ENGINE.losses.__self__, "_plain", specification)
    model, tokens, targets = model_of(LONG, ENGINE)
    params = Parameters(model.params.shapes, model.params.flat.astype(np.float64))
    losses, grads = step(TrainableGPT2(LONG, params, ENGINE), tokens, targets)
    bound = training_bound(model, tokens, targets, 0.5)
    assert_close(losses.astype(np.float32), bound.losses, "losses")
    for name, expected in bound.gradient.items():
        assert_close(grads[name].astype(np.float32), expected, name)


@pytest.mark.parametrize(
    ("tokens", "targets", "error"),
    [
        ([[0, 2]], [[0, 1]], IndexError),
        ([[0, 1]], [[0, 2]], IndexError),
        ([[-1, 1]], [[0, 1]], IndexError),
        ([[0, 0, 0, 0]], [[0, 0, 0, 0]], ValueError),
        ([[0, 1]], [[0]], ValueError),
    ],
)
def test_ids_outside_the_arrays_are_refused(tokens: Any, targets: Any, error: Any) -> None:
    """A kernel would read and write at any index."""
    model, _, _ = model_of(GPT2Config(3, 2, 1, 1, 2, 4), ENGINE)
    with pytest.raises(error):
        model.losses(np.array(tokens), np.array(targets))
    with pytest.raises(error):
        step(model, np.array(tokens), np.array(targets))


@pytest.mark.parametrize("name", files.STEPS)
def test_recorded_steps_lie_within_the_bound(name: str, shared: Path) -> None:
    """Losses and gradients of the golden models."""
    path = shared / "golden" / "llmc" / "models" / f"{name}.npz"
    recorded = np.load(path)
    model = files.read_model(path.parent, ENGINE)
    bound = files.bound_of_step(path)
    losses, grads = step(model, recorded["x"], recorded["y"], 1 / recorded["x"].size)
    assert_close(losses, bound.losses, "losses")
    for tensor, expected in bound.gradient.items():
        assert_close(grads[tensor], expected, tensor)


def _in_a_child(answers: Any) -> None:
    model, tokens, targets = model_of(LONG, ENGINE)
    losses, grads = step(model, tokens, targets)
    answers.put((losses, grads.flat))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_can_train() -> None:
    """Parallel kernels would abort in the child: plain ops run instead."""
    model, tokens, targets = model_of(LONG, ENGINE)
    bound = training_bound(model, tokens, targets, 0.5)
    step(model, tokens, targets)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_in_a_child, args=(answers,))
    child.start()
    losses, flat = answers.get(timeout=300)
    child.join()
    assert_close(losses, bound.losses, "losses")
    for name, expected in bound.gradient.items():
        assert_close(Parameters(model.params.shapes, flat)[name], expected, name)
