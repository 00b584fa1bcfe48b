"""What losses, logits and gradients of a whole GPT-2 may be off by."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyllm2.gpt2.model import GPT2
from pyllm2.testing import gpt2_bounds
from pyllm2.testing.bounds import (
    CONFIDENCE,
    TINY,
    TRIALS,
    Array64,
    Bounded,
    Perturbed,
    U,
    random_walk,
)
from pyllm2.training.parameters import Parameters

Tokens = NDArray[np.integer]


class PerturbedGPT2(Perturbed):
    """An ops module in float64 that knocks every result up or down by its bound, at random.

    The bounds are those of `gpt2_bounds` with √n·u in place of γ_n; see `bounds.Perturbed`.
    Seed None gives the unperturbed float64 evaluation.
    """

    def __getattr__(self, name: str) -> Any:
        bound = gpt2_bounds.__dict__.get(name)
        if bound is None or not name.endswith(("_forward", "_backward")):
            raise AttributeError(name)

        def perturbed(*arguments: Any) -> Any:
            return self._knock_all(bound(*arguments, growth=random_walk))

        return perturbed


class TrainingBound(NamedTuple):
    """For each result of a step a float64 value and an error, which has one number an array.

    Shapes are those of the model's activations: GPT-2's are below, Llama-2's have rows N = B · T.
    """

    logits: Bounded  # (B, T, Vp)
    losses: Bounded  # (B, T)
    gradient: dict[str, Bounded]  # by the names of the parameters


def training_bound(
    model: GPT2, tokens: Tokens, targets: Tokens, dloss: float = 1.0
) -> TrainingBound:
    """Forward and backward of a `GPT2` in float64, and what a float32 backend may be off by.

    The idea is that of `bounds.model_bound`: the first-order error of any result is Σ J_k·ε_k over
    all results k of all ops, forward and backward, its standard deviation σ is seen in TRIALS runs
    with random signs, and λσ with λ = CONFIDENCE is exceeded with probability 2·exp(-λ²/2). σ is
    the largest in an array, so that its estimate from few trials holds. Per array also because
    of the key biases: their gradient is 0, what is computed is the rounding of the other terms.

    dloss is rounded to float32 and multiplies every loss's gradient.
    """
    dloss = float(np.float32(dloss))
    logits, losses, *gradient = spread(lambda seed: _run(model, tokens, targets, dloss, seed))
    return TrainingBound(logits, losses, dict(zip(model.params, gradient, strict=True)))


def spread(run: Callable[[int | None], list[Array64]]) -> list[Bounded]:
    """What `run` gives for seed None, and for each array the error that its trials show."""
    exact = run(None)
    squares = [np.zeros_like(value) for value in exact]
    for seed in range(TRIALS):
        for total, a, b in zip(squares, run(seed), exact, strict=True):
            total += (a - b) ** 2
    bounded = []
    for value, total in zip(exact, squares, strict=True):
        sigma = math.sqrt(np.max(total, initial=0.0) / TRIALS)
        bounded.append(Bounded(value, np.full_like(value, CONFIDENCE * sigma + TINY)))
    return bounded


def added(first: TrainingBound, second: TrainingBound) -> dict[str, Bounded]:
    """The gradient of two batches, the second added to the first: errors add, and one rounding."""
    total = {}
    for name, (a, a_error) in first.gradient.items():
        b, b_error = second.gradient[name]
        total[name] = Bounded(a + b, a_error + b_error + U * (np.abs(a + b) + a_error + b_error))
    return total


def _run(
    model: GPT2, tokens: Tokens, targets: Tokens, dloss: float, seed: int | None
) -> list[Array64]:
    """Logits, losses and every gradient, by the same model over `PerturbedGPT2`."""
    flat: Any = model.params.flat.astype(np.float64)
    params = Parameters(model.params.shapes, flat)
    judge = GPT2(model.config, params, PerturbedGPT2(seed))
    acts = judge.forward(tokens, targets)
    dlosses: Any = np.full(tokens.shape, dloss)
    gradient = judge.backward(acts, dlosses)
    results: list[Any] = [acts.logits, acts.losses, *gradient.values()]
    return results
