"""What losses, logits and gradients of a whole Llama-2 in training may be off by."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.llama2.training import TrainableLlama2
from pyllm2.testing import llama2_training_bounds
from pyllm2.testing.bounds import Array64, Perturbed, random_walk
from pyllm2.testing.gpt2_model_bound import TrainingBound, spread
from pyllm2.testing.llama2_training_ops import LLAMA2_TRAINING_OPS
from pyllm2.training.parameters import Parameters

Tokens = NDArray[np.integer]


class PerturbedLlama2(Perturbed):
    """`bounds.Perturbed` with the ops of training beside those of inference."""

    def __getattr__(self, name: str) -> Any:
        if name not in LLAMA2_TRAINING_OPS:
            return super().__getattr__(name)
        bound = getattr(llama2_training_bounds, name)

        def perturbed(*arguments: Any) -> Any:
            return self._knock_all(bound(*arguments, growth=random_walk))

        return perturbed


def llama2_training_bound(
    model: TrainableLlama2, tokens: Tokens, targets: Tokens, dloss: float = 1.0
) -> TrainingBound:
    """Forward and backward of a `TrainableLlama2`, as `training_bound` has it for GPT-2.

    With dropout if the model has some: the masks of the first micro-batch of update 0.

    tokens, targets: (B, T)   ->   logits: (N, V)   losses: (N,)   gradient: by parameter
    """
    dloss = float(np.float32(dloss))
    logits, losses, *gradient = spread(lambda seed: _run(model, tokens, targets, dloss, seed))
    return TrainingBound(logits, losses, dict(zip(model.params, gradient, strict=True)))


def _run(
    model: TrainableLlama2, tokens: Tokens, targets: Tokens, dloss: float, seed: int | None
) -> list[Array64]:
    """Logits, losses and every gradient, by the same model over `PerturbedLlama2`."""
    flat: Any = model.params.flat.astype(np.float64)
    params, ops = Parameters(model.params.shapes, flat), PerturbedLlama2(seed)
    judge = TrainableLlama2(model.config, params, ops, model.dropout, model.seed)
    acts = judge.forward(tokens, targets, training=True)
    dlosses: Any = np.full(tokens.size, dloss)
    results: list[Any] = [acts.logits, acts.losses, *judge.backward(acts, dlosses).values()]
    return results
