"""Bits per byte: the loss that compares models with different vocabularies."""

from __future__ import annotations

import math
from typing import Any

from pyllm2.formats.llmc_tokens import Shard
from pyllm2.tokenizers import Tokenizer
from pyllm2.tokenizers.sentencepiece import SentencePieceTokenizer

TOKENS = 2**16  # of the validation shard that are looked at
BLANK_LINE = 2  # bytes between documents, which SentencePiece's BOS stands for


def bytes_per_token(tokenizer: Tokenizer, shard: Shard) -> float:
    """How many bytes of text a token of the validation data stands for; 0 if it has no text."""
    ids: list[Any] = shard.read(0, min(shard.count, TOKENS)).tolist()
    if isinstance(tokenizer, SentencePieceTokenizer):  # its BOS has no text
        nbytes = len(tokenizer.decode(ids)) + BLANK_LINE * ids.count(tokenizer.begin)
    else:
        marks = (tokenizer.begin, tokenizer.end)
        nbytes = len(tokenizer.decode([i for i in ids if i not in marks]))
    return nbytes / max(1, len(ids))


def bits_per_byte(loss: float, bytes_of_a_token: float) -> float:
    """loss / (ln 2 · bytes per token); loss: nats per token"""
    return loss / math.log(2) / bytes_of_a_token
