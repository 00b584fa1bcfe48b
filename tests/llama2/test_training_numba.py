"""Training of Llama-2 in Numba: bits of the ops, and whole passes.

`test_training.py` has the tests for every backend.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("numba", reason="needs numba")
import numba

if numba.config.DISABLE_JIT:
    pytest.skip("then there is no engine", allow_module_level=True)

from pyllm2 import backends
from pyllm2.backends import Engine, engine
from pyllm2.fast.rows import COLUMNS
from pyllm2.fast.tile import LANES, MR, NR
from pyllm2.llama2 import ops as specification
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.ops_numba import Ops
from pyllm2.llama2.training import TrainableLlama2
from pyllm2.parameters import Parameters
from pyllm2.testing import assert_close, training_bound
from pyllm2.testing.llama2 import strategies
from pyllm2.testing.llama2.table import OPS
from pyllm2.testing.model_bound import added
from tests.support.profiles import few
from tests.support.tested import engine_of, ops_of

needs_c = pytest.mark.skipif(backends.why_not("c") is not None, reason=f"c {backends.why_not('c')}")

ENGINE = engine("numba")

# Ragged: several blocks of queries, sizes that no panel divides. Whole: sizes that panels and
# blocks divide. Wide: more channels than one thread sums, one key/value head.
RAGGED = Llama2Config(4 * (MR - 2), 21, 2, 4, 2, LANES + 9, 2 * NR + 5)
WHOLE = Llama2Config(4 * MR, 3 * LANES, 1, 2, 2, 4 * LANES, 2 * NR)
WIDE = Llama2Config(2 * (COLUMNS - 10), 13, 1, 2, 1, 33, LANES + 3)
SHAPES = pytest.mark.parametrize("config", [RAGGED, WHOLE, WIDE], ids=["ragged", "whole", "wide"])


def assert_same(found: Any, expected: Any) -> None:
    found, expected = (a if isinstance(a, tuple) else (a,) for a in (found, expected))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


# ---- the plain ops ----------------------------------------------------------------------------


@needs_c
@pytest.mark.parametrize("name", OPS)
@given(data=st.data())
def test_two_strict_ops_agree_to_the_last_bit(name: str, data: st.DataObject) -> None:
    """C and Numba give the same bits for any inputs."""
    inputs = data.draw(OPS[name].inputs)
    found, expected = (
        getattr(ops_of(backend), name)(*inputs) for backend in ("numba-strict", "c-strict")
    )
    assert_same(found, expected)


@needs_c
@few()
@given(data=st.data())
def test_two_strict_models_agree_to_the_last_bit(data: st.DataObject) -> None:
    """Losses and gradient, with and without dropout."""
    dropout = data.draw(st.sampled_from([0.0, 0.3]))
    model = data.draw(strategies.trainable_models(engine_of("numba-strict"), dropout))
    tokens, targets = data.draw(strategies.batches(model.config))
    other = TrainableLlama2(
        model.config, model.params, engine_of("c-strict"), model.dropout, model.seed
    )
    (losses, grads), (other_losses, other_grads) = (
        step(m, tokens, targets) for m in (model, other)
    )
    assert_same((losses, grads.flat), (other_losses, other_grads.flat))


_made: dict[int, Any] = {}


@pytest.mark.parametrize("name", OPS)
@given(data=st.data())
def test_the_bits_of_an_op_do_not_depend_on_the_number_of_threads(
    name: str, data: st.DataObject
) -> None:
    """Threads share rows, outputs or groups of heads; no sum is split."""
    inputs = data.draw(OPS[name].inputs)
    one, two = (_made.setdefault(n, Ops("fast", n)) for n in (1, 2))
    assert_same(getattr(one, name)(*inputs), getattr(two, name)(*inputs))


# ---- the whole step ---------------------------------------------------------------------------


def model_of(config: Llama2Config, on: Engine = ENGINE, seed: int = 0) -> Any:
    """A random model; tokens and targets of two full rows, some targets -1."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, config.vocab_size, (2, config.seq_len))
    targets = random.integers(-1, config.vocab_size, tokens.shape)
    params = strategies.random_parameters(config, seed)
    return TrainableLlama2(config, params, on), tokens, targets


def step(model: Any, tokens: Any, targets: Any, dloss: float = 0.5) -> tuple[Any, Parameters]:
    """Losses and gradient; grads holds NaN before."""
    grads = model.params.zeros_like()
    grads.flat[...] = np.nan
    return model.add_gradient(tokens, targets, dloss, grads, fresh=True), grads


