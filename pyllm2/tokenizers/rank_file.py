"""Llama 3's `tokenizer.model` in Meta's folders: a rank file of tiktoken, and special tokens.

A word that is a token is that token. In other words the pair whose bytes together have the lowest
rank is merged, the leftmost of equals. Meta's 256 special tokens follow the ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyllm2.errors import FormatError
from pyllm2.formats import tiktoken_ranks
from pyllm2.formats.reader import Source
from pyllm2.tokenizers.added_tokens import AddedToken, AddedTokens
from pyllm2.tokenizers.bpe import PieceMerges, Words
from pyllm2.tokenizers.pipeline import Decoding, PipelineTokenizer, Specials, Split, Steps
from pyllm2.tokenizers.word_patterns import LLAMA3, splitter

LLAMA3_RANKS = 128000
_N_SPECIALS = 256
_FIRST = (
    "begin_of_text end_of_text reserved_special_token_0 reserved_special_token_1 "
    "finetune_right_pad_id step_id start_header_id end_header_id eom_id eot_id python_tag image"
).split()
_STOP = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
_BLANK = b" \n\t"


def special_texts() -> list[str]:
    """Meta's special tokens, in order of id."""
    reserved = [f"reserved_special_token_{i}" for i in range(2, _N_SPECIALS - len(_FIRST) + 2)]
    return [f"<|{name}|>" for name in [*_FIRST, *reserved]]


def from_source(source: Source) -> PipelineTokenizer:
    """A rank file with Llama 3's words and special tokens. Raises FileError or FormatError."""
    return from_ranks(tiktoken_ranks.read_ranks(source), source.path)


def from_ranks(ranks: Sequence[bytes], name: str) -> PipelineTokenizer:
    """The tokenizer of tokens in order of rank. Raises FormatError if a byte has no token."""
    rank_of = {piece.decode("latin-1"): rank for rank, piece in enumerate(ranks)}
    for byte in range(256):
        if chr(byte) not in rank_of:
            raise FormatError(name, f"byte 0x{byte:02X} has no token")
    specials = {text: len(ranks) + i for i, text in enumerate(special_texts())}
    words = Words(PieceMerges(rank_of, rank_of, whole=True, as_bytes=True))
    added = [AddedToken(i, text) for text, i in specials.items()]
    steps = Steps(words, _split(words, ranks), added=AddedTokens(added))
    begin, end = (specials[f"<|{name}|>"] for name in ("begin_of_text", "end_of_text"))
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    stop = tuple(specials[text] for text in _STOP)
    ids = frozenset(specials.values())
    decoding = Decoding([*ranks, *(text.encode() for text in specials)])
    return PipelineTokenizer(
        name,
        steps,
        decoding,
        Specials(names, begin, end, stop, (begin,), (), ids),
        (from_ranks, (ranks, name)),
        list(ranks),
    )


def _split(words: Words, ranks: Sequence[bytes]) -> Split:
    """Words by Llama 3's expression; as tiktoken does from the first byte that is not UTF-8 on.

    That byte, the word before it (with the blank tokens before that one, if it begins with one) and
    all that follows are one word.
    """
    by_pattern = splitter(LLAMA3)

    def split(text: str, at_start: bool) -> list[str]:
        first = next((i for i, c in enumerate(text) if "\udc80" <= c <= "\udcff"), None)
        if text.isascii() or first is None:
            return by_pattern(text)
        before = by_pattern(text[:first])
        rest = before.pop() if before else ""
        if rest and not ranks[words.encode([rest])[0]].strip(_BLANK):
            while before and (blank := _blank_end(before[-1], words, ranks)):
                rest = blank + rest
                before[-1] = before[-1][: -len(blank)]
                if before[-1]:
                    break
                before.pop()
        return [*before, rest + text[first:]]

    return split


def _blank_end(word: str, words: Words, ranks: Sequence[bytes]) -> str:
    """The blank tokens at the end of a word, as text."""
    n = 0
    for i in reversed(words.encode([word])):
        if ranks[i].strip(_BLANK):
            break
        n += len(ranks[i])
    return word[len(word) - n :]
