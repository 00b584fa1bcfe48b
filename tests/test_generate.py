"""The loop around the model: what is fed, and when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.generate import PREFILL_CHUNK, generate_ids, prefill


class Recorder:
    """A session of `room` places that remembers what it is fed; the logits are its length."""

    def __init__(self, room: int) -> None:
        self.room, self.fed = room, []

    def feed(self, ids: Sequence[int], last_only: bool = False) -> Any:
        self.fed += ids
        self.room -= len(ids)
        assert self.room >= 0
        return np.full((1 if last_only else len(ids), 1), len(self.fed), np.float32)


@given(st.integers(1, 3 * PREFILL_CHUNK))
def test_a_prompt_is_fed_whole_once_and_in_order(n: int) -> None:
    """In however many pieces; the logits are those after the last."""
    session = Recorder(n)
    assert prefill(session, range(n)) == [n]
    assert session.fed == list(range(n))


@given(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 12))
def test_tokens_are_fed_back_until_a_limit(n: int, room: int, most: int, stop: int) -> None:
    """Choosing 100 + length each time: it ends at most tokens, a full context or a stop id."""
    session = Recorder(n + room)

    def choose(row: Any) -> int:
        return 100 + int(row[0])

    new = list(generate_ids(session, range(n), choose, most, {100 + n + stop}))
    assert new == list(range(100 + n, 100 + n + min(most, room + 1, stop)))
    assert session.fed[n:] == new[: len(session.fed) - n]
