"""A generated token."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Token:
    """A generated token: its id and its bytes (a character may take several tokens).

    logprob: natural logarithm of the probability that the model gave it, before temperature and
    top-p; None if it was not asked for
    """

    id: int
    bytes: bytes
    logprob: float | None = None

    @property
    def text(self) -> str:
        """The bytes as text; those that are no UTF-8, such as half a character, become U+FFFD."""
        return self.bytes.decode("utf-8", "replace")
