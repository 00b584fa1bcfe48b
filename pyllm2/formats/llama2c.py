"""llama2.c's checkpoints: v0 (legacy, no magic), v1 (float32, a real header), v2 (int8).

v0 is seven int32 — dim, hidden_dim, n_layers, n_heads, n_kv_heads, ±vocab_size, seq_len — and
float32 arrays without a gap. A negative vocab_size says that the classifier has its own matrix
at the end of the file. The two RoPE tables before it are dead weight: skipped when reading.

v1 is 256 bytes of header (magic "24ka", version, the seven int32 with a positive vocab_size, one
byte: 1 if the classifier is shared) and the arrays in another order, without RoPE tables.

v2 has v1's header with the group size at byte 37; its body is in `llama2c_q8`.

Little-endian throughout. Tensors come back as views of one read-only buffer.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import FileError, FormatError
from pyllm2.formats.kinds import kind_of
from pyllm2.formats.reader import Source
from pyllm2.formats.writer import atomic_write

Array = NDArray[np.float32]

MAGIC = 0x616B3432
FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
V0_HEADER_BYTES = 28
V1_HEADER_BYTES = 256
SHARED_FLAG_BYTE = 36
GROUP_SIZE_BYTE = 37  # an int32, unaligned
MOST_TOKENS = 2**24  # no vocabulary is larger


@dataclass(frozen=True)
class Header:
    """What the first bytes of a checkpoint say; `byte_of` tells where each field stands."""

    version: int
    values: dict[str, int]  # FIELDS, vocab_size made positive
    byte_of: dict[str, int]
    shared_classifier: bool
    size: int  # of the header itself, in bytes
    group_size: int = 0  # of version 2


def read_header(source: Source) -> Header:
    """Recognise the version and read the seven numbers; their relations are not judged here.

    Raises FormatError for a header that is cut, of another version, or not one of ours;
    FileError naming the kind of file, where that can be told.
    """
    head = source.head
    if head[:4] == struct.pack("<I", MAGIC):
        return _read_header_with_magic(source)
    if len(head) < V0_HEADER_BYTES:
        kind = kind_of(head)
        if kind is not None:
            raise FileError(source.path, f"looks like {kind}")
        cut = f", {FIELDS[len(head) // 4]} is missing" if head else ""
        raise FormatError(source.path, f"{len(head)} bytes: header needs {V0_HEADER_BYTES}{cut}")
    values = dict(zip(FIELDS, struct.unpack_from("<7i", head), strict=True))
    byte_of = {name: 4 * i for i, name in enumerate(FIELDS)}
    signed_V = values["vocab_size"]
    if abs(signed_V) > max(source.size, MOST_TOKENS):  # less may be a file that is cut: later
        refuse_if_another_kind(source)
        raise FormatError.field(
            source.path, "vocab_size", signed_V, byte_of["vocab_size"], "magnitude exceeds the file"
        )
    values["vocab_size"] = abs(signed_V)
    return Header(0, values, byte_of, signed_V > 0, V0_HEADER_BYTES)


def _read_header_with_magic(source: Source) -> Header:
    head, path = source.head, source.path
    if len(head) < V1_HEADER_BYTES:
        raise FormatError(path, f"{len(head)} bytes: header needs {V1_HEADER_BYTES}")
    (version,) = struct.unpack_from("<i", head, 4)
    if version not in (1, 2):
        raise FormatError.field(path, "version", version, 4, "1 and 2 are supported")
    values = dict(zip(FIELDS, struct.unpack_from("<7i", head, 8), strict=True))
    byte_of = {name: 8 + 4 * i for i, name in enumerate(FIELDS)}
    flag = head[SHARED_FLAG_BYTE]
    if flag > 1:
        raise FormatError.field(path, "shared_classifier", flag, SHARED_FLAG_BYTE, "must be 0 or 1")
    group_size = 0
    if version == 2:
        byte_of["group_size"] = GROUP_SIZE_BYTE
        (group_size,) = struct.unpack_from("<i", head, GROUP_SIZE_BYTE)
    return Header(version, values, byte_of, bool(flag), V1_HEADER_BYTES, group_size)


def refuse_if_another_kind(source: Source) -> None:
    """A v0 header has no magic: where the numbers make no sense, say what the file looks like."""
    kind = kind_of(source.head)
    if kind is not None:
        raise FileError(source.path, f"looks like {kind}")


def layout(
    version: int, values: Mapping[str, int], shared_classifier: bool
) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the float32 arrays, in the order of the file. Matrices are (out, in)."""
    C, F, L, NH, NKV, V, S = (values[name] for name in FIELDS)
    hs = C // NH
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding": (V, C),
        "attention_norm": (L, C),
        "wq": (L, NH * hs, C),
        "wk": (L, NKV * hs, C),
        "wv": (L, NKV * hs, C),
        "wo": (L, C, NH * hs),
        "ffn_norm": (L, C),
        "w1": (L, F, C),
        "w2": (L, C, F),
        "w3": (L, F, C),
        "final_norm": (C,),
    }
    if version == 0:
        order = list(shapes)
        shapes["rope_cos"] = shapes["rope_sin"] = (S, hs // 2)
        order += ["rope_cos", "rope_sin"]
    else:
        order = ["attention_norm", "ffn_norm", "final_norm", "token_embedding"]
        order += ["wq", "wk", "wv", "wo", "w1", "w2", "w3"]
    if not shared_classifier:
        shapes["classifier"] = (V, C)
        order.append("classifier")
    return [(name, shapes[name]) for name in order]


def read_tensors(
    source: Source, header: Header, memory_map: bool = False, lenient: bool = False
) -> tuple[dict[str, Array], list[str]]:
    """The weights by name, as views of one buffer, and what there is to warn about.

    The RoPE tables are left out. Nothing is read before the size of the file has been compared
    with the header. `lenient` lets pass, with a warning, the two faults that the original never
    notices: bytes after the last tensor, and RoPE tables that are cut off (shared classifier).

    Raises FormatError with the size found and needed.
    """
    rows = layout(header.version, header.values, header.shared_classifier)
    places, warnings = place(
        source, header, [(name, 4 * math.prod(s)) for name, s in rows], lenient
    )
    data = source.read_all(memory_map, aligned_byte=header.size)
    arrays = {
        name: data[places[name] : places[name] + 4 * math.prod(shape)].view("<f4").reshape(shape)
        for name, shape in rows
        if not name.startswith("rope_")
    }
    return arrays, warnings


def place(
    source: Source, header: Header, sizes: list[tuple[str, int]], lenient: bool = False
) -> tuple[dict[str, int], list[str]]:
    """Where each part of the body begins, and what to warn about; compares with the file's size.

    sizes: name and bytes of each part, in order, as Python integers: no product wraps.

    Raises FormatError with the size found and needed.
    """
    places = {}
    end = header.size
    ends_short_in = None
    for name, nbytes in sizes:
        places[name] = end
        end += nbytes
        if end > source.size and ends_short_in is None:
            ends_short_in = name
    path, warnings = source.path, []
    if ends_short_in is not None:
        dead_weight = header.shared_classifier and ends_short_in in ("rope_cos", "rope_sin")
        words = (
            f"{source.size} bytes, but its header needs {end} ({end - source.size} missing, "
            f"from {ends_short_in} on)"
        )
        if not (lenient and dead_weight):
            refuse_if_another_kind(source)
            raise FormatError(source.path, f"{words}: download incomplete?")
        warnings.append(f"{path}: {words}: playing on, these tables are not used")
    elif source.size > end:
        words = f"{source.size - end} bytes after the last tensor (which ends at byte {end})"
        if not lenient:
            refuse_if_another_kind(source)
            raise FormatError(source.path, f"{words}: not a file of this shape")
        warnings.append(f"{path}: {words}: ignored")
    return places, warnings


def header_bytes(
    version: int, values: Mapping[str, int], shared_classifier: bool, group_size: int = 0
) -> bytes:
    """The header of a file to write."""
    numbers = [values[name] for name in FIELDS]
    if version == 0:
        V_at = FIELDS.index("vocab_size")
        numbers[V_at] = numbers[V_at] if shared_classifier else -numbers[V_at]
        return struct.pack("<7i", *numbers)
    header = struct.pack("<Ii7iB", MAGIC, version, *numbers, shared_classifier)
    if version == 2:
        header += struct.pack("<i", group_size)
    return header.ljust(V1_HEADER_BYTES, b"\0")


def write_checkpoint(
    path: str | os.PathLike[str],
    values: Mapping[str, int],
    tensors: Mapping[str, Array],
    version: int = 0,
) -> None:
    """Write a v0 or v1 file, atomically; the classifier is shared if `tensors` has none.

    Arrays of any memory layout and byte order are written in C order, little-endian. The RoPE
    tables of v0 are cos and sin evaluated in float64 and rounded.

    Raises FileError from the operating system; ValueError (a mistake of the caller) for a tensor
    of the wrong shape.
    """
    shared = "classifier" not in tensors
    rows = layout(version, values, shared)
    with atomic_write(path) as file:
        file.write(header_bytes(version, values, shared))
        tables = _rope_tables(values) if version == 0 else {}
        for name, shape in rows:
            array = tables[name] if name in tables else tensors[name]
            if array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
            file.write(np.ascontiguousarray(array, dtype="<f4").tobytes())


def _rope_tables(values: Mapping[str, int]) -> dict[str, Array]:
    S, hs = values["seq_len"], values["dim"] // values["n_heads"]
    frequencies = 10000.0 ** (-np.arange(0, hs, 2) / hs)  # (hs/2,)
    angles = np.outer(np.arange(S), frequencies)  # (S, hs/2)
    return {
        "rope_cos": np.cos(angles).astype(np.float32),
        "rope_sin": np.sin(angles).astype(np.float32),
    }
