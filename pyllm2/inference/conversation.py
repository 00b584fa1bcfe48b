"""A conversation of many turns with one key/value cache."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import ContextError
from pyllm2.inference.chat import chat_ids
from pyllm2.inference.generate import Generation, Token
from pyllm2.inference.language_model import LanguageModel
from pyllm2.tokenizers.chat_template import ChatTemplate

Message = dict[str, Any]


class Conversation:
    """Turns of a user and a model. A turn feeds only what the cache does not hold yet.

    messages: all messages so far, of the system, user and assistant
    left_out: how many of them the model does not see any more, because the context is full
    generation: that of the last reply
    """

    def __init__(
        self,
        model: LanguageModel,
        template: ChatTemplate | None = None,
        system: str = "",
        positions: int | None = None,
    ) -> None:
        """positions: length of the context (None: the model's)."""
        self.model, self.template = model, template
        self.session = model.start(positions)
        self.generation: Generation | None = None
        self.system = ""
        self.reset(system)

    def reset(self, system: str | None = None) -> None:
        """Begin anew, with another system prompt if one is given. The cache keeps what is equal."""
        self.messages: list[Message] = []
        self._replies: list[list[int] | None] = []
        self.left_out = 0
        self.set_system(self.system if system is None else system)

    def set_system(self, system: str) -> None:
        """Change the system prompt; empty: none. The next turn feeds the conversation again."""
        if self.messages and self.messages[0]["role"] == "system":
            del self.messages[0], self._replies[0]
        self.system = system
        if system:
            self.messages.insert(0, {"role": "system", "content": system})
            self._replies.insert(0, None)

    def reply(
        self,
        text: str,
        max_new_tokens: int = 1024,
        choose: Callable[[NDArray[np.float32]], int] | None = None,
        stop: Any = None,
    ) -> Generator[Token]:
        """Send a message; the tokens of the reply, as they are made.

        If the conversation is too long, the oldest messages are left out: `left_out`. A reply that
        is not taken to its end, or is interrupted, is kept as far as it came.

        Raises ContextError for a message that is too long by itself, and what `chat_ids` and
        `LanguageModel.generate` raise; then the message is not part of the conversation.
        """
        least, S = self.model.tokenizer.at_least(text), self.session.positions
        if least > S:  # refused before it is encoded
            raise ContextError(f"prompt is at least {least} tokens, context is {S}")
        if self.messages and self.messages[-1]["role"] == "user":
            self._drop_last()  # its reply was not asked for
        self._add("user", text)
        left_out = self.left_out
        try:
            ids = self._fitting(max_new_tokens)
            kept = min(self.session.shared(ids), len(ids) - 1)
            self.session.rewind(kept)
            generation = self.model.generate(
                ids[kept:], max_new_tokens, stop=stop, session=self.session, choose=choose
            )
        except BaseException:
            self._drop_last()
            self.left_out = left_out
            raise
        self.generation = generation
        return self._taken(generation)

    def ids(self, messages: list[Message], replies: Sequence[list[int] | None] = ()) -> list[int]:
        """The ids of messages, up to where a reply begins. Raises what `chat_ids` raises."""
        return chat_ids(self.model, messages, self.template, replies)

    def _taken(self, generation: Generation) -> Generator[Token]:
        """The tokens; at the end, however it comes, what they say becomes a message."""
        tokens: list[Token] = []
        try:
            for token in generation:
                tokens.append(token)
                yield token
        finally:
            if tokens or generation.finish_reason is not None:
                said = b"".join(token.bytes for token in tokens)
                self._add("assistant", said.decode("utf-8", "surrogateescape"))
                self._replies[-1] = [token.id for token in tokens]
            else:
                self._drop_last()

    def _fitting(self, max_new_tokens: int) -> list[int]:
        """The ids of the conversation, with room for a reply, without the oldest turns if need be.

        Room for a reply is a quarter of the context, or max_new_tokens if that is less.
        """
        S = self.session.positions
        most = S - min(max(0, max_new_tokens), S // 4)
        first = 1 if self.system else 0
        while True:
            seen = [*range(first), *range(first + self.left_out, len(self.messages))]
            ids = self.ids([self.messages[i] for i in seen], [self._replies[i] for i in seen])
            if len(ids) <= most:
                return ids
            if first + self.left_out + 2 >= len(self.messages):  # the last message alone
                if len(ids) < S:
                    return ids
                raise ContextError(f"prompt is {len(ids)} tokens, context is {S}")
            self.left_out += 2

    def _add(self, role: str, text: str) -> None:
        self.messages.append({"role": role, "content": text})
        self._replies.append(None)

    def _drop_last(self) -> None:
        del self.messages[-1], self._replies[-1]
