"""What callers pass to a tokenizer or a model: texts as bytes, ids as Python integers."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from pyllm2.errors import TokenizerError, printable, shown


def text_bytes(text: str | bytes) -> bytes:
    """A text as bytes: UTF-8 of a str, in which a lone surrogate stands for a byte (PEP 383).

    Example: "a\\udcff" -> b"a\\xff"

    Raises TokenizerError for half of a surrogate pair, and for what is no text.
    """
    if isinstance(text, str):
        try:
            return text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise TokenizerError(f"character {error.start} is half of a surrogate pair") from None
    if isinstance(text, (bytes, bytearray, memoryview)):
        return bytes(text)
    raise TokenizerError(f"text: expected str or bytes, found {type(text).__name__}")


def token_id(i: Any) -> int:
    """An id of any integer type as an int. Raises TokenizerError for another type."""
    try:
        return operator.index(i)
    except TypeError:
        raise TokenizerError(f"token id {shown(i)}: expected a whole number") from None


def token_ids(ids: Iterable[Any], name: str = "ids") -> list[int]:
    """Ids of any integer types as a list of int. Raises TokenizerError for anything else."""
    if not isinstance(ids, (str, bytes, bytearray)):
        try:
            iterator = iter(ids)
        except TypeError:
            pass
        else:
            return [token_id(i) for i in iterator]
    hint = " (tokenizer.encode gives the ids of a text)" if isinstance(ids, (str, bytes)) else ""
    raise TokenizerError(f"{name}: expected token ids, found {type(ids).__name__}{hint}")


def described(tokenizer: Any) -> str:
    """The repr of a tokenizer.

    Example: "<SentencePieceTokenizer tok512.bin: 512 tokens>"
    """
    name = printable(str(tokenizer.name))
    return f"<{type(tokenizer).__name__} {name}: {tokenizer.vocab_size} tokens>"
