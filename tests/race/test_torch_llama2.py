"""Fifty steps of training a Llama-2 beside PyTorch's autograd and AdamW."""

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
from pyllm2.training.parameters import Parameters
from pyllm2.training.trainer import decay_pieces
from tests.tested import BACKENDS, ops_of

CONFIG = Llama2Config(24, 40, 2, 4, 2, 61, 16)
# All float32 numbers: our AdamW rounds its settings.
ADAMW = {"lr": 2**-8, "betas": (0.875, 0.9375), "eps": 2**-26, "weight_decay": 0.125}
STEPS = 50
# The same formulas in float64: AdamW's two corrections are float32 with us, off by 2·10⁻⁷ at most
# of themselves, and so is every update. What that does to a loss is less.
SAME = 1e-7
# In float32. AdamW divides each gradient by its own size: what rounding has left of a small one
# counts as much as a large one, and steps build on steps. A hundredth of a nat would be seen in a
# curve; this is a thousand times less.
CLOSE = 1e-5


def _load() -> Any:
    """tools/ is no package: the module is loaded from its file."""
    path = Path(__file__).parents[2] / "tools" / "torch_llama2.py"
    spec = importlib.util.spec_from_file_location("torch_llama2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


rival = _load()


def batches() -> list[tuple[Any, Any]]:
    """A text that can be learned: each token says much about the next; some are not asked."""
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
    """The mean loss before each step, by what a trainer calls."""
    model = TrainableLlama2(CONFIG, initial(dtype), ops_of(backend))
    update, p = backends.ops(backend, package="training").adamw_update, model.params
    grads, m, v = (p.zeros_like() for _ in range(3))
    pieces, found = decay_pieces(p.shapes, MATRICES), []
    for t, (tokens, targets) in enumerate(batches(), 1):
        asked = int((targets != -1).sum())
        losses = model.add_gradient(tokens, targets, 1 / asked, grads, fresh=True)
        found.append(losses.sum(dtype=np.float64) / asked)
        for piece, decays in pieces:
            update(
                p.flat[piece], grads.flat[piece], m.flat[piece], v.flat[piece], t, ADAMW["lr"],
                *ADAMW["betas"], ADAMW["eps"], ADAMW["weight_decay"] if decays else 0.0,
            )  # fmt: skip
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_curve(backend: str) -> None:
    """Every loss of fifty, on every backend."""
    found, expected = curve_of(backend), curve_of_torch(np.float32)
    assert expected[-1] < expected[0] - 0.5  # something is learned
    np.testing.assert_allclose(found, expected, rtol=0, atol=CLOSE)


def test_the_same_formulas() -> None:
    """The specification in float64 is PyTorch in float64."""
    found, expected = curve_of("numpy", np.float64), curve_of_torch(np.float64)
    np.testing.assert_allclose(found, expected, rtol=SAME)
