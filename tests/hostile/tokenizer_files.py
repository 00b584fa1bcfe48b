"""Rows 20 to 26: vocabularies that are cut, lie, or lack what the text needs."""

from __future__ import annotations

import struct
from itertools import accumulate

from ..cli.tiny import PIECES, V, checkpoint, vocabulary
from .case import GENERATE, Case, of_tokenizer
from .other_files import HTML, LFS

GOOD = vocabulary()
AT = [4, *accumulate((8 + len(piece) for piece in PIECES), initial=4)][1:]  # where records begin


def with_length(token: int, length: int) -> bytes:
    """A good file in which one record says another length."""
    data = bytearray(GOOD)
    struct.pack_into("<i", data, AT[token] + 4, length)
    return bytes(data)


def with_score(token: int, score: float) -> bytes:
    data = bytearray(GOOD)
    struct.pack_into("<f", data, AT[token], score)
    return bytes(data)


def _cuts() -> list[Case]:
    left = len(GOOD) - AT[5] - 8
    cases = [
        of_tokenizer(20, "empty", b"", "0 bytes: header needs 4, max_token_length is missing"),
        of_tokenizer(20, "three-bytes", GOOD[:3],
                     "3 bytes: header needs 4, max_token_length is missing"),
        of_tokenizer(20, "cut-in-record", GOOD[: AT[41] + 3],
                     f"token 41 of {V} (byte {AT[41]}): 3 bytes left, score and length need 8"),
        of_tokenizer(20, "cut-in-piece", GOOD[: AT[41] + 8 + 2],
                     f"token 41 of {V}: length 6 (byte {AT[41] + 4}) exceeds the 2 bytes left"),
        of_tokenizer(21, "length-0", with_length(5, 0),
                     f"token 5 of {V}: length = 0 (byte {AT[5] + 4}): at least 1"),
    ]  # fmt: skip
    for length in (-5, -(2**31), 2**31 - 1, left + 1):
        error = (
            f"token 5 of {V}: length {length % 2**32} (byte {AT[5] + 4}) exceeds "
            f"the {left} bytes left"
        )
        cases.append(of_tokenizer(21, f"length{length}", with_length(5, length), error))
    return cases


def _sizes() -> list[Case]:
    """Row 20's other half, and 23: only a model can know how many tokens there should be."""
    after = f"3 bytes (byte {len(GOOD)}) after the last of {V} tokens"
    return [
        Case(20, "trailing-bytes", f"t.bin: {after}", {"t.bin": GOOD + b"abc"}),
        Case(23, "too-few", f"t.bin: has 265 tokens, m.bin expects {V}",
             {"t.bin": vocabulary(PIECES[:265])}, run=True),
        Case(23, "far-too-few", f"t.bin: has 0 tokens, m.bin expects {V}", {"t.bin": GOOD[:4]},
             run=True),
    ]  # fmt: skip


def _lacking() -> list[Case]:
    no_space = [b"_" if piece == b" " else piece for piece in PIECES]
    few = checkpoint(vocab_size=100)
    return [
        Case(24, "no-space", "the prompt needs a space token and t.bin has none",
             {"t.bin": vocabulary(no_space)}, run=True, tokenize=True),
        Case(25, "no-such-byte", "byte 0xC3 has no token in t.bin",
             {"t.bin": vocabulary([*PIECES[:90], b" ", *PIECES[90:99]]), "m.bin": few},
             (*GENERATE, "--prompt", "\u00e9")),
        Case(25, "wrong-byte", "byte 0x61 has no token in t.bin",
             {"t.bin": vocabulary([*PIECES[:100], b" ", *[b"<0x00>"] * (V - 101)])},
             (*GENERATE, "--prompt", "a")),
    ]  # fmt: skip


def _contents() -> list[Case]:
    nan = f"score = nan (byte {AT[260]}): must be a number"
    return [
        of_tokenizer(26, "nan-score", with_score(260, float("nan")), f"token 260 of {V}: {nan}"),
        Case(18, "html-as-tokenizer", "t.bin: looks like a web page: was the download link right?",
             {"t.bin": HTML}, tokenize=True),
        Case(18, "lfs-as-tokenizer",
             "t.bin: looks like a Git LFS pointer: run `git lfs pull` to fetch the real file",
             {"t.bin": LFS}, tokenize=True),
    ]  # fmt: skip


TOKENIZER_FILES = [*_cuts(), *_sizes(), *_lacking(), *_contents()]
