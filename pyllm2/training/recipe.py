"""Hyperparameters (`Recipe`: all that changes the weights) and intervals (`Plan`) of a run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from pyllm2.errors import UsageError
from pyllm2.training import schedule

DECAY_RULES = ("matrices", "all")
_NOT_NEGATIVE = (
    "learning_rate final_fraction weight_decay epsilon clip skip_loss_z skip_norm_z".split()
)


@dataclass(frozen=True)
class Recipe:
    """Every setting that changes the weights. A run can only be resumed with the same recipe.

    Raises UsageError for impossible settings.
    """

    batch: int  # B: rows per micro-batch
    context: int  # T: tokens per row
    total_batch: int  # tokens per update: a multiple of P·B·T
    steps: int  # number of updates
    learning_rate: float = 3e-4
    warmup: int = 0
    schedule: str = "cosine"
    final_fraction: float = 0.0
    weight_decay: float = 0.0
    decay: str = "matrices"  # decayed parameters: "matrices" (llm.c's GPU) or "all" (its CPU)
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    clip: float = 1.0  # largest gradient norm; 0: no clipping
    skip_loss_z: float = 0.0  # skip an update whose loss has a larger z-score; 0: never
    skip_norm_z: float = 0.0  # likewise for the gradient norm
    dropout: float = 0.0  # probability of dropping an element, in models with dropout
    seed: int = 42  # seed of the data order and of the initial weights
    processes: int = 1  # P: each reads `batch` rows at once

    def __post_init__(self) -> None:
        schedule.check(self.schedule, self.warmup, self.steps)
        tokens = self.batch * self.context * self.processes
        if self.total_batch < 1 or self.total_batch % tokens:
            among = f" × {self.processes} processes" if self.processes > 1 else ""
            raise UsageError(
                f"total batch of {self.total_batch} tokens: expected a multiple of "
                f"batch {self.batch} × context {self.context}{among} = {tokens}"
            )
        for name in _NOT_NEGATIVE:
            value, high = getattr(self, name), 1.0 if name == "final_fraction" else math.inf
            if not 0 <= value <= high or value == math.inf:
                raise UsageError(f"{name} = {value}: expected a number from 0 to {high:g}")
        for name in ("beta1", "beta2", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} = {getattr(self, name)}: expected 0 ≤ x < 1")
        if self.decay not in DECAY_RULES:
            raise UsageError(f"decay {self.decay!r}: choose from {', '.join(DECAY_RULES)}")

    def identity(self) -> dict[str, Any]:
        """The settings as JSON, without those that a constant learning rate does not use.

        The number of processes is part of the engine: it changes only the order of sums.
        """
        unused = ("steps", "warmup", "final_fraction") if self.schedule == "constant" else ()
        left_out = (*unused, "processes")
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    @property
    def micro_steps(self) -> int:
        """Number of micro-batches of each process whose gradients are added up for one update."""
        return self.total_batch // (self.batch * self.context * self.processes)

    def rate(self, step: int) -> float:
        """The learning rate of an update."""
        return schedule.learning_rate(
            self.schedule, step, self.learning_rate, self.warmup, self.steps, self.final_fraction
        )


@dataclass(frozen=True)
class Plan:
    """Intervals of validation, samples and checkpoints, in updates; 0: only at the end.

    None of them changes the weights.
    """

    validate_every: int = 20
    validation_batches: int = 20  # 0: all batches
    sample_every: int = 0
    sample_tokens: int = 64
    save_every: int | None = None  # None: every `save_minutes`; the last step is always saved
    save_minutes: float = 10.0
    keep: int = 2  # number of newest checkpoints kept
