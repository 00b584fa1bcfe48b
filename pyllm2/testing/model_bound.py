"""Error bounds of a whole model: its logits, and the losses and gradients of a training step.

Worst-case bounds multiplied through the layers of a model say nothing. Instead the first-order
error of a result is written as Σ J_k·ε_k over all results k of all ops. For independent roundings
of mean zero ε_k has a standard deviation of at most b_k, the op's bound with √n·u in place of γ_n,
and the result's error has σ² = Σ (J_k·b_k)². `Perturbed` estimates σ with random signs over TRIALS
runs of the model. A sum of bounded independent terms has the tails P(|error| > λσ) ≤ 2·exp(-λ²/2)
(Hoeffding); λ = CONFIDENCE = 8 makes that 3e-14.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyllm2.backends import Engine
from pyllm2.gpt2.model import GPT2
from pyllm2.gpt2.training import TrainableGPT2
from pyllm2.llama2.model import Llama2
from pyllm2.llama2.training import TrainableLlama2
from pyllm2.parameters import Parameters
from pyllm2.testing.bounds import CONFIDENCE, TINY, Array64, Bounded, U, random_walk
from pyllm2.testing.gpt2.table import OPS as GPT2_OPS
from pyllm2.testing.llama2.table import OPS as LLAMA2_OPS
from pyllm2.testing.op import Op

Tokens = NDArray[np.integer]
TRIALS = 8


class Perturbed:
    """The ops of a table in float64, each result moved up or down by its bound at random.

    The bounds are those of the table with the random walk √n·u in place of γ_n. Pass it to a model
    as its ops: the spread of the model's results over several seeds shows how the errors of all
    ops add up in this model on this input. Seed None gives the unperturbed float64 evaluation.
    """

    def __init__(self, table: Mapping[str, Op], seed: int | None) -> None:
        self._table = table
        self._random = None if seed is None else np.random.default_rng(seed)

    def __getattr__(self, name: str) -> Any:
        if name not in self._table:
            raise AttributeError(name)
        bound = self._table[name].bound

        def perturbed(*arguments: Any) -> Any:
            bounded = bound(*arguments, growth=random_walk)
            if isinstance(bounded, Bounded):
                return self._moved(bounded)
            return tuple(map(self._moved, bounded))

        return perturbed

    def _moved(self, bounded: Bounded) -> Array64:
        if self._random is None:
            return bounded.value
        signs = self._random.integers(0, 2, bounded.value.shape) * 2 - 1
        return bounded.value + signs * bounded.error


def model_bound(model: GPT2 | Llama2, tokens: Tokens) -> Bounded:
    """Logits after each token in float64, and the error allowed to float32.

    σ is the largest of a row of logits, so that an estimate from few trials holds.

    tokens: (T,)   ->   value (T, V), error (T, 1)
    """

    def run(seed: int | None) -> Array64:
        judge: Any
        if isinstance(model, Llama2):
            judge = model.with_ops(Perturbed(LLAMA2_OPS, seed))
        else:
            engine = Engine(Perturbed(GPT2_OPS, seed))
            judge = GPT2(model.config, _in_float64(model.params), engine)
        logits: Any = judge.forward(tokens, 0, judge.new_cache(len(tokens)))
        return logits

    value = run(None)
    squares = sum((run(seed) - value) ** 2 for seed in range(TRIALS))
    sigma = np.sqrt(np.max(np.asarray(squares), axis=-1, keepdims=True) / TRIALS)
    return Bounded(value, CONFIDENCE * sigma + TINY)


class TrainingBound(NamedTuple):
    """A float64 value and an error for each result of a training step; one error per array.

    Shapes are those of the model's activations: B, T for GPT-2, N = B · T rows for Llama-2.
    """

    logits: Bounded  # (B, T, Vp) or (N, V)
    losses: Bounded  # (B, T) or (N,)
    gradient: dict[str, Bounded]  # by parameter name


def training_bound(
    model: TrainableGPT2 | TrainableLlama2, tokens: Tokens, targets: Tokens, dloss: float = 1.0
) -> TrainingBound:
    """Forward and backward in float64, and the error allowed to float32.

    σ is the largest of an array, so that an estimate from few trials holds. Also because of GPT-2's
    key biases: their gradient is 0, and an implementation computes the rounding of other terms.

    dloss is rounded to float32 and multiplies every loss's gradient. A `TrainableLlama2` with
    dropout uses the masks of the first micro-batch of update 0.

    tokens, targets: (B, T)
    """
    dloss = float(np.float32(dloss))

    def run(seed: int | None) -> list[Array64]:
        judge, acts = _activations(model, tokens, targets, seed)
        gradient = judge.backward(acts, np.full(acts.losses.shape, dloss))
        return [acts.logits, acts.losses, *gradient.values()]

    logits, losses, *gradient = _spread(run)
    return TrainingBound(logits, losses, dict(zip(model.params, gradient, strict=True)))


def _in_float64(params: Parameters) -> Parameters:
    flat: Any = params.flat.astype(np.float64)
    return Parameters(params.shapes, flat)


def _activations(
    model: TrainableGPT2 | TrainableLlama2, tokens: Tokens, targets: Tokens, seed: int | None
) -> tuple[Any, Any]:
    """The same model over perturbed float64 ops, and its forward pass."""
    params = _in_float64(model.params)
    judge: Any
    if isinstance(model, TrainableLlama2):
        engine = Engine(Perturbed(LLAMA2_OPS, seed))
        judge = TrainableLlama2(model.config, params, engine, model.dropout, model.seed)
        return judge, judge.forward(tokens, targets, training=True)
    judge = TrainableGPT2(model.config, params, Engine(Perturbed(GPT2_OPS, seed)))
    return judge, judge.forward(tokens, targets)


def _spread(run: Callable[[int | None], list[Array64]]) -> list[Bounded]:
    """The results of `run` for seed None, each with the error that its trials show."""
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
