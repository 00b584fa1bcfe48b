"""Rows 1 to 13: checkpoints whose header or size is wrong."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping

from ..cli.tiny import SHAPE, checkpoint, quantized
from .case import Case, of_model

FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
INT_MIN, INT_MAX = -(2**31), 2**31 - 1
SIZE = len(checkpoint())


def byte_of(name: str, version: int = 0) -> int:
    """Where a field stands."""
    return 4 * FIELDS.index(name) + (8 if version else 0)


def patched(version: int = 0, shared: bool = True, **values: int) -> bytes:
    """A good file whose header says something else."""
    data = bytearray(checkpoint(version, shared))
    for name, value in values.items():
        struct.pack_into("<i", data, byte_of(name, version), value)
    return bytes(data)


def v0_sizes(shape: Mapping[str, int]) -> dict[str, int]:
    """Bytes of each part of a v0 file with a shared classifier (spec/llama2.md, 3.1)."""
    C, F, L, NH, NKV, V, S = (shape[name] for name in FIELDS)
    hs = C // NH
    KV = NKV * hs
    floats = {
        "token_embedding": V * C, "attention_norm": L * C, "wq": L * C * C, "wk": L * KV * C,
        "wv": L * KV * C, "wo": L * C * C, "ffn_norm": L * C, "w1": L * F * C, "w2": L * C * F,
        "w3": L * F * C, "final_norm": C, "rope_cos": S * hs // 2, "rope_sin": S * hs // 2,
    }  # fmt: skip
    return {"header": 28, **{name: 4 * n for name, n in floats.items()}}


def too_short(found: int, shape: Mapping[str, int]) -> str:
    """The message for a file of `found` bytes that should hold a model of `shape`."""
    end, where = 0, ""
    for name, size in v0_sizes(shape).items():
        end += size
        if end > found and not where:
            where = name
    return (
        f"{found} bytes, but its header needs {end} ({end - found} missing, from {where} on): "
        "download incomplete?"
    )


def _lengths() -> list[Case]:
    data, with_magic = checkpoint(), checkpoint(1)
    cases = [
        of_model(1, "empty", b"", "0 bytes: header needs 28"),
        of_model(1, "header-cut", data[:20], "20 bytes: header needs 28, vocab_size is missing"),
        of_model(1, "one-byte", data[:1], "1 bytes: header needs 28, dim is missing"),
        of_model(1, "v1-header-cut", with_magic[:100], "100 bytes: header needs 256"),
        of_model(3, "v1-trailing-byte", with_magic + b"\0",
                 f"1 bytes after the last tensor (which ends at byte {len(with_magic)}): "
                 "not a file of this shape", run=False),
        of_model(3, "trailing-bytes", data + b"1234",
                 f"4 bytes after the last tensor (which ends at byte {SIZE}): "
                 "not a file of this shape", run=False),
    ]  # fmt: skip
    for cut in (28, 29, 1000, SIZE // 2, SIZE - 1):
        # `run` does not mind RoPE tables that are cut, as the original
        of_weights = cut < SIZE - v0_sizes(SHAPE)["rope_cos"] * 2
        found = too_short(cut, SHAPE)
        cases.append(of_model(2, f"cut-at-{cut}", data[:cut], found, run=of_weights))
    return cases


def _header(order: str, version: int) -> bytes:
    """A header with magic and, behind it, nothing but zeros."""
    head = struct.pack(f"{order}Ii7i", 0x616B3432, version, *SHAPE.values())
    return head.ljust(4000, b"\0")


def _magic() -> list[Case]:
    with_magic = checkpoint(1)
    cases = [
        of_model(6, "big-endian", _header(">", 1),
                 "looks like a big-endian llama2.c checkpoint (magic 32346b61), not supported"),
    ]  # fmt: skip
    for version in (0, 3, -1, INT_MIN):
        data = with_magic[:4] + struct.pack("<i", version) + with_magic[8:]
        error = f"version = {version} (byte 4): 1 and 2 are supported"
        cases.append(of_model(5, f"version{version}", data, error))
    for flag in (2, 7, 255):
        data = with_magic[:36] + bytes([flag]) + with_magic[37:]
        error = f"shared_classifier = {flag} (byte 36): must be 0 or 1"
        cases.append(of_model(16, f"shared-flag-{flag}", data, error))
    return cases


def _int8() -> list[Case]:
    """Version 2: group sizes that cannot be, scales that are none, other lengths."""
    data = quantized()
    cases = [
        of_model(1, "v2-header-cut", data[:41], "41 bytes: header needs 256"),
        of_model(3, "v2-trailing-byte", data + b"\0",
                 f"1 bytes after the last tensor (which ends at byte {len(data)}): "
                 "not a file of this shape", run=False),
        of_model(2, "v2-cut", data[:-1],
                 f"{len(data) - 1} bytes, but its header needs {len(data)} "
                 "(1 missing, from w3 on): download incomplete?"),
    ]  # fmt: skip
    for size in (0, -1, INT_MIN, 7, 16, INT_MAX):
        bad = data[:37] + struct.pack("<i", size) + data[41:]
        expected = "must be at least 1" if size < 1 else f"must divide dim = {SHAPE['dim']}"
        expected = "must be at most 131072" if size == INT_MAX else expected
        error = f"group_size = {size} (byte 37): {expected}"
        cases.append(of_model(14, f"group-size-{size}", bad, error))
    C, L, V = (SHAPE[name] for name in ("dim", "n_layers", "vocab_size"))
    first_scale = 256 + 4 * (2 * L * C + C) + V * C
    for scale in (math.nan, math.inf, -math.inf):
        bad = data[:first_scale] + struct.pack("<f", scale) + data[first_scale + 4 :]
        error = f"token_embedding: layer 0, group 0: scale = {scale}: must be finite"
        cases.append(of_model(15, f"scale-{scale}", bad, error))
    cases.append(
        of_model(16, "v2-shared-flag", data[:36] + b"\2" + data[37:],
                 "shared_classifier = 2 (byte 36): must be 0 or 1")
    )  # fmt: skip
    return cases


def _fields() -> list[Case]:
    """Each field 0, negative, smallest and largest, in both versions."""
    cases = []
    for version in (0, 1):
        for name in FIELDS:
            for value in (0, -1, INT_MIN):
                if version == 0 and name == "vocab_size" and value < 0:
                    continue  # there the sign means something else: below
                error = f"{name} = {value} (byte {byte_of(name, version)}): must be at least 1"
                row = 7 if value == 0 and "heads" in name else 8
                data = patched(version, **{name: value})
                cases.append(of_model(row, f"v{version}-{name}{value}", data, error))
    exceeds = "(byte 20): magnitude exceeds the file"
    for value in (INT_MIN, INT_MIN + 1, INT_MAX, -(2**24) - 1):
        error = f"vocab_size = {value} {exceeds}"
        cases.append(of_model(9, f"vocab_size{value}", patched(vocab_size=value), error))
    for name in ("hidden_dim", "n_layers", "seq_len"):
        error = too_short(SIZE, {**SHAPE, name: INT_MAX})
        data = patched(**{name: INT_MAX})
        cases.append(of_model(10, f"{name}-largest", data, error, run=name != "seq_len"))
    return cases


def _products() -> list[Case]:
    """Sizes that no 32-bit, or 64-bit, number holds."""
    # 2³⁰ layers more: in 32 bits the size comes out as what the file has
    wraps = {**SHAPE, "n_layers": SHAPE["n_layers"] + 2**30}
    assert (sum(v0_sizes(wraps).values()) - SIZE) % 2**32 == 0
    huge = {**SHAPE, "dim": 2**30, "hidden_dim": 2**30, "n_layers": 2**30}
    assert math.prod((2**30, 2**30, 2**30)) > 2**64
    return [
        of_model(10, "wraps-32-bits", patched(n_layers=wraps["n_layers"]), too_short(SIZE, wraps)),
        of_model(10, "beyond-64-bits", patched(dim=2**30, hidden_dim=2**30, n_layers=2**30),
                 too_short(SIZE, huge)),
    ]  # fmt: skip


def _relations() -> list[Case]:
    rope = "RoPE needs an even size"
    return [
        of_model(11, "dim-by-3-heads", patched(n_heads=3, n_kv_heads=1),
                 "dim = 8 (byte 0): must be a multiple of n_heads = 3"),
        of_model(11, "dim-largest", patched(dim=INT_MAX),
                 f"dim = {INT_MAX} (byte 0): must be a multiple of n_heads = 4"),
        of_model(11, "n_heads-largest", patched(n_heads=INT_MAX),
                 f"dim = 8 (byte 0): must be a multiple of n_heads = {INT_MAX}"),
        of_model(11, "v1-dim-by-3-heads", patched(1, n_heads=3, n_kv_heads=1),
                 "dim = 8 (byte 8): must be a multiple of n_heads = 3"),
        of_model(12, "more-kv-heads", patched(n_heads=2, n_kv_heads=4),
                 "n_kv_heads = 4 (byte 16): must divide n_heads = 2"),
        of_model(12, "kv-heads-no-divisor", patched(n_kv_heads=3),
                 "n_kv_heads = 3 (byte 16): must divide n_heads = 4"),
        of_model(12, "kv-heads-largest", patched(n_kv_heads=INT_MAX),
                 f"n_kv_heads = {INT_MAX} (byte 16): must divide n_heads = 4"),
        of_model(13, "head-size-3", patched(dim=12),
                 f"dim = 12 (byte 0): gives head size 3 with n_heads = 4: {rope}"),
        of_model(13, "head-size-1", patched(n_heads=8, n_kv_heads=8),
                 f"dim = 8 (byte 0): gives head size 1 with n_heads = 8: {rope}"),
    ]  # fmt: skip


MODEL_FILES = [*_lengths(), *_magic(), *_int8(), *_fields(), *_products(), *_relations()]
