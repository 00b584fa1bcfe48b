"""The generation loop: feed the prompt, then sample a token, yield it, feed it back."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pyllm2.inference.session import Session
from pyllm2.inference.stop_text import StopText
from pyllm2.inference.token import Token
from pyllm2.tokenizers import Tokenizer

__all__ = ["PREFILL_CHUNK", "Generation", "Token", "prefill"]

# A long prompt is fed in chunks of this many tokens: attention computes T · P scores per head.
PREFILL_CHUNK = 256


class Generation(Iterator[Token]):
    """New tokens as they are made; what `LanguageModel.generate` returns.

    prompt: the ids that it continues   session: where they are fed
    new_tokens: how many tokens have been made so far
    finish_reason: None before the end, then "stop" (a stop id or text), "length" (max_new_tokens)
    or "context" (full)   stopped_by: the stop id, or the bytes of the stop text
    prompt_seconds: time to the first token: the prompt is fed when that is asked for
    seconds: time for all the others, without what the caller does in between
    """

    def __init__(
        self,
        session: Session,
        prompt: Sequence[int],
        choose: Callable[[NDArray[np.float32]], int],
        max_new_tokens: int,
        stop: Collection[int] = (),
        tokenizer: Tokenizer | None = None,
        stop_texts: Collection[bytes] = (),
        logprobs: bool = False,
    ) -> None:
        self.session, self.prompt, self.tokenizer = session, list(prompt), tokenizer
        self.new_tokens = 0
        self.finish_reason: str | None = None
        self.stopped_by: int | bytes | None = None
        self.prompt_seconds = self.seconds = 0.0
        self._last = self.prompt[-1]
        self._end_of_prompt = session.pos + len(self.prompt)
        self._logprobs = logprobs
        self._ids = self._loop(choose, max_new_tokens, stop)
        self._stop_text = StopText(stop_texts)
        self._ready: deque[Token] = deque()  # made, and not yet asked for

    def __repr__(self) -> str:
        made = f"{self.new_tokens} new tokens after {len(self.prompt)}"
        return f"<Generation: {made}, {self.finish_reason or 'not finished'}>"

    def __next__(self) -> Token:
        while not self._ready:
            try:
                token = self._make()
            except StopIteration:
                self._ready.extend(self._stop_text.rest())
                if not self._ready:
                    raise
                break
            self._ready.extend(self._stop_text.add(token))
            found = self._stop_text.found
            if found is not None:
                self._ids.close()  # the next token is a StopIteration
                self.finish_reason, self.stopped_by = "stop", found
        return self._ready.popleft()

    def _make(self) -> Token:
        """The next token. Raises StopIteration."""
        began = time.perf_counter()
        try:
            i, logprob = next(self._ids)
        finally:
            elapsed = time.perf_counter() - began
            if self.new_tokens == 0:
                self.prompt_seconds += elapsed
            else:
                self.seconds += elapsed
        text, tokenizer = b"", self.tokenizer
        if tokenizer is not None:
            text = tokenizer.decode_one(i, at_start=self._last == tokenizer.begin)
        self._last = i
        self.new_tokens += 1
        return Token(i, text, logprob)

    def _loop(
        self,
        choose: Callable[[NDArray[np.float32]], int],
        max_new_tokens: int,
        stop: Collection[int],
    ) -> Generator[tuple[int, float | None]]:
        """The ids, as they are chosen, and their log-probabilities.

        A stop id is neither yielded nor fed.
        """
        if max_new_tokens < 1:
            self.finish_reason = "length"
            return
        logits = prefill(self.session, self.prompt)
        for n in range(1, max_new_tokens + 1):
            i = choose(logits)
            if i in stop:
                self.finish_reason, self.stopped_by = "stop", i
                return
            yield i, logprob(logits, i) if self._logprobs else None
            if self.session.room == 0 or n == max_new_tokens:
                self.finish_reason = "length" if n == max_new_tokens else "context"
                return
            logits = self.session.feed([i])[-1]

    @property
    def unfed(self) -> list[int]:
        """The last token, if it has not been fed: what the session should be fed next."""
        fed = self.session.pos - self._end_of_prompt
        return [self._last] if self.new_tokens > max(0, fed) else []


def logprob(logits: NDArray[np.float32], i: int) -> float:
    """log softmax(logits)[i], in float64. logits: (V,)"""
    x = logits.astype(np.float64)
    x -= x.max()
    return float(x[i] - np.log(np.exp(x).sum()))


def prefill(session: Session, ids: Sequence[int]) -> NDArray[np.float32]:
    """Feed a prompt; the logits after its last token, (V,)."""
    logits = None
    for start in range(0, len(ids), PREFILL_CHUNK):
        logits = session.feed(ids[start : start + PREFILL_CHUNK], last_only=True)
    if logits is None:
        raise ValueError("an empty prompt has no logits")
    return logits[-1]
