"""Rows 27 to 33: llm.c's checkpoints, evaluation files, tokenizers and token shards."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pyllm2.formats.evaluation import Example, write_examples
from pyllm2.formats.llmc_vocabulary import write_vocabulary
from pyllm2.formats.tokens import write_shard
from pyllm2.gpt2.config import GPT2Config
from pyllm2.gpt2.files import save_parameters
from pyllm2.gpt2.initial import initial_parameters

from ..cli.program import Argument
from .case import Case
from .other_files import HTML

CONFIG = GPT2Config(
    max_seq_len=9, vocab_size=20, num_layers=2, num_heads=2, channels=4, padded_vocab_size=24
)
FIELDS = ("max_seq_len", "vocab_size", "num_layers", "num_heads", "channels", "padded_vocab_size")
INT_MIN, INT_MAX = -(2**31), 2**31 - 1
EXAMPLES = [
    Example(1, [1, 2, 3], [[4], [5, 6], [7, 8, 9], [10]]),
    Example(3, [11, 12], [[13, 14], [15], [16], [17, 18]]),
]
EVAL: tuple[Argument, ...] = (
    "eval", "hellaswag", "g.bin", "--data", "e.bin", "--backend", "numpy",
)  # fmt: skip
PREPARE: tuple[Argument, ...] = (
    "data", "prepare", "x.txt", "--tokenizer", "v.bin", "--out", "d", "--val-tokens", "2",
)  # fmt: skip


def written(write: Callable[[Path], None]) -> bytes:
    """The bytes that a writer writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "f")
        write(path)
        return path.read_bytes()


GPT2 = written(lambda path: save_parameters(path, CONFIG, initial_parameters(CONFIG, seed=1)))
EVALUATION = written(lambda path: write_examples(path, EXAMPLES))
VOCABULARY = written(lambda path: write_vocabulary(path, [b"a", b"b", b"\n", b"<|eot|>"], 3))
SHARD = written(lambda path: write_shard(path, np.arange(40)))
GOOD = {"g.bin": GPT2, "e.bin": EVALUATION, "v.bin": VOCABULARY, "x.txt": b"ab\n\nba"}


def put(data: bytes, byte: int, value: int, form: str = "<i") -> bytes:
    """The same bytes with another number there."""
    new = struct.pack(form, value)
    return data[:byte] + new + data[byte + len(new) :]


def of_gpt2(row: int, name: str, data: bytes, error: str) -> Case:
    """A bad g.bin."""
    return Case(row, f"gpt2-{name}", f"g.bin: {error}", {**GOOD, "g.bin": data}, EVAL)


def of_examples(row: int, name: str, data: bytes, error: str) -> Case:
    """A bad e.bin."""
    return Case(row, f"eval-{name}", f"e.bin: {error}", {**GOOD, "e.bin": data}, EVAL)


def of_vocabulary(row: int, name: str, data: bytes, error: str) -> Case:
    """A bad v.bin."""
    return Case(row, f"ids-{name}", f"v.bin: {error}", {**GOOD, "v.bin": data}, PREPARE)


def byte_of(name: str) -> int:
    return 8 + 4 * FIELDS.index(name)


def _sizes(config: dict[str, int]) -> dict[str, int]:
    """Bytes of each part of a checkpoint (spec/llmc.md, 1.1)."""
    S, _, L, _, C, Vp = (config[name] for name in FIELDS)
    floats = {
        "wte": Vp * C, "wpe": S * C, "ln1w": L * C, "ln1b": L * C, "qkvw": L * 3 * C * C,
        "qkvb": L * 3 * C, "attprojw": L * C * C, "attprojb": L * C, "ln2w": L * C, "ln2b": L * C,
        "fcw": L * 4 * C * C, "fcb": L * 4 * C, "fcprojw": L * C * 4 * C, "fcprojb": L * C,
        "lnfw": C, "lnfb": C,
    }  # fmt: skip
    return {"header": 1024, **{name: 4 * n for name, n in floats.items()}}


