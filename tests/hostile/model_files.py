"""Rows 1 to 16: Llama checkpoints whose header or size is wrong."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping

from tests.hostile.case import Case, of_model
from tests.support.llama2_files import SHAPE, checkpoint, quantized

FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
INT_MIN, INT_MAX = -(2**31), 2**31 - 1
SIZE = len(checkpoint())


def byte_of(name: str, version: int = 0) -> int:
    """The offset of a field in the header."""
    return 4 * FIELDS.index(name) + (8 if version else 0)


def patched(version: int = 0, shared: bool = True, **values: int) -> bytes:
    """A valid file with other values in its header."""
    data = bytearray(checkpoint(version, shared))
    for name, value in values.items():
        struct.pack_into("<i", data, byte_of(name, version), value)
    return bytes(data)


def v0_sizes(shape: Mapping[str, int]) -> dict[str, int]:
    """Bytes of each part of a v0 file with a shared classifier."""
    C, F, L, NH, NKV, V, S = (shape[name] for name in FIELDS)
    hs = C // NH
    KV = NKV * hs
    floats = {
        "token_embedding": V * C,
        "attention_norm": L * C,
        "wq": L * C * C,
        "wk": L * KV * C,
        "wv": L * KV * C,
        "wo": L * C * C,
        "ffn_norm": L * C,
        "w1": L * F * C,
        "w2": L * C * F,
        "w3": L * F * C,
        "final_norm": C,
        "rope_cos": S * hs // 2,
        "rope_sin": S * hs // 2,
    }
    return {"header": 28, **{name: 4 * n for name, n in floats.items()}}


# ---- rows 1 to 3: length ----------------------------------------------------------------------


def too_short(found: int, shape: Mapping[str, int]) -> str:
    """The message for a v0 file of `found` bytes with the header of `shape`."""
    end, where = 0, ""
    for name, size in v0_sizes(shape).items():
        end += size
        if end > found and not where:
            where = name
    return (
        f"{found} bytes, but its header needs {end} ({end - found} missing, from {where} on): "
        "download incomplete?"
    )


def too_long(extra: int, end: int) -> str:
    """The message for a file with `extra` bytes after byte `end`."""
    where = f"after the last tensor (which ends at byte {end})"
    return f"{extra} bytes {where}: not a file of this shape"


def _lengths() -> list[Case]:
    v0, v1 = checkpoint(0), checkpoint(1)
    cases = [
        of_model(1, "empty", b"", "0 bytes: header needs 28"),
        of_model(1, "header-cut", v0[:20], "20 bytes: header needs 28, vocab_size is missing"),
        of_model(1, "one-byte", v0[:1], "1 bytes: header needs 28, dim is missing"),
        of_model(1, "v1-header-cut", v1[:100], "100 bytes: header needs 256"),
        of_model(3, "v1-trailing-byte", v1 + b"\0", too_long(1, len(v1)), run=False),
        of_model(3, "trailing-bytes", v0 + b"1234", too_long(4, SIZE), run=False),
    ]
    for cut in (28, 29, 1000, SIZE // 2, SIZE - 1):
        # `run`, like the original, accepts a cut in the RoPE tables
        in_weights = cut < SIZE - v0_sizes(SHAPE)["rope_cos"] * 2
        error = too_short(cut, SHAPE)
        cases.append(of_model(2, f"cut-at-{cut}", v0[:cut], error, run=in_weights))
    return cases


# ---- rows 5, 6 and 16: magic number, version, flag --------------------------------------------


def _header(order: str, version: int) -> bytes:
    """A header with a magic number, then zeros."""
    head = struct.pack(f"{order}Ii7i", 0x616B3432, version, *SHAPE.values())
    return head.ljust(4000, b"\0")


def _magic() -> list[Case]:
    v1 = checkpoint(1)
    error = "looks like a big-endian llama2.c checkpoint (magic 32346b61), not supported"
    cases = [of_model(6, "big-endian", _header(">", 1), error)]
    for version in (0, 3, -1, INT_MIN):
        data = v1[:4] + struct.pack("<i", version) + v1[8:]
        error = f"version = {version} (byte 4): 1 and 2 are supported"
        cases.append(of_model(5, f"version{version}", data, error))
    for flag in (2, 7, 255):
        data = v1[:36] + bytes([flag]) + v1[37:]
        error = f"shared_classifier = {flag} (byte 36): must be 0 or 1"
        cases.append(of_model(16, f"shared-flag-{flag}", data, error))
    return cases


# ---- int8 -------------------------------------------------------------------------------------


def _int8() -> list[Case]:
    v2 = quantized()
    size = len(v2)
    cut = (
        f"{size - 1} bytes, but its header needs {size} (1 missing, from w3 on): "
        "download incomplete?"
    )
    flag = "shared_classifier = 2 (byte 36): must be 0 or 1"
    cases = [
        of_model(1, "v2-header-cut", v2[:41], "41 bytes: header needs 256"),
        of_model(3, "v2-trailing-byte", v2 + b"\0", too_long(1, size), run=False),
        of_model(2, "v2-cut", v2[:-1], cut),
        of_model(16, "v2-shared-flag", v2[:36] + b"\2" + v2[37:], flag),
    ]
    for group in (0, -1, INT_MIN, 7, 16, INT_MAX):
        bad = v2[:37] + struct.pack("<i", group) + v2[41:]
        expected = "must be at least 1" if group < 1 else f"must divide dim = {SHAPE['dim']}"
        expected = "must be at most 131072" if group == INT_MAX else expected
        error = f"group_size = {group} (byte 37): {expected}"
        cases.append(of_model(14, f"group-size-{group}", bad, error))
    C, L, V = (SHAPE[name] for name in ("dim", "n_layers", "vocab_size"))
    first_scale = 256 + 4 * (2 * L * C + C) + V * C
    for scale in (math.nan, math.inf, -math.inf):
        bad = v2[:first_scale] + struct.pack("<f", scale) + v2[first_scale + 4 :]
        error = f"token_embedding: layer 0, group 0: scale = {scale}: must be finite"
        cases.append(of_model(15, f"scale-{scale}", bad, error))
    return cases


# ---- rows 7 to 13: fields ---------------------------------------------------------------------


def _fields() -> list[Case]:
    """Each field 0, negative, smallest and largest, in both versions."""
    cases = []
    for version in (0, 1):
        for name in FIELDS:
            for value in (0, -1, INT_MIN):
                if version == 0 and name == "vocab_size" and value < 0:
                    continue  # there the sign has a meaning: below
                error = f"{name} = {value} (byte {byte_of(name, version)}): must be at least 1"
                row = 7 if value == 0 and "heads" in name else 8
                data = patched(version, **{name: value})
                cases.append(of_model(row, f"v{version}-{name}{value}", data, error))
    for value in (INT_MIN, INT_MIN + 1, INT_MAX, -(2**24) - 1):
        error = f"vocab_size = {value} (byte 20): magnitude exceeds the file"
        cases.append(of_model(9, f"vocab_size{value}", patched(vocab_size=value), error))
    for name in ("hidden_dim", "n_layers", "seq_len"):
        error = too_short(SIZE, {**SHAPE, name: INT_MAX})
        data = patched(**{name: INT_MAX})
        cases.append(of_model(10, f"{name}-largest", data, error, run=name != "seq_len"))
    return cases


def _products() -> list[Case]:
    """Sizes that overflow 32 and 64 bits."""
    # With 2^30 more layers the size modulo 2^32 is that of the file.
    layers = SHAPE["n_layers"] + 2**30
    wraps = too_short(SIZE, {**SHAPE, "n_layers": layers})
    assert (sum(v0_sizes({**SHAPE, "n_layers": layers}).values()) - SIZE) % 2**32 == 0
    huge = dict.fromkeys(("dim", "hidden_dim", "n_layers"), 2**30)
    assert math.prod(huge.values()) > 2**64
    beyond = too_short(SIZE, {**SHAPE, **huge})
    return [
        of_model(10, "wraps-32-bits", patched(n_layers=layers), wraps),
        of_model(10, "beyond-64-bits", patched(**huge), beyond),
    ]


# row, version, changed fields, message
RELATIONS: list[tuple[int, int, dict[str, int], str]] = [
    (11, 0, {"n_heads": 3, "n_kv_heads": 1}, "dim = 8 (byte 0): must be a multiple of n_heads = 3"),
    (11, 0, {"dim": INT_MAX}, f"dim = {INT_MAX} (byte 0): must be a multiple of n_heads = 4"),
    (11, 0, {"n_heads": INT_MAX}, f"dim = 8 (byte 0): must be a multiple of n_heads = {INT_MAX}"),
    (11, 1, {"n_heads": 3, "n_kv_heads": 1}, "dim = 8 (byte 8): must be a multiple of n_heads = 3"),
    (12, 0, {"n_heads": 2, "n_kv_heads": 4}, "n_kv_heads = 4 (byte 16): must divide n_heads = 2"),
    (12, 0, {"n_kv_heads": 3}, "n_kv_heads = 3 (byte 16): must divide n_heads = 4"),
    (12, 0, {"n_kv_heads": INT_MAX}, f"n_kv_heads = {INT_MAX} (byte 16): must divide n_heads = 4"),
    (13, 0, {"dim": 12}, "dim = 12 (byte 0): gives head size 3 with n_heads = 4"),
    (
        13,
        0,
        {"n_heads": 8, "n_kv_heads": 4},
        "dim = 8 (byte 0): gives head size 1 with n_heads = 8",
    ),
]


def _relations() -> list[Case]:
    cases = []
    for row, version, changes, error in RELATIONS:
        name = f"v{version}-" + "-".join(f"{field}={value}" for field, value in changes.items())
        error += ": RoPE needs an even size" if row == 13 else ""
        cases.append(of_model(row, name, patched(version, **changes), error))
    return cases


MODEL_FILES = [*_lengths(), *_magic(), *_int8(), *_fields(), *_products(), *_relations()]
