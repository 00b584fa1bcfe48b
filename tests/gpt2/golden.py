"""Readers of the golden files of GPT-2 training: models, batches, bounds of recorded results."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from pyllm2.backends import Engine
from pyllm2.gpt2 import ops
from pyllm2.gpt2.config import GPT2Config
from pyllm2.gpt2.training import TrainableGPT2
from pyllm2.parameters import Parameters
from pyllm2.testing import TrainingBound, training_bound

NUMPY = Engine(ops)
STEPS = """
    micro/step_b1t3 micro/step_b2t4 micro/step_b2t8 small/step_b1t7 small/step_b2t64
    tiny/step_b1t32 tiny/step_b2t3 tiny/step_b3t5 tiny/step_b4t16 tiny/step_b8t1
""".split()
RUNS = """
    micro/train_stream15 small/train_overfit10 small/train_stream12
    tiny/train_overfit10 tiny/train_stream20 tiny/train_stream20_wd
""".split()


def read_model(folder: Path, engine: Engine = NUMPY) -> TrainableGPT2:
    """model.bin: a header of 256 int32 with the sizes from the third on, then every parameter."""
    data = (folder / "model.bin").read_bytes()
    header = np.frombuffer(data, np.int32, 8)
    config = GPT2Config(*(int(n) for n in header[2:]))
    params = Parameters(config.shapes(), np.frombuffer(data, np.float32, offset=1024).copy())
    return TrainableGPT2(config, params, engine)


@functools.cache
def bound_of_step(path: Path) -> TrainingBound:
    """Bounds of losses, logits and the gradient of the mean loss, computed once."""
    step = np.load(path)
    return training_bound(read_model(path.parent), step["x"], step["y"], 1 / step["x"].size)


def read_debug_state(folder: Path) -> dict[str, Any]:
    """debug_state.bin of PyTorch: x, y, logits without padding, mean loss, gradient."""
    data = (folder / "debug_state.bin").read_bytes()
    config = read_model(folder).config
    B, T = (int(n) for n in np.frombuffer(data, np.int32, 2, offset=8))
    x, y = np.frombuffer(data, np.int32, 2 * B * T, offset=1024).reshape(2, B, T)
    numbers = np.frombuffer(data, np.float32, offset=1024 + 8 * B * T)
    V = config.vocab_size
    logits, loss, flat = np.split(numbers, [B * T * V, B * T * V + 1])
    gradient = Parameters(config.shapes(), flat)
    return {"x": x, "y": y, "logits": logits.reshape(B, T, V), "loss": loss[0], "grads": gradient}