def too_short(found: int, **changes: int) -> str:
    """What is said of a file of `found` bytes whose header is CONFIG's, but for the changes."""
    end, where = 0, ""
    for name, size in _sizes({name: getattr(CONFIG, name) for name in FIELDS} | changes).items():
        end += size
        if end > found and not where:
            where = name
    return (
        f"{found} bytes, but its header needs {end} ({end - found} missing, from {where} on): "
        "download incomplete?"
    )


def _checkpoints() -> list[Case]:
    size = len(GPT2)
    cases = [
        of_gpt2(27, "empty", b"", "0 bytes: header needs 1024"),
        of_gpt2(27, "header-cut", GPT2[:1023], "1023 bytes: header needs 1024"),
        of_gpt2(27, "magic", put(GPT2, 0, 20240325),
                "magic = 20240325 (byte 0): a GPT-2 checkpoint has 20240326"),
        of_gpt2(27, "html", HTML, "looks like a web page: was the download link right?"),
        of_gpt2(27, "shard", SHARD,
                "looks like an llm.c token shard (GPT-2 ids), not a checkpoint"),
        of_gpt2(29, "padded-vocab", put(GPT2, byte_of("padded_vocab_size"), 19),
                "padded_vocab_size = 19 (byte 28): must be at least vocab_size = 20"),
        of_gpt2(29, "heads", put(GPT2, byte_of("num_heads"), 3),
                "channels = 4 (byte 24): must be a multiple of num_heads = 3"),
        of_gpt2(30, "trailing", GPT2 + b"\0",
                f"1 bytes after the last array (which ends at byte {size}): "
                "not a file of this shape"),
        of_gpt2(30, "as-bfloat16", put(GPT2, 4, 5),
                f"{(size - 1024) // 2} bytes after the last array (which ends at byte "
                f"{(size + 1024) // 2}): not a file of this shape"),
        of_gpt2(30, "32-bits", put(GPT2, byte_of("num_layers"), 2 + 2**30),
                too_short(size, num_layers=2 + 2**30)),
        of_gpt2(30, "64-bits", put(put(GPT2, byte_of("channels"), 2**30), 16, 2**30),
                too_short(size, channels=2**30, num_layers=2**30)),
    ]  # fmt: skip
    for version in (0, 1, 4, 6, -1, INT_MIN):
        error = f"version = {version} (byte 4): 3 (float32) and 5 (bfloat16) are supported"
        cases.append(of_gpt2(27, f"version{version}", put(GPT2, 4, version), error))
    for name in FIELDS:
        for value in (0, -1, INT_MIN):
            error = f"{name} = {value} (byte {byte_of(name)}): must be at least 1"
            cases.append(of_gpt2(28, f"{name}{value}", put(GPT2, byte_of(name), value), error))
    for cut in (1024, 1025, 1500, size // 2, size - 1):
        cases.append(of_gpt2(30, f"cut-at-{cut}", GPT2[:cut], too_short(cut)))
    return cases


def _evaluation_files() -> list[Case]:
    first, second = 1024, 1024 + 40
    assert EVALUATION[second : second + 2] == b"\xff\xff"
    at = f"example 0 of 2 (byte {first})"
    numbers = [  # byte of the first example, value, what is said
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
    cases = []
    for byte, value, error in numbers:
        data = put(EVALUATION, first + byte, value, "<H")
        cases.append(of_examples(31, f"{byte}-{value}", data, f"{at}: {error}"))
    no_ids = Example(0, [], [[1], [2], [3], [4]])
    return [
        *cases,
        of_examples(31, "magic", put(EVALUATION, 0, 1),
                    "magic = 1 (byte 0): an evaluation file has 20240522"),
        of_examples(31, "version", put(EVALUATION, 4, 2), "version = 2 (byte 4): 1 is supported"),
        of_examples(31, "none", put(EVALUATION, 8, 0),
                    "examples = 0 (byte 8): expected 1 to 65535"),
        of_examples(31, "many", put(EVALUATION, 8, INT_MAX),
                    f"examples = {INT_MAX} (byte 8): expected 1 to 65535"),
        of_examples(31, "more", put(EVALUATION, 8, 3),
                    f"example 2 of 3 (byte {len(EVALUATION)}): 0 bytes left, it needs 12 at least"),
        of_examples(31, "fewer", put(EVALUATION, 8, 1),
                    f"longest_example = 40 (byte 12): 1 examples in {len(EVALUATION)} bytes"),
        of_examples(31, "longest", put(EVALUATION, 12, -40),
                    f"longest_example = -40 (byte 12): 2 examples in {len(EVALUATION)} bytes"),
        of_examples(31, "odd", EVALUATION[:-1],
                    f"{len(EVALUATION) - 1} bytes: must be an even number"),
        of_examples(31, "trailing", EVALUATION + b"\0\0",
                    f"2 bytes (byte {len(EVALUATION)}) after the last of 2 examples"),
        of_examples(31, "cut", EVALUATION[:-2],
                    f"example 1 of 2 (byte {second}): size = 36: 34 bytes are left"),
        of_examples(31, "no-context", written(lambda path: write_examples(path, [no_ids])),
                    f"{at.replace('of 2', 'of 1')}: part 0 has no ids"),
        of_examples(32, "token", written(lambda p: write_examples(
                        p, [EXAMPLES[0], Example(0, [20], [[1]] * 4)])),
                    "example 1 has token 20: vocabulary is 20"),
        of_examples(33, "long", written(lambda p: write_examples(
                        p, [EXAMPLES[0], Example(0, [1] * 6, [[1, 1, 1], *[[1]] * 3])])),
                    "needs 10 positions, g.bin has 9"),
    ]  # fmt: skip


def _vocabularies() -> list[Case]:
    n = len(VOCABULARY)
    return [
        of_vocabulary(20, "version", put(VOCABULARY, 4, 3),
                      "version = 3 (byte 4): 1 and 2 are supported"),
        of_vocabulary(20, "version-1", put(VOCABULARY, 4, 1),
                      "tokens = 4 (byte 8): version 1 has 50257"),
        of_vocabulary(20, "none", put(VOCABULARY, 8, 0),
                      "tokens = 0 (byte 8): expected 1 to 16777216"),
        of_vocabulary(20, "many", put(VOCABULARY, 8, INT_MAX),
                      f"tokens = {INT_MAX} (byte 8): expected 1 to 16777216"),
        of_vocabulary(20, "more", put(VOCABULARY, 8, 5), f"token 4 of 5 (byte {n}): missing"),
        of_vocabulary(20, "fewer", put(put(VOCABULARY, 8, 3), 12, 2),
                      f"8 bytes (byte {n - 8}) after the last of 3 tokens"),
        of_vocabulary(20, "end-of-text", put(VOCABULARY, 12, 4),
                      "end_of_text = 4 (byte 12): expected 0 to 3"),
        of_vocabulary(20, "negative", put(VOCABULARY, 12, -1),
                      "end_of_text = -1 (byte 12): expected 0 to 3"),
        of_vocabulary(20, "header-cut", VOCABULARY[:1000], "1000 bytes: header needs 1024"),
        of_vocabulary(20, "cut", VOCABULARY[:-1],
                      f"token 3 of 4: length 7 (byte {n - 8}) exceeds the 6 bytes left"),
        of_vocabulary(20, "large", VOCABULARY + bytes(1100),
                      f"{n + 1100} bytes: 4 tokens have at most 2048"),
        of_vocabulary(21, "length-0", put(VOCABULARY, 1024, 0, "B"),
                      "token 0 of 4: length = 0 (byte 1024): at least 1"),
        of_vocabulary(21, "length-255", put(VOCABULARY, 1024, 255, "B"),
                      f"token 0 of 4: length 255 (byte 1024) exceeds the {n - 1025} bytes left"),
        Case(25, "ids-no-such-byte", "byte 0x63 has no token in v.bin",
             {**GOOD, "x.txt": b"abc"}, PREPARE),
    ]  # fmt: skip


def _preparing() -> list[Case]:
    def occupy(folder: Path) -> None:
        (folder / "d").mkdir()
        (folder / "d" / "train.bin").write_bytes(b"")

    def argv(**changes: str) -> tuple[Argument, ...]:
        return tuple(changes.get(word.replace(".", "_"), word) for word in map(str, PREPARE))

    return [
        Case(65, "data-out-is-there", "d: is there already: name a new folder", GOOD, PREPARE,
             make=occupy),
        Case(65, "data-out-is-a-file", "x.txt: is there already: name a new folder", GOOD,
             argv(d="x.txt")),
        Case(65, "data-out-nowhere", "no/d: no such file or directory", GOOD, argv(d="no/d")),
        Case(65, "data-out-empty", "'': no such file or directory", GOOD, argv(d="")),
        Case(19, "data-text-missing", "no.txt: no such file or directory", GOOD,
             argv(x_txt="no.txt")),
        Case(19, "data-text-is-a-folder", ".: is a folder, expected a regular file", GOOD,
             argv(x_txt=".")),
        Case(33, "data-too-little",
             "8 tokens in all: with 8 for validation none are left to train on", GOOD,
             (*PREPARE[:-1], "8"), code=2),
        Case(33, "data-far-too-little",
             "8 tokens in all: with 32768 for validation none are left to train on", GOOD,
             PREPARE[:-2], code=2),
        Case(61, "data-val-tokens", f"a shard has 1 to {INT_MAX} tokens", GOOD,
             (*PREPARE[:-1], str(2**31)), code=2),
    ]  # fmt: skip


LLMC_FILES = [*_checkpoints(), *_evaluation_files(), *_vocabularies(), *_preparing()]

# Shards have no command of their own: (name, bytes, vocabulary, what is said)
SHARDS: list[tuple[str, bytes, int | None, str]] = [
    ("empty", b"", None, "0 bytes: header needs 1024"),
    ("header-cut", SHARD[:1023], None, "1023 bytes: header needs 1024"),
    ("magic", put(SHARD, 0, 5), None,
     "magic = 5 (byte 0): a token shard has 20240520 or 20240801"),
    ("checkpoint", GPT2, None, "looks like an llm.c GPT-2 checkpoint"),
    ("version", put(SHARD, 4, 7), None, "version = 7 (byte 4): 1 is supported"),
    ("llama-version", put(put(SHARD, 0, 20240801), 4, 1), None,
     "version = 1 (byte 4): 7 is supported"),
    *((f"count{n}", put(SHARD, 8, n), None, f"count = {n} (byte 8): must be at least 1")
      for n in (0, -1, INT_MIN)),
    ("count-more", put(SHARD, 8, 41), None,
     "count = 41 (byte 8): needs 1106 bytes, the file has 1104"),
    ("count-less", put(SHARD, 8, 39), None,
     "count = 39 (byte 8): needs 1102 bytes, the file has 1104"),
    ("count-most", put(SHARD, 8, INT_MAX), None,
     f"count = {INT_MAX} (byte 8): needs {1024 + 2 * INT_MAX} bytes, the file has 1104"),
    ("odd", SHARD + b"\0", None, "count = 40 (byte 8): needs 1104 bytes, the file has 1105"),
    ("token", put(SHARD, 1024 + 2 * 17, 300, "<H"), 300,
     "token 300 at index 17: vocabulary is 300"),
    ("token-of-32-bits", written(lambda p: write_shard(p, np.array([1, 2**31, 3]), 4)), None,
     f"token {2**31} at index 1: vocabulary is {2**31}"),
    ("first-of-many", SHARD, 30, "token 30 at index 30: vocabulary is 30"),
]  # fmt: skip
