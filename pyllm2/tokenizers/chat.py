"""The chat format of Llama-2, as llama2.c writes it: for models that have no chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyllm2.errors import ChatTemplateError
from pyllm2.tokenizers.arguments import text_bytes


def render(user: bytes, system: bytes = b"") -> bytes:
    """A message of the user, after the system prompt if there is one (in the first message only).

    Example: b"Hi" -> b"[INST] Hi [/INST]"
    """
    if system:
        user = b"<<SYS>>\n" + system + b"\n<</SYS>>\n\n" + user
    return b"[INST] " + user + b" [/INST]"


def llama2_ids(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    path: str = "the model",
    replies: Sequence[Sequence[int] | None] = (),
) -> list[int]:
    """The ids of a conversation: BOS, a message of the user, the reply and EOS, BOS, ...

    messages: dicts with `role` and `content`: perhaps one of the system, then user and assistant in
    turn. replies: for each message the ids of its text, if they are known.

    Raises ChatTemplateError for other messages, TokenizerError.
    """
    system, turns = b"", list(messages)
    known = [*replies, *[None] * (len(turns) - len(replies))]
    if turns and turns[0].get("role") == "system":
        system, turns, known = _content(turns[0], path), turns[1:], known[1:]
    ids: list[int] = []
    for n, message in enumerate(turns):
        if message.get("role") != ("user", "assistant")[n % 2]:
            raise ChatTemplateError(path, "user and assistant must take turns, the user begins")
        text, reply = _content(message, path), known[n]
        if n % 2 == 0:
            ids += tokenizer.encode_prompt(render(text, system if n == 0 else b""))
        else:
            ids += tokenizer.encode(text.strip(), bos=False) if reply is None else reply
            ids.append(tokenizer.end)
    if not ids:
        raise ChatTemplateError(path, "the conversation has no messages")
    return ids


def _content(message: Mapping[str, Any], path: str) -> bytes:
    content = message.get("content")
    if not isinstance(content, (str, bytes)):
        raise ChatTemplateError(path, "the content of a message is no text")
    return text_bytes(content)
