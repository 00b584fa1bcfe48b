"""Run csrc/run.c, built with sanitizers, on invalid and mutated files, and count the outcomes.

    python tools/fuzz_run.py --cases 500 --seed 1

First a table of invalid files, then random mutations of small valid checkpoints and vocabularies,
with random flags. `fuzzing.py` defines the good outcomes.
"""

import random
import struct
import sys

import numpy as np
from fuzzing import Fuzzer, mutate, options_of, put

FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
MAGIC = 0x616B3432
GROUP = 4


# ---- small valid files ----------------------------------------------------------------------


def checkpoint(
    version: int, shared: bool, rng: np.random.Generator, shape: tuple[int, ...]
) -> bytes:
    """A random checkpoint of the given layout; shape as in FIELDS, group size 4 in v2."""
    C, F, L, NH, NKV, V, S = shape
    KV = C // NH * NKV
    sizes = {"embedding": V * C, "final_norm": C, "rope": S * (C // NH), "classifier": V * C}
    sizes |= dict.fromkeys(("attention_norm", "ffn_norm"), L * C)
    sizes |= dict.fromkeys(("wq", "wo"), L * C * C) | dict.fromkeys(("wk", "wv"), L * KV * C)
    sizes |= dict.fromkeys(("w1", "w2", "w3"), L * F * C)
    order = """embedding attention_norm wq wk wv wo ffn_norm w1 w2 w3
        final_norm rope classifier""".split()
    head = struct.pack("<7i", C, F, L, NH, NKV, V if shared else -V, S)
    if version in (1, 2):
        order = """attention_norm ffn_norm final_norm embedding wq wk wv wo
            w1 w2 w3 classifier""".split()
        head = struct.pack("<Ii7iB", MAGIC, version, *shape, shared)
        head += struct.pack("<i", GROUP) if version == 2 else b""
        head = head.ljust(256, b"\0")
    if shared:
        order.remove("classifier")

    def floats(n: int) -> bytes:
        return rng.normal(0, 0.3, n).astype("<f4").tobytes()

    def int8(n: int) -> bytes:
        """Values and scales of one tensor."""
        scales = rng.uniform(0, 0.01, n // GROUP).astype("<f4")
        return rng.integers(-127, 128, n).astype(np.int8).tobytes() + scales.tobytes()

    def array(name: str) -> bytes:
        if version != 2 or "norm" in name:
            return floats(sizes[name])
        layers = 1 if name in ("embedding", "classifier") else L
        return b"".join(int8(sizes[name] // layers) for _ in range(layers))

    return head + b"".join(array(name) for name in order)


def vocabulary(V: int) -> bytes:
    """Specials, the 256 bytes, and a few pieces that merge."""
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % b for b in range(256))]
    pieces += [b" ", b"a", b"b", b"c", b"ab", b" a", b"bc", b"abc", b" ab", b"ba", b"cc"]
    records = (struct.pack("<fi", -i, len(p)) + p for i, p in enumerate(pieces[:V]))
    return struct.pack("<i", 6) + b"".join(records)


# ---- the table of invalid files --------------------------------------------------------------


def invalid(v0: bytes, v1: bytes, v2: bytes, tok: bytes) -> dict[str, tuple[bytes, bytes, bool]]:
    """name -> model bytes, vocabulary bytes, whether they must be refused."""
    nan = np.full((len(v0) - 28) // 4, np.nan, "<f4").tobytes()
    huge = struct.pack("<7i", 2**31 - 2, *[2**31 - 1] * 2, 1, 1, *[2**31 - 1] * 2)
    end = len(tok)
    table = {
        "valid v0": (v0, tok, False),
        "valid v1": (v1, tok, False),
        "empty model": (b"", tok, True),
        "three bytes": (v0[:3], tok, True),
        "short header": (v0[:20], tok, True),
        "header only": (v0[:28], tok, True),
        "v1 magic only": (v1[:4], tok, True),
        "v1 header only": (v1[:256], tok, True),
        "v1 one byte short": (v1[:-1], tok, True),
        "half": (v0[: len(v0) // 2], tok, True),
        "trailing bytes": (v0 + b"xyz", tok, False),
        "one byte of the tables missing": (v0[:-1], tok, False),
        "version 2": (put(v1, 4, 2), tok, True),
        "version 3": (put(v2, 4, 3), tok, True),
        "version 1 of a v2 file": (put(v2, 4, 1), tok, True),
        "valid v2": (v2, tok, False),
        "v2 header only": (v2[:256], tok, True),
        "v2 one byte short": (v2[:-1], tok, True),
        "v2 without the group size": (v2[:40], tok, True),
        "v2 trailing bytes": (v2 + b"x", tok, False),
        "v2 shared flag 0": (v2[:36] + b"\0" + v2[37:], tok, True),
        "last scale NaN": (put(v2, len(v2) - 4, 0x7FC00000), tok, True),
        "last scale infinite": (put(v2, len(v2) - 4, 0x7F800000), tok, True),
        "all bytes 0x80": (v2[:256] + b"\x80" * (len(v2) - 256), tok, False),
        "all bytes 0xff": (v2[:256] + b"\xff" * (len(v2) - 256), tok, True),
        "version -1": (put(v1, 4, -1), tok, True),
        "big-endian": (v1[3::-1] + v1[4:], tok, True),
        "odd head size": (put(v0, 12, 8), tok, True),
        "heads do not divide": (put(v0, 12, 3), tok, True),
        "too many kv heads": (put(v0, 16, 4), tok, True),
        "shared flag 7": (v1[:36] + b"\7" + v1[37:], tok, True),
        "all NaN": (v0[:28] + nan, tok, True),
        "past 2^64": (huge + v0[28:], tok, True),
        "empty vocabulary": (v0, b"", True),
        "vocabulary of three bytes": (v0, tok[:3], True),
        "vocabulary without records": (v0, tok[:4], True),
        "vocabulary cut": (v0, tok[: end - 1], True),
        "vocabulary trailing": (v0, tok + b"abc", False),
        "length 0": (v0, put(tok, 8, 0), True),
        "length -1": (v0, put(tok, 8, -1), True),
        "length 2^31 - 1": (v0, put(tok, 8, 2**31 - 1), True),
        "NaN score": (v0, put(tok, 4, 0x7FC00000), True),
        "max_token_length 0": (v0, put(tok, 0, 0), False),
        "max_token_length -1": (v0, put(tok, 0, -1), False),
        "html": (b"<!DOCTYPE html>" + bytes(300), tok, True),
    }
    for size in (0, -1, -(2**31), 2**31 - 1, 1, 2, 3, 16):
        table[f"group_size {size}"] = (v2[:37] + struct.pack("<i", size) + v2[41:], tok, True)
    for start, model, layout in ((0, v0, "v0"), (8, v1, "v1"), (8, v2, "v2")):
        for i, field in enumerate(FIELDS):
            for value in (0, -(2**31), 2**31 - 1):
                # A large context is valid: nothing in v1 and v2 grows with it, and in v0 only the
                # unused RoPE tables are missing.
                due = not (field == "seq_len" and value > 0)
                table[f"{layout} {field} = {value}"] = (put(model, start + 4 * i, value), tok, due)
    return table


# ---- flags ---------------------------------------------------------------------------------


def context(model: bytes) -> int:
    """The seq_len that the program reads; 0 if the file is too short."""
    at = 32 if model[:4] == struct.pack("<I", MAGIC) else 24
    return struct.unpack_from("<i", model, at)[0] if len(model) >= at + 4 else 0


def random_flags(rng: random.Random, model: bytes) -> list[str | bytes]:
    """Flags with few steps: -n 0 means the whole context, so only where that is short."""
    steps = ["1", "2", "7", "12", "16", "3.9", "4x"]
    if context(model) <= 64:
        steps += ["0", "-5", "none", "4294967296", "99999999999999999999"]
    prompts = [b"", b" ", b"abc", b"a ab abc cab", b"ab" * 50, b"abc " * 700, b"<s></s><0x0A>"]
    prompts += [b"\xc3\xa9\xf0\x9f\x90\x89", b"\x80" * 9, b"\xff\xfe hello"]
    flags: list[str | bytes] = ["-n", rng.choice(steps)]
    if rng.random() < 0.7:
        odd = ["0", "1", "0.5", "100", "1e-40", "1e300", "inf", "-inf", "nan", "x", "0x1p-3", "-0"]
        flags += ["-t", rng.choice(odd)]
    if rng.random() < 0.7:
        odd = ["0", "1", "0.9", "0.5", "1e-9", "0.999999", "2", "-1", "nan", "inf", "x"]
        flags += ["-p", rng.choice(odd)]
    if rng.random() < 0.8:
        flags += ["-s", rng.choice(["1", "42", "-1", "4294967297", str(2**64), "x", "  7"])]
    if rng.random() < 0.6:
        flags += ["-i", rng.choice(prompts)]
    if rng.random() < 0.3:
        flags += ["-m", rng.choice(["chat", "chat", "chat", "generate", "talk"])]
        if rng.random() < 0.5:
            flags += ["-y", rng.choice(prompts)]
    if rng.random() < 0.05:
        flags += rng.choice([["-q", "1"], ["-n"], ["n", "1"], ["-nn", "1"], ["", ""]])
    return flags


def main() -> int:
    """Build, run the table, run the mutations, report."""
    options = options_of(__doc__ or "")
    fuzzer = Fuzzer("run", options)

    def case(name: str, model: bytes, tok: bytes, flags: list[str | bytes], wanted: str) -> None:
        arguments: list[str | bytes] = ["m.bin", "-z", "t.bin", *flags]
        files = {"m.bin": model, "t.bin": tok}
        fuzzer.case(name, files, arguments, wanted, stdin=b"ab\nabc abc\n" * 3)

    draw = np.random.default_rng(options.seed)
    shape = (8, 12, 2, 2, 1, 270, 16)
    models = [checkpoint(v, s, draw, shape) for v in (0, 1, 2) for s in (True, False)]
    models.append(checkpoint(0, True, draw, (16, 4, 1, 4, 4, 300, 40)))
    models.append(checkpoint(1, True, draw, (4, 6, 1, 2, 1, 4, 20)))
    models.append(checkpoint(2, True, draw, (16, 6, 1, 2, 2, 270, 20)))  # groups straddle rows
    tok = vocabulary(270)
    tok300 = tok + b"".join(struct.pack("<fi", -i, 2) + b"%02d" % i for i in range(30))
    # the last piece, " ", prints nothing after BOS: no read after its end
    tok4 = struct.pack("<i", 6) + b"".join(
        struct.pack("<fi", 0, len(p)) + p for p in (b"<unk>", b"\n<s>\n", b"\n</s>\n", b" ")
    )
    for name, (model, pieces, refused) in invalid(models[0], models[2], models[4], tok).items():
        wanted = "refusal" if refused else "clean run"
        case(name, model, pieces, ["-n", "5", "-s", "1", "-i", "abc"], wanted)

    rng = random.Random(options.seed)
    for i in range(options.cases):
        which = rng.randrange(len(models))
        model, pieces = models[which], {6: tok300, 7: tok4}.get(which, tok)
        target = rng.choice(["model", "model", "vocabulary", "vocabulary", "both", "none"])
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            if target in ("model", "both"):
                model = mutate(model, rng, 64)
            if target in ("vocabulary", "both"):
                pieces = mutate(pieces, rng, 64)
        case(f"mutation {i}", model, pieces, random_flags(rng, model), "")
    return fuzzer.report()


if __name__ == "__main__":
    sys.exit(main())
