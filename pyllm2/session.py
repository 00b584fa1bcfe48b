"""A conversation with a model: its cache, and the position that comes next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from pyllm2 import memory
from pyllm2.errors import ContextError, NotFiniteError, TokenizerError, printable

Array = NDArray[np.float32]


class Decoder(Protocol):
    """What a conversation asks of a model: `llama2.model.Llama2`, `gpt2.decoding.Decoder`.

    A cache belongs to the model that made it, and nobody else looks inside.
    """

    ops: Any

    @property
    def config(self) -> Any: ...  # seq_len and vocab_size, whatever else there is

    def cache_nbytes(self, positions: int) -> int: ...

    def new_cache(self, positions: int) -> Any: ...

    def forward(
        self, tokens: NDArray[np.integer], pos: int, cache: Any, last_only: bool = False
    ) -> Array: ...

    def where_not_finite(
        self, tokens: NDArray[np.integer], pos: int, cache: Any
    ) -> tuple[int, str] | None: ...


class Session:
    """A conversation: a cache, and the position that comes next."""

    def __init__(
        self, model: Decoder, positions: int, backend: str, path: str = "the model"
    ) -> None:
        S = model.config.seq_len
        if not 0 <= positions <= S:
            raise ContextError(f"{positions} tokens, context is {S}")
        purpose = f"the key/value cache of {positions} positions"
        remedy = "lower the context length"
        memory.require(model.cache_nbytes(positions), purpose, remedy)
        self.model, self.backend, self.path = model, backend, path
        self.pos, self.positions = 0, positions
        try:
            self.cache = model.new_cache(positions)
        except MemoryError:
            memory.require(memory.limit() + 1, purpose, remedy)
            raise

    @property
    def room(self) -> int:
        """How many more tokens can be fed."""
        return self.positions - self.pos

    def check(self, ids: Sequence[int]) -> None:
        """Raises TokenizerError for an id outside the vocabulary, ContextError beyond the room."""
        V = self.model.config.vocab_size
        for i in ids:
            if not 0 <= i < V:
                raise TokenizerError(f"token id {i}: the model has ids 0 to {V - 1}")
        if len(ids) > self.room:
            raise ContextError(
                f"{len(ids)} tokens at position {self.pos}: room is for {self.positions}"
            )

    def feed(self, ids: Sequence[int], last_only: bool = False) -> Array:
        """Feed the next ids; the logits after each, (T, V), or after the last, (1, V).

        Raises what `check` raises, and NotFiniteError naming the position and the layer.
        """
        self.check(ids)
        tokens = np.asarray(ids, dtype=np.int64)
        model = self.model
        # A rival may have the whole forward as one kernel, tested equal to the composition.
        whole = getattr(model.ops, "forward", None)
        if whole is not None:
            logits: Array = whole(model, tokens, self.pos, self.cache, last_only)
        else:
            with np.errstate(all="ignore"):  # what overflows is caught below, with its place
                logits = model.forward(tokens, self.pos, self.cache, last_only)
        if not np.isfinite(logits).all():
            self._refuse(tokens, logits)
        self.pos += len(tokens)
        return logits

    def _refuse(self, tokens: NDArray[np.integer], logits: Array) -> NoReturn:
        """Find the place at which numbers ceased to be numbers, and raise."""
        bad_row = int(np.argmin(np.isfinite(logits).all(axis=-1)))
        at_end = len(tokens) - len(logits) + bad_row, "final norm and classifier"
        with np.errstate(all="ignore"):
            found = self.model.where_not_finite(tokens, self.pos, self.cache)
        row, place = found or at_end
        raise NotFiniteError(
            f"{printable(self.path)}: non-finite logits at position {self.pos + row} "
            f"({place}), backend {self.backend}"
        )
