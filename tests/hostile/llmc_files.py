"""Rows 20 to 33: llm.c's checkpoints, evaluation files, tokenizers and token shards."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from tests.hostile.case import Argv, Case
from tests.hostile.other_files import HTML
from tests.support.gpt2_files import (
    CONFIG,
    FIELDS,
    evaluation_file,
    header,
    model_file,
    shard,
    tokenizer_file,
    with_bytes,
    with_number,
)

INT_MIN, INT_MAX = -(2**31), 2**31 - 1
EXAMPLES: list[Any] = [
    (1, [1, 2, 3], [[4], [5, 6], [7, 8, 9], [10]]),
    (3, [11, 12], [[13, 14], [15], [16], [17, 18]]),
]
GPT2 = model_file()
EVALUATION = evaluation_file(EXAMPLES)
VOCABULARY = tokenizer_file([b"a", b"b", b"\n", b"<|eot|>"], 3)
SHARD = shard(range(40))
GOOD = {"g.bin": GPT2, "e.bin": EVALUATION, "v.bin": VOCABULARY, "x.txt": b"ab\n\nba"}

EVAL: Argv = tuple("eval hellaswag g.bin --data e.bin --backend numpy".split())
PREPARE: Argv = tuple("data prepare x.txt --tokenizer v.bin --out d --val-tokens 2".split())
GENERATE: Argv = tuple("generate g.bin --tokenizer bytes --backend numpy --mmap".split())


def of_file(name: str, row: int, what: str, data: bytes, error: str) -> Case:
    """A bad g.bin or e.bin, refused by `eval`, or a bad v.bin, refused by `data prepare`."""
    argv = PREPARE if name == "v.bin" else EVAL
    return Case(row, f"{name}-{what}", f"{name}: {error}", {**GOOD, name: data}, argv)


# ---- checkpoints ------------------------------------------------------------------------------


def _sizes(config: dict[str, int]) -> dict[str, int]:
    """Bytes of each part of a float32 checkpoint."""
    S, _, L, _, C, Vp = (config[name] for name in FIELDS)
    floats = {
        "wte": Vp * C,
        "wpe": S * C,
        "ln1w": L * C,
        "ln1b": L * C,
        "qkvw": L * 3 * C * C,
        "qkvb": L * 3 * C,
        "attprojw": L * C * C,
        "attprojb": L * C,
        "ln2w": L * C,
        "ln2b": L * C,
        "fcw": L * 4 * C * C,
        "fcb": L * 4 * C,
        "fcprojw": L * C * 4 * C,
        "fcprojb": L * C,
        "lnfw": C,
        "lnfb": C,
    }
    return {"header": 1024, **{name: 4 * n for name, n in floats.items()}}


def too_short(found: int, **changes: int) -> str:
    """The message for a file of `found` bytes with the header of CONFIG, but for `changes`."""
    end, where = 0, ""
    for name, size in _sizes({name: getattr(CONFIG, name) for name in FIELDS} | changes).items():
        end += size
        if end > found and not where:
            where = name
    return (
        f"{found} bytes, but its header needs {end} ({end - found} missing, from {where} on): "
        "download incomplete?"
    )


def too_long(extra: int, end: int) -> str:
    """The message for a file with `extra` bytes after byte `end`."""
    where = f"after the last array (which ends at byte {end})"
    return f"{extra} bytes {where}: not a file of this shape"


def with_fields(**changes: int) -> bytes:
    """GPT2 with other sizes in its header."""
    data = GPT2
    for name, value in changes.items():
        data = with_number(data, 2 + FIELDS.index(name), value)
    return data


def _checkpoints() -> list[Case]:
    size = len(GPT2)
    bfloat16 = with_number(GPT2, 1, 5)
    half = (size + 1024) // 2  # its length
    many, deep = {"num_layers": 2 + 2**30}, {"num_layers": 2**30, "channels": 2**30}
    padded = "padded_vocab_size = 19 (byte 28): must be at least vocab_size = 20"
    rows: list[tuple[int, str, bytes, str]] = [
        (27, "empty", b"", "0 bytes: header needs 28"),  # it might be one of llama2.c's
        (27, "header-cut", GPT2[:1023], "1023 bytes: header needs 1024"),
        (
            27,
            "magic",
            with_number(GPT2, 0, 20240325),
            "dim = 20240325 (byte 0): must be a multiple of n_heads = 20",
        ),
        (27, "html", HTML, "looks like a web page: was the download link right?"),
        (27, "shard", SHARD, "looks like an llm.c token shard (GPT-2 ids), not a checkpoint"),
        (29, "padded-vocab", with_fields(padded_vocab_size=19), padded),
        (
            29,
            "heads",
            with_fields(num_heads=3),
            "channels = 8 (byte 24): must be a multiple of num_heads = 3",
        ),
        (30, "trailing", GPT2 + b"\0", too_long(1, size)),
        (30, "as-bfloat16", bfloat16, too_long(size - half, half)),
        (30, "32-bits", with_fields(**many), too_short(size, **many)),
        (30, "64-bits", with_fields(**deep), too_short(size, **deep)),
    ]
    for version in (0, 1, 4, 6, -1, INT_MIN):
        error = f"version = {version} (byte 4): 3 (float32) and 5 (bfloat16) are supported"
        rows.append((27, f"version{version}", with_number(GPT2, 1, version), error))
    for i, name in enumerate(FIELDS):
        for value in (0, -1, INT_MIN):
            error = f"{name} = {value} (byte {8 + 4 * i}): must be at least 1"
            rows.append((28, f"{name}{value}", with_fields(**{name: value}), error))
    for cut in (1024, 1025, 1500, size // 2, size - 1):
        rows.append((30, f"cut-at-{cut}", GPT2[:cut], too_short(cut)))
    mapped = "g.bin: is bfloat16, and only float32 can be memory-mapped"
    return [
        *(of_file("g.bin", *row) for row in rows),
        Case(27, "g.bin-mapped", mapped, {"g.bin": bfloat16[:half]}, GENERATE),
    ]


# ---- evaluation files -------------------------------------------------------------------------


def _evaluation_files() -> list[Case]:
    first, second, size = 1024, 1024 + 40, len(EVALUATION)
    assert EVALUATION[second : second + 2] == b"\xff\xff"
    in_header = [  # number, value, message
        (0, 1, "magic = 1 (byte 0): an evaluation file has 20240522"),
        (1, 2, "version = 2 (byte 4): 1 is supported"),
        (2, 0, "examples = 0 (byte 8): expected 1 to 65535"),
        (2, INT_MAX, f"examples = {INT_MAX} (byte 8): expected 1 to 65535"),
        (2, 3, f"example 2 of 3 (byte {size}): 0 bytes left, it needs 12 at least"),
        (2, 1, f"longest_example = 40 (byte 12): 1 examples in {size} bytes"),
        (3, -40, f"longest_example = -40 (byte 12): 2 examples in {size} bytes"),
    ]
    in_first = [  # byte of the first example, value, message
        (0, 7, "start = 7: expected 65535"),
        (2, 39, "size = 39: 76 bytes are left"),
        (2, 10, "size = 10: 76 bytes are left"),
        (2, 80, "size = 80: 76 bytes are left"),
        (4, 1, "index = 1: expected 0"),
        (6, 4, "label = 4: expected 0 to 3"),
        (8, 3, "completions = 3: expected 4"),
        (8, 0, "completions = 0: expected 4"),
        (10, 60000, "part 0: 60000 ids exceed its size = 40"),
    ]
    no_ids = evaluation_file([(0, [], [[1], [2], [3], [4]])])
    foreign = evaluation_file([EXAMPLES[0], (0, [20], [[1]] * 4)])
    long = evaluation_file([EXAMPLES[0], (0, [1] * 5, [[1, 1, 1], *[[1]] * 3])])
    rows: list[tuple[int, str, bytes, str]] = [
        (31, "odd", EVALUATION[:-1], f"{size - 1} bytes: must be an even number"),
        (31, "more", EVALUATION + b"\0\0", f"2 bytes (byte {size}) after the last of 2 examples"),
        (
            31,
            "cut",
            EVALUATION[:-2],
            f"example 1 of 2 (byte {second}): size = 36: 34 bytes are left",
        ),
        (31, "no-context", no_ids, f"example 0 of 1 (byte {first}): part 0 has no ids"),
        (32, "token", foreign, "example 1 has token 20: vocabulary is 20"),
        (33, "long", long, "needs 9 positions, g.bin has 8"),
    ]
    for i, value, error in in_header:
        rows.append((31, f"number-{i}={value}", with_number(EVALUATION, i, value), error))
    for byte, value, error in in_first:
        data = with_bytes(EVALUATION, first + byte, struct.pack("<H", value))
        rows.append((31, f"byte-{byte}={value}", data, f"example 0 of 2 (byte {first}): {error}"))
    return [of_file("e.bin", *row) for row in rows]


# ---- tokenizers -------------------------------------------------------------------------------


def _vocabularies() -> list[Case]:
    n = len(VOCABULARY)
    in_header = [  # number, value, message
        (1, 3, "version = 3 (byte 4): 1 and 2 are supported"),
        (1, 1, "tokens = 4 (byte 8): version 1 has 50257"),
        (2, 0, "tokens = 0 (byte 8): expected 1 to 16777216"),
        (2, INT_MAX, f"tokens = {INT_MAX} (byte 8): expected 1 to 16777216"),
        (2, 5, f"token 4 of 5 (byte {n}): missing"),
        (3, 4, "end_of_text = 4 (byte 12): expected 0 to 3"),
        (3, -1, "end_of_text = -1 (byte 12): expected 0 to 3"),
    ]
    fewer = with_number(with_number(VOCABULARY, 2, 3), 3, 2)
    empty, long = (with_bytes(VOCABULARY, 1024, length) for length in (b"\0", b"\xff"))
    left = f"length 255 (byte 1024) exceeds the {n - 1025} bytes left"
    last = f"token 3 of 4: length 7 (byte {n - 8}) exceeds the 6 bytes left"
    rows: list[tuple[int, str, bytes, str]] = [
        (20, "fewer", fewer, f"8 bytes (byte {n - 8}) after the last of 3 tokens"),
        (20, "header-cut", VOCABULARY[:1000], "1000 bytes: header needs 1024"),
        (20, "cut", VOCABULARY[:-1], last),
        (20, "large", VOCABULARY + bytes(1100), f"{n + 1100} bytes: 4 tokens have at most 2048"),
        (21, "length-0", empty, "token 0 of 4: length = 0 (byte 1024): at least 1"),
        (21, "length-255", long, f"token 0 of 4: {left}"),
    ]
    for i, value, error in in_header:
        rows.append((20, f"number-{i}={value}", with_number(VOCABULARY, i, value), error))
    no_c = "byte 0x63 has no token in v.bin"
    return [
        *(of_file("v.bin", *row) for row in rows),
        Case(25, "v.bin-no-such-byte", no_c, {**GOOD, "x.txt": b"abc"}, PREPARE),
    ]


# ---- data prepare -----------------------------------------------------------------------------


def _preparing() -> list[Case]:
    def occupied(folder: Path) -> None:
        (folder / "d").mkdir()
        (folder / "d" / "train.bin").write_bytes(b"")

    def bad(row: int, name: str, error: str, code: int = 1, **words: str) -> Case:
        """PREPARE with some of its words replaced."""
        argv = tuple(words.get(str(word).replace(".", "_"), word) for word in PREPARE)
        return Case(row, f"data-{name}", error, GOOD, argv, code)

    there = "already exists: --force replaces it"
    none_left = "of them for validation: none left for training (--val-tokens N takes fewer)"
    missing = "no such file or directory"
    return [
        Case(65, "data-out-is-there", f"d: {there}", GOOD, PREPARE, make=occupied),
        bad(65, "out-is-a-file", "x.txt: is no folder: choose a new folder", d="x.txt"),
        bad(65, "out-nowhere", f"no/d: {missing}", d="no/d"),
        bad(65, "out-empty", f"'': {missing}", d=""),
        bad(19, "text-missing", f"no.txt: {missing}", x_txt="no.txt"),
        bad(19, "text-is-a-folder", ".: is a folder, expected a regular file", x_txt="."),
        Case(
            33,
            "data-far-too-little",
            f"8 tokens in total, 32768 {none_left}",
            GOOD,
            PREPARE[:-2],
            code=2,
        ),
        Case(
            33,
            "data-too-little",
            f"8 tokens in total, 8 {none_left}",
            GOOD,
            (*PREPARE[:-1], "8"),
            code=2,
        ),
        Case(
            61,
            "data-val-tokens",
            f"a shard has 1 to {INT_MAX} tokens",
            GOOD,
            (*PREPARE[:-1], str(2**31)),
            code=2,
        ),
    ]


LLMC_FILES = [*_checkpoints(), *_evaluation_files(), *_vocabularies(), *_preparing()]

# ---- token shards, which the loader reads -----------------------------------------------------

WIDE = header(20240801, 7, 3) + struct.pack("<3I", 1, 2**31, 3)  # Llama 3's ids, of 32 bits
LLAMA_1 = with_number(with_number(SHARD, 0, 20240801), 1, 1)
HIGH = with_bytes(SHARD, 1024 + 2 * 17, struct.pack("<H", 300))


def _count(value: int, needed: int) -> tuple[str, bytes, None, str]:
    error = f"count = {value} (byte 8): needs {needed} bytes, the file has 1104"
    return f"count{value}", with_number(SHARD, 2, value), None, error


NO_HEADER = (
    "if these are ids without a header, as nanoGPT and llama2.c store them: "
    "write shards from the text with pyllm2 data prepare"
)
# name, bytes, size of the vocabulary, message
SHARDS: list[tuple[str, bytes, int | None, str]] = [
    ("empty", b"", None, "0 bytes: header needs 1024"),
    ("header-cut", SHARD[:1023], None, "1023 bytes: header needs 1024"),
    (
        "magic",
        with_number(SHARD, 0, 5),
        None,
        f"magic = 5 (byte 0): a token shard has 20240520 or 20240801; {NO_HEADER}",
    ),
    ("no-header", SHARD[1024:], None, f"80 bytes: header needs 1024; {NO_HEADER}"),
    (
        "no-long-header",
        b"\x50\xc4" + SHARD[1024:] * 20,
        None,
        f"magic = 50256 (byte 0): a token shard has 20240520 or 20240801; {NO_HEADER}",
    ),
    ("checkpoint", GPT2, None, "looks like an llm.c GPT-2 checkpoint"),
    ("version", with_number(SHARD, 1, 7), None, "version = 7 (byte 4): 1 is supported"),
    ("llama-version", LLAMA_1, None, "version = 1 (byte 4): 7 is supported"),
    *(
        (f"count{n}", with_number(SHARD, 2, n), None, f"count = {n} (byte 8): must be at least 1")
        for n in (0, -1, INT_MIN)
    ),
    *(_count(n, 1024 + 2 * n) for n in (41, 39, INT_MAX)),
    ("odd", SHARD + b"\0", None, "count = 40 (byte 8): needs 1104 bytes, the file has 1105"),
    ("token", HIGH, 300, "token 300 at index 17: vocabulary is 300"),
    ("token-of-32-bits", WIDE, None, f"token {2**31} at index 1: vocabulary is {2**31}"),
    ("first-of-many", SHARD, 30, "token 30 at index 30: vocabulary is 30"),
]
