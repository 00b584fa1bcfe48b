"""What determines the weights that a run ends with, and when it does what besides."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from pyllm2.errors import UsageError
from pyllm2.training import schedule

DECAY_RULES = ("matrices", "all")


@dataclass(frozen=True)
class Recipe:
    """Every setting that changes the numbers. A run is resumed with the same recipe or not at all.

    Raises UsageError for what cannot be trained.
    """

    batch: int  # B    rows of a micro-step
    context: int  # T   tokens of a row
    total_batch: int  # tokens of an update: a multiple of B·T
    steps: int  # updates
    learning_rate: float = 3e-4
    warmup: int = 0
    schedule: str = "cosine"
    final_fraction: float = 0.0
    weight_decay: float = 0.0
    decay: str = "matrices"  # which parameters: as llm.c on a GPU; "all": as on the CPU
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    clip: float = 1.0  # longest gradient; 0: however long
    skip_loss_z: float = 0.0  # skip updates whose loss is such an outlier; 0: none
    skip_norm_z: float = 0.0  # likewise for the gradient norm
    dropout: float = 0.0  # probability of a zero, where the model has dropout
    seed: int = 42  # of the data order and of initial weights

    def __post_init__(self) -> None:
        schedule.check(self.schedule, self.warmup, self.steps)
        tokens = self.batch * self.context
        if self.total_batch < 1 or self.total_batch % tokens:
            raise UsageError(
                f"total batch of {self.total_batch} tokens: expected a multiple of "
                f"batch {self.batch} × context {self.context} = {tokens}"
            )
        for name, low, high in (
            ("learning_rate", 0.0, math.inf), ("final_fraction", 0.0, 1.0),
            ("weight_decay", 0.0, math.inf), ("epsilon", 0.0, math.inf),
            ("clip", 0.0, math.inf), ("skip_loss_z", 0.0, math.inf),
            ("skip_norm_z", 0.0, math.inf),
        ):  # fmt: skip
            value = getattr(self, name)
            if not low <= value <= high or value == math.inf:
                raise UsageError(f"{name} = {value}: expected a number from {low:g} to {high:g}")
        for name in ("beta1", "beta2", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} = {getattr(self, name)}: expected 0 ≤ x < 1")
        if self.decay not in DECAY_RULES:
            raise UsageError(f"decay {self.decay!r}: choose from {', '.join(DECAY_RULES)}")

    def identity(self) -> dict[str, Any]:
        """The settings as JSON, without those that have no effect: a constant rate has no end."""
        unused = ("steps", "warmup", "final_fraction") if self.schedule == "constant" else ()
        return {name: value for name, value in asdict(self).items() if name not in unused}

    @property
    def micro_steps(self) -> int:
        """How many gradients are added up for an update."""
        return self.total_batch // (self.batch * self.context)

    def rate(self, step: int) -> float:
        """The learning rate of an update."""
        return schedule.learning_rate(
            self.schedule, step, self.learning_rate, self.warmup, self.steps, self.final_fraction
        )


@dataclass(frozen=True)
class Plan:
    """What a run does besides, in steps; 0 is never. None of it changes the weights."""

    validate_every: int = 20
    validation_batches: int = 20  # 0: the whole set
    sample_every: int = 0
    sample_tokens: int = 64
    save_every: int = 0  # the last step is always saved
    keep: int = 2  # newest checkpoints