def assert_step(losses: Any, grads: Parameters, bound: Any) -> None:
    assert_close(losses.reshape(-1), bound.losses, "losses")
    for name, expected in bound.gradient.items():
        assert_close(grads[name], expected, f"gradient of {name}")


@SHAPES
def test_the_step_and_its_composition_lie_within_one_bound(config: Llama2Config) -> None:
    """The whole passes, the plain ops, and two micro-batches added up."""
    model, tokens, targets = model_of(config)
    bound = training_bound(model, tokens, targets, 0.5)
    losses, grads = step(model, tokens, targets)
    assert_step(losses, grads, bound)
    assert_step(*step(model.with_ops(Ops("fast")), tokens, targets), bound)
    np.testing.assert_array_equal(model.losses(tokens, targets), losses)
    model.add_gradient(tokens, targets, 0.5, grads, fresh=False)
    for name, expected in added(bound, bound).items():
        assert_close(grads[name], expected, f"gradient of {name}, twice")


def test_dropout_uses_plain_ops() -> None:
    """A step with dropout uses the same masks as every backend."""
    model, tokens, targets = model_of(WHOLE)
    dropping = TrainableLlama2(WHOLE, model.params, ENGINE, dropout=0.4, seed=5)
    assert_step(*step(dropping, tokens, targets), training_bound(dropping, tokens, targets, 0.5))


@few(10)
@given(data=st.data())
def test_the_same_bits_again_and_for_any_number_of_threads(data: st.DataObject) -> None:
    """A resumed run continues with the same bits."""
    model = data.draw(strategies.trainable_models(ENGINE))
    tokens, targets = data.draw(strategies.batches(model.config))
    losses, grads = step(model, tokens, targets)
    for other in (ENGINE, engine("numba", 1), engine("numba", 2)):
        again = TrainableLlama2(model.config, model.params, other)
        other_losses, other_grads = step(again, tokens, targets)
        assert_same((losses, grads.flat), (other_losses, other_grads.flat))


def test_the_number_of_threads_is_restored_and_changes_no_bit() -> None:
    """There is enough work for both threads."""
    config = Llama2Config(64, 176, 1, 8, 4, 200, 2 * NR)
    usual, results = numba.get_num_threads(), []
    for threads in (1, 2):
        model, tokens, targets = model_of(config, engine("numba", threads))
        losses, grads = step(model, tokens, targets)
        results.append((losses, grads.flat))
        assert numba.get_num_threads() == usual
    assert_same(*results)


def test_batches_of_other_shapes_in_between_change_nothing() -> None:
    """Buffers are used again: the contents from an earlier batch must not matter."""
    model, tokens, targets = model_of(RAGGED, engine("numba"))
    losses, grads = step(model, tokens, targets)
    for B, T in [(1, 1), (2, 7), (1, RAGGED.seq_len)]:
        step(model, tokens[:B, :T], targets[:B, :T])
        model.losses(tokens[:B, :T], targets[:B, :T])
    other, other_tokens, other_targets = model_of(RAGGED, model.engine, seed=1)
    step(other, other_tokens, other_targets)
    kept = model.losses(tokens, targets)
    again, again_grads = step(model, tokens, targets)
    assert_same((losses, losses, grads.flat), (again, kept, again_grads.flat))


@pytest.mark.parametrize("weight", ["token_embedding", "wk", "wv", "w1", "final_norm"])
def test_nan_propagates(weight: str) -> None:
    """A NaN weight gives the losses and gradients that plain ops give."""
    model, tokens, targets = model_of(RAGGED)
    model.params[weight].flat[0] = np.nan
    losses, grads = step(model, tokens, targets)
    plain = model.with_ops(ops_of("numpy"))
    expected, tensors = step(plain, tokens, targets)
    np.testing.assert_array_equal(np.isnan(losses), np.isnan(expected))
    for name, tensor in tensors.items():
        assert np.isnan(grads[name])[np.isnan(tensor)].all(), name


@pytest.mark.parametrize("sign", [-1, 1])
def test_huge_logits_do_not_overflow(sign: int) -> None:
    """The maximum is subtracted first: logits are near ±42000 and at most 141 apart."""
    model, _, _ = model_of(Llama2Config(2, 1, 1, 1, 1, 3, 2))
    model.params.flat[...] = 0
    model.params.token_embedding[...] = [[30000, 1], [30000, 1], [29900, 1]]
    model.params.final_norm[...] = sign, 0
    tokens, targets = np.zeros((1, 2), int), np.array([[1, 2]])
    losses, grads = step(model, tokens, targets)
    assert_step(losses, grads, training_bound(model, tokens, targets, 0.5))
    assert 141 < losses.max() < 143


