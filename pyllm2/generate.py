"""The loop: feed the prompt in one forward, then sample, emit, feed back. It prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyllm2.session import Session

# A long prompt is fed in pieces of this many tokens: attention makes T · P scores a head.
PREFILL_CHUNK = 256


@dataclass(frozen=True)
class Token:
    """One generated token: its id, and its bytes (a character may be spread over several)."""

    id: int
    bytes: bytes


def prefill(session: Session, ids: Sequence[int]) -> NDArray[np.float32]:
    """Feed a prompt; the logits after its last token, (V,)."""
    logits = None
    for start in range(0, len(ids), PREFILL_CHUNK):
        logits = session.feed(ids[start : start + PREFILL_CHUNK], last_only=True)
    if logits is None:
        raise ValueError("an empty prompt has no logits")
    return logits[-1]


def generate_ids(
    session: Session,
    prompt: Sequence[int],
    choose: Callable[[NDArray[np.float32]], int],
    max_new_tokens: int,
    stop: Collection[int],
) -> Iterator[int]:
    """Sampled ids, one by one; ends before a stop id, at max_new_tokens or at the last position.

    prompt: at least one id. A stop id is neither yielded nor fed.
    """
    if max_new_tokens < 1:
        return
    logits = prefill(session, prompt)
    for n in range(max_new_tokens):
        token = choose(logits)
        if token in stop:
            return
        yield token
        if session.room == 0 or n + 1 == max_new_tokens:
            return
        logits = session.feed([token])[-1]
