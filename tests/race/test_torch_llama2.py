"""Fifty training steps of a Llama-2 against PyTorch's autograd and AdamW."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the rival: pip install torch")

from pyllm2 import backends
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.initial import initial_parameters
from pyllm2.llama2.training import MATRICES, TrainableLlama2
from pyllm2.parameters import Parameters
from pyllm2.training.trainer import decay_pieces
from tests.support.tested import BACKENDS, engine_of

CONFIG = Llama2Config(24, 40, 2, 4, 2, 61, 16)
# Exact in float32, because `adamw_update` rounds its hyperparameters to float32.
ADAMW = {"lr": 2**-8, "betas": (0.875, 0.9375), "eps": 2**-26, "weight_decay": 0.125}
STEPS = 50
# Relative, in float64. AdamW's two bias corrections are float32 here: they, and so every update,
# have a relative error of at most 2·10⁻⁷. The effect on the loss is smaller.
SAME = 1e-7
# Absolute, in float32. AdamW divides each gradient by its own size, so rounding errors of small
# gradients count as much as large gradients, and they accumulate over the steps. A difference of
# 0.01 nats would be visible in a loss curve; this is a thousandth of it.
CLOSE = 1e-5


def _load() -> Any:
    """Import tools/torch_llama2.py from its path: tools/ is not a package."""
    path = Path(__file__).parents[2] / "tools" / "torch_llama2.py"
    spec = importlib.util.spec_from_file_location("torch_llama2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


rival = _load()


def batches() -> list[tuple[Any, Any]]:
    """(tokens, targets) per step: a learnable text, one target in ten ignored (-1)."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(STEPS):
        ids = [random.integers(0, CONFIG.vocab_size, 3)]
        for _ in range(CONFIG.seq_len):
            ids.append((3 * ids[-1] + random.integers(0, 3, 3)) % CONFIG.vocab_size)
        text = np.array(ids).T
        targets = np.where(random.random((3, CONFIG.seq_len)) < 0.1, -1, text[:, 1:])
        found.append((np.ascontiguousarray(text[:, :-1]), targets))
    return found


def initial(dtype: type) -> Parameters:
    params = initial_parameters(CONFIG, seed=1)
    return Parameters(params.shapes, params.flat.astype(dtype))


def curve_of_torch(dtype: type) -> list[float]:
    trainer = rival.TorchTraining(CONFIG, initial(dtype), 1, **ADAMW)
    return [trainer.step(*batch) for batch in batches()]


def curve_of(backend: str, dtype: type = np.float32) -> list[float]:
    """The mean loss before each step, from the functions that the trainer calls."""
    model = TrainableLlama2(CONFIG, initial(dtype), engine_of(backend))
    update, p = backends.ops(backend, package="training").adamw_update, model.params
    grads, m, v = (p.zeros_like() for _ in range(3))
    pieces, found = decay_pieces(p.shapes, MATRICES), []
    for t, (tokens, targets) in enumerate(batches(), 1):
        counted = int((targets != -1).sum())
        losses = model.add_gradient(tokens, targets, 1 / counted, grads, fresh=True)
        found.append(losses.sum(dtype=np.float64) / counted)
        for piece, decays in pieces:
            decay = ADAMW["weight_decay"] if decays else 0.0
            hyper = (t, ADAMW["lr"], *ADAMW["betas"], ADAMW["eps"], decay)
            update(p.flat[piece], grads.flat[piece], m.flat[piece], v.flat[piece], *hyper)
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_losses_equal_those_of_torch(backend: str) -> None:
    """All fifty losses agree in float32, on every backend."""
    found, expected = curve_of(backend), curve_of_torch(np.float32)
    assert expected[-1] < expected[0] - 0.5  # something is learned
    np.testing.assert_allclose(found, expected, rtol=0, atol=CLOSE)


def test_losses_equal_those_of_torch_in_float64() -> None:
    """The specification computed in float64 agrees with PyTorch in float64."""
    found, expected = curve_of("numpy", np.float64), curve_of_torch(np.float64)
    np.testing.assert_allclose(found, expected, rtol=SAME)
