"""The generation loop: feed the prompt, then choose a token, yield it, feed it back."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pyllm2.inference.session import Session
from pyllm2.inference.stop_text import StopText
from pyllm2.inference.token import Token
from pyllm2.tokenizers import Tokenizer

__all__ = ["PREFILL_CHUNK", "Generation", "Token", "prefill"]

Array = NDArray[np.float32]

# A long prompt is fed in chunks of this many tokens: attention computes T · P scores per head.
PREFILL_CHUNK = 256


class Generation(Iterator[Token]):
    """New tokens as they are made; what `LanguageModel.generate` returns.

    prompt: the ids that it continues   session: where they are fed
    new_tokens: how many tokens have been made so far
    finish_reason: None before the last token is made, then "stop" (a stop id or text), "length"
    (max_new_tokens) or "context" (full)
    stopped_by: the stop id, or the bytes of the stop text
    prompt_seconds: time to the first token: the prompt is fed when that is asked for
    seconds: time for all the others, without what the caller does in between
    """

    def __init__(
        self,
        session: Session,
        prompt: Sequence[int],
        choose: Callable[[Array], int],
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
        self._choose, self._max_new_tokens, self._stop = choose, max_new_tokens, stop
        self._stop_text, self._logprobs = StopText(stop_texts), logprobs
        self._ready: deque[Token] = deque()  # made, and not yet asked for
        self._failed = False
        if max_new_tokens < 1:
            self._end("length")

    def __repr__(self) -> str:
        made = f"{self.new_tokens} new tokens after {len(self.prompt)}"
        return f"<Generation: {made}, {self.finish_reason or 'not finished'}>"

    def __next__(self) -> Token:
        while not self._ready:
            if self.finish_reason is not None or self._failed:
                raise StopIteration
            self.advance()
        return self._ready.popleft()

    def advance(self) -> None:
        """Feed the prompt, or the last token, and take the logits after it."""
        began, is_first = time.perf_counter(), self.new_tokens == 0
        try:
            if is_first:
                self.take(prefill(self.session, self.prompt))
            else:
                self.take(self.session.feed([self._last])[-1])
        except BaseException:
            self._failed = True
            raise
        finally:
            elapsed = time.perf_counter() - began
            if is_first:
                self.prompt_seconds += elapsed
            else:
                self.seconds += elapsed

    def take(self, logits: Array) -> None:
        """Choose the next token by the logits after all others, (V,).

        A stop id is neither given nor fed.
        """
        i = self._choose(logits)
        if i in self._stop:
            self._end("stop", i)
            return
        text, tokenizer = b"", self.tokenizer
        if tokenizer is not None:
            text = tokenizer.decode_one(i, at_start=self._last == tokenizer.begin)
        token = Token(i, text, logprob(logits, i) if self._logprobs else None)
        self._last = i
        self.new_tokens += 1
        self._ready.extend(self._stop_text.add(token))
        if self._stop_text.found is not None:
            self._end("stop", self._stop_text.found)
        elif self.new_tokens == self._max_new_tokens:
            self._end("length")
        elif self.session.room == 0:
            self._end("context")

    def _end(self, reason: str, by: int | bytes | None = None) -> None:
        self.finish_reason, self.stopped_by = reason, by
        self._ready.extend(self._stop_text.rest())

    @property
    def unfed(self) -> list[int]:
        """The last token, if it has not been fed: what the session should be fed next."""
        fed = self.session.pos - self._end_of_prompt
        return [self._last] if self.new_tokens > max(0, fed) else []


def logprob(logits: Array, i: int) -> float:
    """log softmax(logits)[i], in float64. logits: (V,)"""
    x = logits.astype(np.float64)
    x -= x.max()
    return float(x[i] - np.log(np.exp(x).sum()))


def prefill(session: Session, ids: Sequence[int]) -> Array:
    """Feed a prompt; the logits after its last token, (V,)."""
    logits = None
    for start in range(0, len(ids), PREFILL_CHUNK):
        logits = session.feed(ids[start : start + PREFILL_CHUNK], last_only=True)
    if logits is None:
        raise ValueError("an empty prompt has no logits")
    return logits[-1]