def test_huge_scores_do_not_overflow() -> None:
    """The maximum is subtracted from attention scores whose exp would be infinite."""
    model, tokens, targets = model_of(WIDE)
    model.params.wq[...] *= 30
    model.params.wk[...] *= 30
    block = model.forward(tokens, targets).blocks[0]
    scores = np.einsum("bthi,bsgi->bhts", block.q, block.k) / np.sqrt(WIDE.head_size)
    assert np.abs(np.diagonal(scores, axis1=2, axis2=3)).max() > 100
    assert_step(*step(model, tokens, targets), training_bound(model, tokens, targets, 0.5))


def test_float64_parameters_use_plain_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that read addresses would read float64 as float32."""
    # NumPy's ops: Numba would compile every plain op for float64, for this test alone.
    assert ENGINE.losses is not None
    monkeypatch.setattr(ENGINE.losses.__self__, "_plain", specification)
    model, tokens, targets = model_of(WHOLE)
    params = Parameters(model.params.shapes, model.params.flat.astype(np.float64))
    bound = training_bound(model, tokens, targets, 0.5)
    losses, grads = step(TrainableLlama2(WHOLE, params, ENGINE), tokens, targets)
    assert grads.flat.dtype == np.float64
    for name, (value, error) in bound.gradient.items():
        assert (np.abs(grads[name] - value) <= error).all(), name
    assert (np.abs(losses.reshape(-1) - bound.losses.value) <= bound.losses.error).all()


@pytest.mark.parametrize(
    ("tokens", "targets", "error"),
    [
        ([[0, 3]], [[0, 1]], IndexError),
        ([[0, 1]], [[0, 3]], IndexError),
        ([[-1, 1]], [[0, 1]], IndexError),
        ([[0, 1]], [[0, -2]], IndexError),
        ([[0, 1]], [[0]], ValueError),
    ],
)
def test_ids_outside_the_arrays_are_refused(tokens: Any, targets: Any, error: Any) -> None:
    """A kernel would read and write at any index."""
    model, _, _ = model_of(Llama2Config(2, 1, 1, 1, 1, 3, 2))
    with pytest.raises(error):
        model.losses(np.array(tokens), np.array(targets))
    with pytest.raises(error):
        step(model, np.array(tokens), np.array(targets))


# ---- other processes --------------------------------------------------------------------------

# Every op of training on a small model; prints losses and gradients.
TRAIN = """
import numpy as np
from pyllm2 import backends
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.training import TrainableLlama2
from pyllm2.parameters import Parameters

config = Llama2Config(8, 12, 2, 4, 2, 13, 6)
params = Parameters(config.shapes())
params.flat[:] = np.random.default_rng(0).normal(0, 0.3, params.flat.size)
tokens, targets = np.random.default_rng(1).integers(0, 13, (2, 2, 5))
for dropout in (0.0, 0.4):
    model = TrainableLlama2(config, params, backends.engine(BACKEND), dropout)
    grads = params.zeros_like()
    for n in range(2):
        losses = model.add_gradient(tokens, targets, 0.1, grads, fresh=n == 0)
        print(f"{losses.mean():.4f} {abs(grads.flat).max():.4f} {abs(grads.flat).mean():.4f}")
"""


def trained(backend: str, **environment: str) -> list[float]:
    """The numbers that training prints."""
    result = subprocess.run(
        [sys.executable, "-c", f"BACKEND = {backend!r}\n{TRAIN}"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (result.returncode, result.stderr) == (0, "")
    return [float(word) for word in result.stdout.split()]


@pytest.mark.parametrize("backend", ["numba", "numba-strict"])
def test_every_op_runs_as_plain_python(backend: str) -> None:
    """Nothing is compiled, for a debugger; four printed digits are the same."""
    found, expected = trained(backend, NUMBA_DISABLE_JIT="1"), trained("numpy")
    assert len(found) == 12
    assert np.abs(np.subtract(found, expected)).max() <= 2e-4


def _in_a_child(answers: Any) -> None:
    model, tokens, targets = model_of(RAGGED)
    losses, grads = step(model, tokens, targets)
    answers.put((losses, grads.flat, model.losses(tokens, targets)))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_can_train() -> None:
    """Parallel kernels would abort in the child: plain ops run instead."""
    model, tokens, targets = model_of(RAGGED)
    bound = training_bound(model, tokens, targets, 0.5)
    step(model, tokens, targets)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_in_a_child, args=(answers,))
    child.start()
    losses, flat, alone = answers.get(timeout=300)
    child.join()
    assert_step(losses, Parameters(model.params.shapes, flat), bound)
    np.testing.assert_array_equal(losses, alone)
