"""Several texts at once: one reading of the weights gives a token to each of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from pyllm2 import memory
from pyllm2.inference.generate import Generation
from pyllm2.inference.session import feed_each

MOST = 16  # texts at once: what one call of the fast engine takes


class Batch(Iterator[Generation]):
    """Finished generations in the order of the prompts; what `generate_batch` returns.

    Each gives the tokens that its prompt gets alone. At most `at_once` of them are open, and fewer
    where their caches would not fit in memory; when one ends, the next prompt takes its place.
    The cache of a generation that is given out has been freed: it cannot be continued.

    new_tokens: of all generations so far   prompt_seconds: time for the prompts and their first
    tokens   seconds: time for all other tokens
    """

    def __init__(
        self, begin: Callable[[int], Generation], nbytes: Sequence[int], at_once: int
    ) -> None:
        """begin: prompt number -> its generation, not yet fed   nbytes: of each one's cache"""
        self.at_once = at_once
        self.new_tokens, self.prompt_seconds, self.seconds = 0, 0.0, 0.0
        self._begin, self._nbytes = begin, nbytes
        self._open: dict[int, Generation] = {}
        self._done: dict[int, Generation] = {}
        self._begun = self._given = 0

    def __len__(self) -> int:
        """How many prompts there are."""
        return len(self._nbytes)

    def __next__(self) -> Generation:
        if self._given == len(self):
            raise StopIteration
        while self._given not in self._done:
            self._step()
        self._given += 1
        return self._done.pop(self._given - 1)

    def _step(self) -> None:
        """Begin as many as may be open, and give each of the others one token."""
        began = time.perf_counter()
        going = list(self._open.values())
        if going:
            rows = feed_each([g.session for g in going], [g.unfed[0] for g in going])
            for generation, logits in zip(going, rows, strict=True):
                generation.take(logits)
            elapsed = time.perf_counter() - began
            self.seconds += elapsed
            for generation in going:
                generation.seconds += elapsed
            self.new_tokens += len(going)
            self._close_finished()
        while self._may_begin():
            generation = self._begin(self._begun)
            self._open[self._begun] = generation
            self._begun += 1
            if generation.finish_reason is None:
                generation.advance()
                self.new_tokens += generation.new_tokens
                self.prompt_seconds += generation.prompt_seconds
            self._close_finished()

    def _may_begin(self) -> bool:
        """Whether another one has a place; the first always has, or is refused by its session."""
        if self._begun == len(self) or len(self._open) == self.at_once:
            return False
        needed = sum(self._nbytes[n] for n in [*self._open, self._begun])
        return not self._open or needed <= memory.limit()

    def _close_finished(self) -> None:
        for n, generation in list(self._open.items()):
            if generation.finish_reason is not None:
                generation.session.close()
                self._done[n] = self._open.pop(n)
