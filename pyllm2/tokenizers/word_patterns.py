r"""The regular expressions that cut a text into words, and Unicode classes as upstream has them.

The expressions are those of tokenizer.json files; a file that asks for another one is refused.
`\p{L}`, `\p{N}` and `\w` are Unicode 16's, as in Oniguruma and Rust: a character that the installed
`regex` package knows and Unicode 16 did not have counts as unassigned.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from itertools import accumulate, pairwise
from typing import Any

from pyllm2.errors import BackendError

Splitter = Callable[[str], list[str]]

GPT2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"""| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST

# The same expressions as other files write them.
KNOWN = {
    GPT2: GPT2,
    r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""": GPT2,
    LLAMA3: LLAMA3,
    QWEN2: QWEN2,
}

# Letters, marks and numbers that came after Unicode 16 (to Unicode 18).
_NEWER = """
558 58B-58C 5C8-5C9 88F B53-B54 C5C CDC 1ACF-1AF0 208F 209D-209F A7CE-A7CF A7D2 A7D4 A7DD A7E2
A7F1 AB6C-AB6D 107BB-107BF 10940-10959 10EC5-10EC7 10ECB-10ECF 10ED9-10EEE 10EF0-10EFB 11B0A
11B60-11B67 11DB0-11DDB 11DE0-11DE9 11DF0-11DF1 1246F 12475-1247F 12550-12686 16EA0-16EB8
16EBB-16ED3 16FF2-16FF6 187F8-187FF 18CD6-18CDA 18D09-18D20 18D80-18DF2 18E00-19191 191A0-191D2
1B123-1B128 1B168 1D127-1D128 1D250-1D252 1D25B-1D25C 1D25F 1D280-1D281 1D6A6 1DF1F-1DF24
1DF2B-1DF81 1DF90-1DF96 1DFCD-1DFFF 1E6C0-1E6DE 1E6E0-1E6F5 1E6FE-1E6FF 2B73A-2B73F 2B81E
2CEA2-2CEAD 323B0-33479 3D000-3FC3F
"""
# Of these, the numbers that upstream's Digits knows nevertheless (Unicode 17).
_NEWER_DIGITS = "\U00011de0-\U00011de9\U00016ff4-\U00016ff6"
_UNASSIGNED = "\u0378"  # in every version of Unicode

WHITE_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"

BLOCK = 2**18  # characters that are cut at once
_RECONSIDERED = 3  # words at the end of a block that the text behind it may change


def regex_package() -> Any:
    """The `regex` module. Raises BackendError without it."""
    try:
        import regex
    except ImportError:
        raise BackendError(
            "this tokenizer needs the regex package: pip install 'pyllm2[models]'"
        ) from None
    return regex


def _class(last: int) -> str:
    """The characters of `_NEWER` up to `last`, inside the brackets of a regular expression."""
    ranges = [word.partition("-") for word in _NEWER.split()]
    both = [(int(first, 16), int(end or first, 16)) for first, _, end in ranges]
    return "".join(f"{chr(first)}-{chr(end)}" for first, end in both if end <= last)


# Bytes that are not UTF-8, newer characters, and (because that is fast) all of the other planes.
_UNUSUAL = re.compile(f"[\udc80-\udcff\U00010000-\U0010ffff{_class(0xFFFF)}]")
_NOT_UTF8 = re.compile("([\udc80-\udcff])")


@cache
def _newer() -> re.Pattern[str]:
    return re.compile(f"[{_class(0x10FFFF)}]")


def splitter(pattern: str) -> Splitter:
    """A function that gives the words of a text: matches of a pattern that covers every text.

    Example (GPT2): "don't  go" -> ["don", "'t", " ", " go"]
    A lone surrogate (a byte that is not UTF-8) is a word.
    """
    find_all = regex_package().compile(pattern).findall

    def split(text: str) -> list[str]:
        if text.isascii() or not _UNUSUAL.search(text):
            return _in_blocks(find_all, text)
        words: list[str] = []
        for i, part in enumerate(_NOT_UTF8.split(text)):
            if i % 2:
                words.append(part)
            elif part:
                stand_in = _newer().sub(_UNASSIGNED, part)
                words += _cut(part, _in_blocks(find_all, stand_in))
        return words

    return split


def _cut(text: str, words: list[str]) -> list[str]:
    """The text in parts of the lengths of these words."""
    ends = list(accumulate(map(len, words), initial=0))
    return [text[start:end] for start, end in pairwise(ends)]


def _in_blocks(find_all: Callable[..., list[str]], text: str) -> list[str]:
    """All words. A block ends where the text behind it cannot change the words in it."""
    if len(text) <= BLOCK:
        return find_all(text)
    words: list[str] = []
    at, size = 0, BLOCK
    while at < len(text):
        found = find_all(text, at, at + size)
        if at + size < len(text):
            if len(found) <= _RECONSIDERED:
                size *= 2
                continue
            del found[-_RECONSIDERED:]
        words += found
        at, size = at + sum(map(len, found)), BLOCK
    return words


def digit_splitter() -> Splitter:
    r"""Every character of \p{N} is a word, and so is what lies between two of them."""
    numbers = r"\p{N}" + _NEWER_DIGITS
    regex = regex_package()
    find_all = regex.compile(rf"[{numbers}]|[^{numbers}]+").findall
    unknown = regex.compile(rf"(?![{_NEWER_DIGITS}])[{_class(0x10FFFF)}]")

    def split(text: str) -> list[str]:
        if text.isascii() or not _UNUSUAL.search(text):
            return find_all(text)
        return _cut(text, find_all(unknown.sub(_UNASSIGNED, text)))

    return split


@cache
def _word_character() -> Any:
    return regex_package().compile(r"\w")


def is_word_character(c: str) -> bool:
    r"""Whether a character is in \w: letters, marks, digits, connectors, joiners; not "²"."""
    if c.isascii():
        return c.isalnum() or c == "_"
    return bool(_word_character().match(c)) and not _newer().match(c)
