"""A SentencePiece vocabulary from texts, if there is memory to train it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyllm2 import memory
from pyllm2.formats.sentencepiece_model import train_sentencepiece
from pyllm2.formats.text import Text

# Memory that the library takes, measured with version 0.2: bytes per character of text, and per
# character of its distinct words, whose pairs it counts.
BYTES_PER_CHARACTER, BYTES_PER_WORD_CHARACTER = 6, 100


def train_vocabulary(texts: Sequence[Text], vocab_size: int, like_original: bool = False) -> Any:
    """Train a `SentencePieceProcessor` on the lines of texts; see `train_sentencepiece`.

    Raises NotEnoughMemoryError before the library starts, because it ends the process instead;
    FormatError for a text that is not UTF-8.
    """
    memory.require(_needed(texts), "training a tokenizer", "use less text")
    lines = (line for text in texts for line in text.lines())
    return train_sentencepiece(lines, vocab_size, like_original)


def _needed(texts: Sequence[Text]) -> int:
    """Estimate of the memory in bytes."""
    words: set[int] = set()
    total = distinct = 0
    for text in texts:
        for line in text.lines():
            total += len(line)
            for word in line.split(" "):
                if (key := hash(word)) not in words:
                    words.add(key)
                    distinct += len(word) + 1
    return BYTES_PER_CHARACTER * total + BYTES_PER_WORD_CHARACTER * distinct
