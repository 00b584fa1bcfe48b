"""Progress events of a training run; the command line displays them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Update:
    """A finished update."""

    done: int  # number of finished updates
    loss: float  # mean over the batches, before the update
    rate: float  # learning rate
    norm: float  # gradient norm, before clipping
    z_loss: float  # z-score of the loss; NaN for the first 128 updates
    z_norm: float
    skipped: bool  # the weights were not changed


class Report:
    """Receives every event and ignores it; override what you need."""

    def begin(self, step: int) -> None:
        """The run starts, or resumes, at this step."""

    def update(self, update: Update) -> None:
        """An update is finished."""

    def validation(self, step: int, loss: float) -> None:
        """The validation loss has been computed."""

    def sample(self, step: int, tokens: list[int]) -> None:
        """Sample text from the model, as ids."""

    def saved(self, step: int, path: str) -> None:
        """A checkpoint has been written."""
