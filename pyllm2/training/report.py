"""What a training run tells of itself while it goes on; the command line shows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Update:
    """One step of training that is done."""

    done: int  # steps done, this one included
    loss: float  # mean of its batches, before the update
    rate: float
    norm: float  # of the gradient, before clipping
    z_loss: float  # how much of an outlier it is; NaN for the first 128 steps
    z_norm: float
    skipped: bool  # nothing was learned


class Report:
    """Hears of everything and says nothing; to be overridden."""

    def begin(self, step: int) -> None:
        """The run begins, or goes on, with this step."""

    def update(self, update: Update) -> None:
        """A step is done."""

    def validation(self, step: int, loss: float) -> None:
        """The validation data was tried."""

    def sample(self, step: int, tokens: list[int]) -> None:
        """The model wrote this."""

    def saved(self, step: int, path: str) -> None:
        """A checkpoint is on the disk."""
