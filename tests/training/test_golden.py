"""The training loop against recorded runs of llm.c's CPU trainer and the rules of its GPU trainer.

The tolerances come with the recordings: about five times the error of a plain float32
implementation. The strict backends must agree to the last bit.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pyllm2 import backends
from pyllm2.gpt2.checkpoint import load_parameters
from pyllm2.gpt2.training import MATRICES, TrainableGPT2
from pyllm2.parameters import Parameters
from pyllm2.training.loader import DataLoader
from pyllm2.training.recipe import Plan, Recipe
from pyllm2.training.trainer import Loader, Trainer
from tests.support.tested import BACKENDS
from tests.support.toy_training import InTurn, NoFolder, Record
from tests.training.conftest import RequireBackend

LOSS = 5e-5
NORM = 1e-5  # relative; as for a gradient, relative to its largest element
STRICT = ("c-strict", "numba-strict")


def run(
    golden: Path, recipe: Recipe, plan: Plan, train: Loader, val: Loader, backend: str
) -> tuple[Trainer, Record]:
    config, params = load_parameters(golden / "models" / "tiny" / "model.bin")
    record = Record()
    trainer = Trainer(
        TrainableGPT2(config, params, backends.engine(backend, 1, "gpt2")),
        backends.ops(backend, 1, "training"),
        recipe,
        plan,
        train,
        val,
        NoFolder(),
        MATRICES,
        {},
        list,
        record,
    )
    assert trainer.run()
    return trainer, record


def assert_near(found: Parameters, recorded: NDArray[np.float32], rate: float) -> None:
    """Check that 99.9 % of the parameters are within 1e-5, and all within half the learning rate.

    Key biases are left out: their gradient is rounding error around 0, which Adam amplifies.
    """
    difference = Parameters(found.shapes, np.abs(found.flat - recorded))
    C = found.wte.shape[1]
    difference.qkvb[:, C : 2 * C] = 0
    assert np.quantile(difference.flat, 0.999) <= 1e-5
    assert difference.flat.max() <= 0.5 * rate


@pytest.mark.parametrize("backend", BACKENDS)
def test_runs_equal_the_cpu_trainer(
    backend: str, shared: Path, require_backend: RequireBackend
) -> None:
    """41 updates at a constant rate with the CPU decay rule: losses, validation losses, weights."""
    require_backend(backend)
    golden = shared / "golden" / "llmc"
    folder = golden / "trainer_cpu" / "tiny"
    log = json.loads((folder / "log.json").read_text())
    recipe = Recipe(
        batch=log["B"],
        context=log["T"],
        total_batch=log["B"] * log["T"],
        steps=log["steps"] + 1,
        learning_rate=log["hyper"]["lr"],
        schedule="constant",
        decay="all",
        clip=0.0,
        beta1=log["hyper"]["beta1"],
        beta2=log["hyper"]["beta2"],
        epsilon=log["hyper"]["eps"],
    )
    plan = Plan(validate_every=log["val_every"], validation_batches=log["val_batches"])
    train = DataLoader(folder / "train.bin", recipe.batch, recipe.context, shuffle=True)
    val = DataLoader(folder / "val.bin", recipe.batch, recipe.context)
    trainer, record = run(golden, recipe, plan, train, val, backend)

    losses = [event["train_loss"] for event in log["events"] if "train_loss" in event]
    validations = [event["val_loss"] for event in log["events"] if "val_loss" in event]
    found = [update.loss for update in record.updates]
    found_validations = [loss for step, loss in record.validations.items() if step <= log["steps"]]
    final = np.load(folder / "final.npz")["params"]
    if backend in STRICT:
        assert found == losses
        assert found_validations == validations
        np.testing.assert_array_equal(trainer.model.params.flat, final)
    else:
        np.testing.assert_allclose(found, losses, rtol=0, atol=LOSS)
        np.testing.assert_allclose(found_validations, validations, rtol=0, atol=LOSS)
        assert_near(trainer.model.params, final, recipe.learning_rate)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["tiny_accum2", "tiny_2proc"])
def test_runs_follow_the_gpu_trainer(
    name: str, backend: str, shared: Path, require_backend: RequireBackend
) -> None:
    """Clipping, accumulation or two processes, decay of matrices, cosine and linear schedules.

    The recording is in float64, so no backend agrees to the last bit.
    """
    require_backend(backend)
    golden = shared / "golden" / "llmc"
    folder = golden / "trainer_cuda_semantics" / name
    log = json.loads((folder / "log.json").read_text())
    P, B, T = log["num_processes"], log["B"], log["T"]
    recipe = Recipe(
        batch=B,
        context=T,
        total_batch=log["total_batch_size"],
        steps=log["steps"],
        learning_rate=log["lr"],
        warmup=log["warmup"],
        schedule=log["scheduler"],
        final_fraction=log["final_frac"],
        weight_decay=log["weight_decay"],
        decay="matrices",
        beta1=log["betas"][0],
        beta2=log["betas"][1],
        epsilon=log["eps"],
        clip=log["clip"],
    )
    assert recipe.micro_steps == log["grad_accum_steps"] * P
    pattern = str(folder / "train_*.bin")
    ranks = [DataLoader(pattern, B, T, rank, P, shuffle=True) for rank in range(P)]
    plan = Plan(validate_every=0, validation_batches=1)
    trainer, record = run(golden, recipe, plan, InTurn(ranks), ranks[0], backend)

    assert len(record.updates) == len(log["log"]["f64"])
    for update, expected in zip(record.updates, log["log"]["f64"], strict=True):
        assert update.rate == expected["lr"]
        assert update.loss == pytest.approx(expected["loss"], rel=0, abs=LOSS)
        assert update.norm == pytest.approx(expected["grad_norm"], rel=NORM, abs=0)
    final = np.load(folder / "final_f64.npz")["params"]
    assert_near(trainer.model.params, final, recipe.learning_rate)
