"""Rows 20 to 26: a tokenizer.bin that is cut, false, or without a token that the text needs."""

from __future__ import annotations

import struct
from itertools import accumulate

from tests.hostile.case import GENERATE, Case, of_tokenizer
from tests.hostile.other_files import HTML, IS_HTML, IS_LFS, LFS
from tests.support.llama2_files import PIECES, V, checkpoint, vocabulary

GOOD = vocabulary()
AT = [4, *accumulate((8 + len(piece) for piece in PIECES), initial=4)][1:]  # offsets of the records


def with_length(token: int, length: int) -> bytes:
    """A valid file with another length in one record."""
    data = bytearray(GOOD)
    struct.pack_into("<i", data, AT[token] + 4, length)
    return bytes(data)


def with_score(token: int, score: float) -> bytes:
    """A valid file with another score in one record."""
    data = bytearray(GOOD)
    struct.pack_into("<f", data, AT[token], score)
    return bytes(data)


def _cuts() -> list[Case]:
    cut = f"token 41 of {V} (byte {AT[41]}): 3 bytes left, score and length need 8"
    short = f"token 41 of {V}: length 6 (byte {AT[41] + 4}) exceeds the 2 bytes left"
    zero = f"token 5 of {V}: length = 0 (byte {AT[5] + 4}): at least 1"
    missing = "header needs 4, max_token_length is missing"
    cases = [
        of_tokenizer(20, "empty", b"", f"0 bytes: {missing}"),
        of_tokenizer(20, "three-bytes", GOOD[:3], f"3 bytes: {missing}"),
        of_tokenizer(20, "cut-in-record", GOOD[: AT[41] + 3], cut),
        of_tokenizer(20, "cut-in-piece", GOOD[: AT[41] + 8 + 2], short),
        of_tokenizer(21, "length-0", with_length(5, 0), zero),
    ]
    left = len(GOOD) - AT[5] - 8
    for length in (-5, -(2**31), 2**31 - 1, left + 1):
        unsigned = length % 2**32
        error = (
            f"token 5 of {V}: length {unsigned} (byte {AT[5] + 4}) exceeds the {left} bytes left"
        )
        cases.append(of_tokenizer(21, f"length{length}", with_length(5, length), error))
    return cases


def _sizes() -> list[Case]:
    """Rows 20 and 23: how many tokens there must be is known from the model only."""
    after = f"t.bin: 3 bytes (byte {len(GOOD)}) after the last of {V} tokens"
    few, none = (f"t.bin: has {n} tokens, m.bin expects {V}" for n in (265, 0))
    return [
        Case(20, "trailing-bytes", after, {"t.bin": GOOD + b"abc"}),
        Case(23, "too-few", few, {"t.bin": vocabulary(PIECES[:265])}, run=True),
        Case(23, "far-too-few", none, {"t.bin": GOOD[:4]}, run=True),
    ]


def _lacking() -> list[Case]:
    without_space = vocabulary([b"_" if piece == b" " else piece for piece in PIECES])
    no_space = "the prompt needs a space token and t.bin has none"
    of_100 = vocabulary([*PIECES[:90], b" ", *PIECES[90:99]])
    small = {"t.bin": of_100, "m.bin": checkpoint(vocab_size=100)}
    of_zeros = vocabulary([*PIECES[:100], b" ", *[b"<0x00>"] * (V - 101)])
    no_c3, no_a = (f"byte 0x{byte} has no token in t.bin" for byte in ("C3", "61"))
    return [
        Case(24, "no-space", no_space, {"t.bin": without_space}, run=True, tokenize=True),
        Case(25, "no-such-byte", no_c3, small, (*GENERATE, "--prompt", "\u00e9")),
        Case(25, "wrong-byte", no_a, {"t.bin": of_zeros}, (*GENERATE, "--prompt", "a")),
    ]


def _contents() -> list[Case]:
    nan = f"token 260 of {V}: score = nan (byte {AT[260]}): must be a number"
    return [
        of_tokenizer(26, "nan-score", with_score(260, float("nan")), nan),
        Case(18, "html-as-tokenizer", f"t.bin: {IS_HTML}", {"t.bin": HTML}, tokenize=True),
        Case(18, "lfs-as-tokenizer", f"t.bin: {IS_LFS}", {"t.bin": LFS}, tokenize=True),
    ]


TOKENIZER_FILES = [*_cuts(), *_sizes(), *_lacking(), *_contents()]
