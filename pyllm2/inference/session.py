"""A conversation with a model: the key/value cache and the next position."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from pyllm2 import memory
from pyllm2.errors import ContextError, NotFiniteError, TokenizerError, printable
from pyllm2.inference.ranges import whole
from pyllm2.tokenizers.arguments import token_ids

Array = NDArray[np.float32]


class Decoder(Protocol):
    """A model that runs token by token: `llama2.model.Llama2`, `gpt2.model.GPT2`.

    A cache is used only with the model that made it.
    """

    @property
    def config(self) -> Any: ...  # has seq_len and vocab_size

    def cache_nbytes(self, positions: int) -> int: ...

    def new_cache(self, positions: int) -> Any: ...

    def forward(
        self, tokens: NDArray[np.integer], pos: int, cache: Any, last_only: bool = False
    ) -> Array: ...

    def forward_each(
        self, tokens: NDArray[np.integer], positions: Sequence[int], caches: Sequence[Any]
    ) -> Array: ...

    def where_not_finite(
        self, tokens: NDArray[np.integer], pos: int, cache: Any
    ) -> tuple[int, str] | None: ...


class Session:
    """A conversation: a key/value cache, the ids that have been fed, and the next position."""

    def __init__(
        self, model: Decoder, positions: int, backend: str, path: str = "the model"
    ) -> None:
        S, positions = model.config.seq_len, whole("positions", positions)
        if not 0 <= positions <= S:
            raise ContextError(f"{positions} tokens, context is {S}")
        purpose = f"the key/value cache of {positions} positions"
        remedy = "lower the context length"
        memory.require(model.cache_nbytes(positions), purpose, remedy)
        self.model, self.backend, self.path = model, backend, path
        self.pos, self.positions = 0, positions
        self.ids: list[int] = []
        try:
            self.cache = model.new_cache(positions)
        except MemoryError:
            memory.require(memory.limit() + 1, purpose, remedy)
            raise

    def __repr__(self) -> str:
        of = f"{self.pos} of {self.positions} positions"
        return f"<Session of {printable(self.path)}: {of}, backend {self.backend!r}>"

    @property
    def room(self) -> int:
        """Number of tokens that can still be fed."""
        return self.positions - self.pos

    def check(self, ids: Iterable[int]) -> list[int]:
        """The ids as a list of int.

        Raises TokenizerError for an id outside the vocabulary or not an integer, ContextError for
        too many ids.
        """
        ids = token_ids(ids)
        check_ids(ids, self.model.config.vocab_size)
        if len(ids) > self.room:
            raise ContextError(
                f"{len(ids)} tokens at position {self.pos}: the cache holds {self.positions}"
            )
        return ids

    def feed(self, ids: Iterable[int], last_only: bool = False) -> Array:
        """Feed ids; returns the logits after each of them, (T, V), or after the last, (1, V).

        Raises what `check` raises, and NotFiniteError naming the position and the layer.
        """
        ids = self.check(ids)
        if not ids:
            return np.empty((0, self.model.config.vocab_size), dtype=np.float32)
        tokens = np.array(ids, dtype=np.int64)
        logits = self.model.forward(tokens, self.pos, self.cache, last_only)
        if not np.isfinite(logits).all():
            self._refuse(tokens, logits)
        self.pos += len(tokens)
        self.ids += ids
        return logits

    def rewind(self, pos: int) -> None:
        """Forget all ids from position `pos` on: the next one is fed there."""
        if not 0 <= pos <= self.pos:
            raise ValueError(f"pos = {pos}: expected a position from 0 to {self.pos}")
        self.pos = pos
        del self.ids[pos:]

    def close(self) -> None:
        """Give the memory of the cache back. Nothing can be fed any more: there is no room."""
        self.cache, self.positions = None, self.pos

    def shared(self, ids: Sequence[int]) -> int:
        """How many ids at the beginning are those that have been fed."""
        pairs = zip(ids, self.ids, strict=False)
        return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(ids), len(self.ids)))

    def _refuse(self, tokens: NDArray[np.integer], logits: Array) -> NoReturn:
        """Raise NotFiniteError with the first position and block that are not finite."""
        bad_row = int(np.argmin(np.isfinite(logits).all(axis=-1)))
        at_end = len(tokens) - len(logits) + bad_row, "final norm and classifier"
        with np.errstate(all="ignore"):
            found = self.model.where_not_finite(tokens, self.pos, self.cache)
        row, place = found or at_end
        raise NotFiniteError(
            f"{printable(self.path)}: non-finite logits at position {self.pos + row} "
            f"({place}), backend {self.backend}"
        )


def check_ids(ids: Iterable[int], V: int) -> None:
    """Raise TokenizerError for an id outside a vocabulary of V."""
    for i in ids:
        if not 0 <= i < V:
            raise TokenizerError(f"token id {i}: the model has ids 0 to {V - 1}")


def feed_each(sessions: Sequence[Session], ids: Sequence[int]) -> Array:
    """Feed one id to each of several sessions of one model; the logits after it, (K, V).

    Each has the bits that it has alone. Raises what `Session.feed` raises; then none is fed.
    """
    for session, i in zip(sessions, ids, strict=True):
        session.check([i])
    tokens = np.array(ids, dtype=np.int64)
    positions, caches = [s.pos for s in sessions], [s.cache for s in sessions]
    logits = sessions[0].model.forward_each(tokens, positions, caches)
    for k, session in enumerate(sessions):
        if not np.isfinite(logits[k]).all():
            session._refuse(tokens[k : k + 1], logits[k : k + 1])
    for session, i in zip(sessions, ids, strict=True):
        session.pos += 1
        session.ids.append(i)
    return logits
