"""Run csrc/train_gpt2.c, built with sanitizers, on invalid and mutated files.

    python tools/fuzz_train_gpt2.py --cases 500 --seed 1

First a table of invalid files, then random mutations of a small valid model, tokenizer and shards,
with random flags. `fuzzing.py` defines the good outcomes and counts them.
"""

import random
import struct
import sys

import numpy as np
from fuzzing import Fuzzer, mutate, options_of, put

MODEL, TOKENIZER, TOKENS = 20240326, 20240328, 20240520
FIELDS = ("max_seq_len", "vocab_size", "num_layers", "num_heads", "channels", "padded_vocab_size")
FILES = {"-e": "m.bin", "-z": "t.bin", "-i": "train.bin", "-j": "val.bin"}
EDGES = (0, 1, 2, 3, 7, 255, 2**16, 2**28, 2**31 - 1, -1, -(2**31))


# ---- small valid files ----------------------------------------------------------------------


def header(*numbers: int) -> bytes:
    """256 int32 numbers: those given, then zeros."""
    return struct.pack(f"<{len(numbers)}i", *numbers).ljust(1024, b"\0")


def model(shape: tuple[int, ...], rng: np.random.Generator) -> bytes:
    """A random checkpoint; shape as in FIELDS."""
    S, _, L, _, C, Vp = shape
    n = (Vp + S) * C + L * (12 * C * C + 13 * C) + 2 * C
    return header(MODEL, 3, *shape) + rng.normal(0, 0.3, n).astype("<f4").tobytes()


def tokenizer(n: int) -> bytes:
    """Single bytes, pairs, and one text with a NUL."""
    texts = [bytes([i]) if i % 3 else b"%02d" % i for i in range(n - 1)] + [b"a\0b"]
    records = b"".join(bytes([len(text)]) + text for text in texts)
    return header(TOKENIZER, 2, n, n - 1) + records


def shard(n: int, vocab_size: int, rng: np.random.Generator) -> bytes:
    tokens = rng.integers(0, vocab_size, n).astype("<u2")
    return header(TOKENS, 1, n) + tokens.tobytes()


# ---- the table of invalid files --------------------------------------------------------------


def invalid(good: dict[str, bytes]) -> dict[str, tuple[dict[str, bytes], bool]]:
    """name -> replaced files, and whether they must be refused."""
    table: dict[str, tuple[dict[str, bytes], bool]] = {"valid": ({}, False)}
    for path, content in good.items():
        for n in (0, 3, 4, 1023, 1024, len(content) - 1):
            table[f"{path}: {n} bytes"] = ({path: content[:n]}, True)
        table[f"{path}: more bytes"] = ({path: content + b"xyz"}, True)
        table[f"{path}: all 0x80"] = ({path: content[:1024] + b"\x80" * 3000}, True)
        for i in (0, 1, 2):
            for value in EDGES:
                changed = put(content, 4 * i, value)
                table[f"{path}: number {i} = {value}"] = ({path: changed}, changed != content)
    for i, field in enumerate(FIELDS):
        for value in EDGES:
            changed = put(good["m.bin"], 8 + 4 * i, value)
            fits = changed == good["m.bin"] or (field, value) == ("num_heads", 1)
            table[f"{field} = {value}"] = ({"m.bin": changed}, not fits)
    last = len(good["m.bin"]) - 4
    for value in (0x7FC00000, 0x7F800000):
        table[f"last float {value:x}"] = ({"m.bin": put(good["m.bin"], last, value)}, True)
    for value in EDGES:
        table[f"end of text {value}"] = (
            {"t.bin": put(good["t.bin"], 12, value)},
            not 0 <= value < 20,
        )
    return table


# ---- flags ----------------------------------------------------------------------------------


def random_flags(rng: random.Random) -> list[str | bytes]:
    """Flags with few steps."""
    flags: list[str | bytes] = ["-x", rng.choice(["0", "1", "3", "22"])]
    for flag, values in (
        ("-b", ["1", "2", "3", "5", "0", "2147483647", "x"]),
        ("-t", ["1", "2", "6", "8", "9", "0", "2147483647", "-1"]),
        ("-l", ["0", "1e-4", "0.1", "1e10", "3e38", "nan", "-0", ".5"]),
        ("-o", ["out.bin", "none/out.bin", ".", ""]),
        ("-i", ["*.bin", "tr?in.bin", "[", "none", "."]),
        ("-z", ["none", "m.bin"]),
    ):
        if rng.random() < 0.25:
            flags += [flag, rng.choice(values)]
    if rng.random() < 0.05:
        flags += rng.choice([["-q", "1"], ["-b"], ["b", "1"], ["", ""]])
    return flags


def main() -> int:
    """Build, run the table, run the mutations, report."""
    options = options_of(__doc__ or "")
    fuzzer = Fuzzer("train_gpt2", options)
    draw = np.random.default_rng(options.seed)
    good = {
        "m.bin": model((8, 20, 2, 2, 8, 32), draw),
        "t.bin": tokenizer(20),
        "train.bin": shard(90, 20, draw),
        "val.bin": shard(40, 20, draw),
    }
    named: list[str | bytes] = [part for pair in FILES.items() for part in pair]
    shape: list[str | bytes] = ["-b", "2", "-t", "6"]
    for name, (changed, refused) in invalid(good).items():
        wanted = "refusal" if refused else "clean run"
        fuzzer.case(name, good | changed, [*named, *shape, "-x", "21"], wanted)

    rng = random.Random(options.seed)
    for i in range(options.cases):
        files = dict(good)
        for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
            path = rng.choice(list(files))
            files[path] = mutate(files[path], rng, 64)
        fuzzer.case(f"mutation {i}", files, [*named, *shape, *random_flags(rng)], "")
    return fuzzer.report()


if __name__ == "__main__":
    sys.exit(main())
