"""Which messages of a conversation that is too long are left out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.errors import ContextError
from pyllm2.inference.conversation import Conversation, Message
from pyllm2.inference.token import Token


class Words:
    """A model whose tokens are letters; it keeps what it is fed and always answers "yy"."""

    def __init__(self) -> None:
        self.tokenizer = SimpleNamespace(at_least=len)
        self.fed: list[int] = []

    def start(self, positions: int) -> Any:
        return SimpleNamespace(
            positions=positions, shared=lambda ids: 0, rewind=lambda kept: None, pos=0
        )

    def generate(self, ids: list[int], *args: Any, **kwargs: Any) -> Any:
        self.fed = ids

        class Reply(list[Token]):
            finish_reason = "stop"

        return Reply([Token(0, b"y"), Token(0, b"y")])


class Letters(Conversation):
    def ids(self, messages: list[Message], replies: Any = ()) -> list[int]:
        return [ord(letter) for message in messages for letter in message["content"]]


@given(
    st.sampled_from(["", "SS"]),
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.integers(4, 24),
    st.integers(0, 12),
)
def test_the_fewest_oldest_turns_are_left_out(
    system: str, lengths: list[int], S: int, new: int
) -> None:
    """The system prompt stays; the last message alone needs room for one token only.

    A message that is refused changes nothing.
    """
    model: Any = Words()
    conversation = Letters(model, None, system, S)
    said: list[str] = []
    left_out = 0
    for n, length in enumerate(lengths):
        text = chr(ord("a") + n) * length
        before = left_out
        while True:  # the rule, turn by turn
            tail = "".join([*said[left_out:], text])
            last = left_out >= len(said)
            if len(system + tail) <= S - min(new, S // 4) or last:
                break
            left_out += 2
        if len(system + tail) > S - min(new, S // 4) and len(system + tail) >= S:
            with pytest.raises(ContextError, match=f"context is {S}"):
                list(conversation.reply(text, new))
            left_out = before
            assert conversation.left_out == before
            assert [m["content"] for m in conversation.messages if m["role"] != "system"] == said
            continue
        reply = b"".join(token.bytes for token in conversation.reply(text, new)).decode()
        assert "".join(map(chr, model.fed)) == system + tail
        assert conversation.left_out == left_out
        said += [text, reply]
