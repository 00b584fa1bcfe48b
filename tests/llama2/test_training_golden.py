"""Llama-2's training against a recorded run of the PyTorch model, float32 on a CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyllm2 import backends
from pyllm2.llama2 import family
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.initial import hidden_dim
from pyllm2.llama2.training import MATRICES, TrainableLlama2
from pyllm2.parameters import Parameters
from pyllm2.testing import assert_close, training_bound
from pyllm2.testing.bounds import U
from pyllm2.training.schedule import learning_rate
from pyllm2.training.trainer import clipping, decay_pieces
from tests.support.tested import BACKENDS, engine_of

# Names of the arrays in the recording; {} is the layer.
NAMES = {
    "token_embedding": "tok_embeddings.weight",
    "attention_norm": "layers.{}.attention_norm.weight",
    "wq": "layers.{}.attention.wq.weight",
    "wk": "layers.{}.attention.wk.weight",
    "wv": "layers.{}.attention.wv.weight",
    "wo": "layers.{}.attention.wo.weight",
    "ffn_norm": "layers.{}.ffn_norm.weight",
    "w1": "layers.{}.feed_forward.w1.weight",
    "w2": "layers.{}.feed_forward.w2.weight",
    "w3": "layers.{}.feed_forward.w3.weight",
    "final_norm": "norm.weight",
}
RELATIVE = 2e-5  # of the largest number of an array, as the recording advises


class Run:
    """The recorded run: its settings, and its arrays by our names."""

    def __init__(self, golden: Path) -> None:
        self.log: dict[str, Any] = json.loads((golden / "train.json").read_text())["train_tiny"]
        self.arrays = np.load(golden / "train_tiny.npz")
        c = self.log["config"]
        F = hidden_dim(c["dim"], c["multiple_of"])
        names = "n_layers n_heads n_kv_heads vocab_size max_seq_len".split()
        self.config = Llama2Config(c["dim"], F, *(c[name] for name in names))

    def parameters(self, which: str) -> Parameters:
        """The arrays of p0, g0, p1 or p4."""
        params = Parameters(self.config.shapes())
        for name, array in params.items():
            recorded = NAMES[name]
            if "{}" in recorded:
                for layer in range(self.config.n_layers):
                    array[layer] = self.arrays[f"{which}/{recorded.format(layer)}"]
            else:
                array[...] = self.arrays[f"{which}/{recorded}"]
        return params

    def batch(self, step: int) -> tuple[Any, Any]:
        return self.arrays["x"][step], self.arrays["y"][step]


@pytest.fixture(scope="module")
def run(golden: Path) -> Run:
    return Run(golden)


def assert_near(found: Any, recorded: Any, what: str) -> None:
    limit = RELATIVE * np.abs(recorded).max()
    assert np.abs(found - recorded).max() <= limit, what


def test_the_recording_lies_where_float64_says(run: Run) -> None:
    """Logits and gradients of PyTorch are within our bound for float32 backends."""
    model = TrainableLlama2(run.config, run.parameters("p0"), engine_of("numpy"))
    tokens, targets = run.batch(0)
    asked = int((targets != -1).sum())
    assert asked < targets.size
    bound = training_bound(model, tokens, targets, 1 / asked)
    assert_close(run.arrays["logits0"].reshape(bound.logits.value.shape), bound.logits, "logits")
    for name, recorded in run.parameters("g0").items():
        assert_close(recorded, bound.gradient[name], name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_recorded_run(backend: str, run: Run) -> None:
    """Four updates: losses, norms, first gradient, parameters after the first and the last."""
    model = TrainableLlama2(run.config, run.parameters("p0"), engine_of(backend))
    optimizer = backends.ops(backend, package="training")
    params, log = model.params, run.log
    grads, m, v = (params.zeros_like() for _ in range(3))
    pieces = decay_pieces(params.shapes, MATRICES)
    for step in range(log["steps"]):
        tokens, targets = run.batch(step)
        asked = int((targets != -1).sum())
        losses = model.add_gradient(tokens, targets, 1 / asked, grads, fresh=True)
        norm = float(optimizer.global_norm(grads.flat))
        assert losses.sum() / asked == pytest.approx(log["losses"][step], rel=RELATIVE)
        assert norm == pytest.approx(log["grad_norms_before_clip"][step], rel=RELATIVE)
        if step == 0:
            for name, recorded in run.parameters("g0").items():
                assert_near(grads[name], recorded, name)
        for piece, decays in pieces:
            arrays = (a.flat[piece] for a in (params, grads, m, v))
            rate, decay = log["learning_rates"][step], log["weight_decay"] if decays else 0.0
            numbers = rate, log["beta1"], log["beta2"], log["adam_eps"], decay
            optimizer.adamw_update(*arrays, step + 1, *numbers, clipping(norm, log["grad_clip"]))
        if step == 0:
            for name, recorded in run.parameters("p1").items():
                assert_near(params[name], recorded, name)
    for name, recorded in run.parameters("p4").items():
        assert_near(params[name], recorded, name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_decoder_gives_the_recorded_logits(backend: str, run: Run) -> None:
    """Our decoder gives PyTorch's logits for the last position."""
    model = TrainableLlama2(run.config, run.parameters("p4"), engine_of(backend))
    decoder = family.decoder(model)
    for row, recorded in zip(
        run.batch(0)[0], run.arrays["logits_last_position_inference"], strict=True
    ):
        played = decoder.forward(row, 0, decoder.new_cache(len(row)), last_only=True)[0]
        assert_near(played, recorded, "logits")


def test_the_recorded_learning_rates(golden: Path) -> None:
    """llama2.c computes in double: ours differs by a few roundings to float32.

    Progress, angle, cosine, sum and product are rounded. The angle, up to π, has two roundings
    and moves half a cosine by at most π/2 · 3u; the other numbers are at most 1. (Steps after the
    last are left out: llama2.c continues with the lowest rate, this schedule ends.)
    """
    recorded = json.loads((golden / "train.json").read_text())["lr_schedule"]
    peak, warmup, steps = (
        recorded[name] for name in ("learning_rate", "warmup_iters", "max_iters")
    )
    values = [(step, rate) for step, rate in recorded["values"] if step <= steps]
    assert len(values) > 10
    for step, rate in values:
        found = learning_rate("llama2", step, peak, warmup, steps, recorded["min_lr"] / peak)
        assert abs(found - rate) <= 10 * U * peak, f"step {step}"
