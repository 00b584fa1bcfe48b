"""The Numba engine of GPT-2: whole passes for training, over the plain ops of the fast build."""

from __future__ import annotations

from typing import Any

from pyllm2.fast.gpt2.training import Buffers, backward, forward
from pyllm2.fast.training_step import TrainingStep


def training_step(plain: Any, threads: int | None) -> TrainingStep:
    """`losses` and `add_gradient` as whole passes."""
    return TrainingStep(plain, threads, Buffers, forward, backward)
