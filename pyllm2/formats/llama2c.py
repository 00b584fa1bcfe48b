"""llama2.c's checkpoints: version 0 (float32, no magic number), 1 (float32) and 2 (int8).

Version 0: seven int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, ±vocab_size, seq_len), then
float32 arrays without gaps. vocab_size is negative if the classifier has a matrix of its own, which
is then the last array. The two RoPE tables before it are not needed and are skipped when reading.

Version 1: a header of 256 bytes (magic "24ka", version, the seven int32 with a positive vocab_size,
one byte: 1 if the classifier is shared), then the arrays in another order, without RoPE tables.

Version 2: the header of version 1 with the group size at byte 37; `llama2c_q8` has the rest.

All numbers are little-endian. Arrays are read as views of one read-only buffer.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import FileError, FormatError
from pyllm2.formats.kinds import kind_of
from pyllm2.formats.reader import Source
from pyllm2.formats.writer import atomic_write

Array = NDArray[np.float32]
Shape = tuple[int, ...]

MAGIC = 0x616B3432
FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
V0_HEADER_BYTES = 28
V1_HEADER_BYTES = 256
SHARED_FLAG_BYTE = 36
GROUP_SIZE_BYTE = 37  # an int32, unaligned
MAX_TOKENS = 2**24  # upper limit of vocab_size

# The arrays in the order of the file; the classifier is there if it is not shared. A matrix is
# (out, in); all layers of one array are adjacent.
NORMS = ["attention_norm", "ffn_norm", "final_norm"]
V0_ORDER = "token_embedding attention_norm wq wk wv wo ffn_norm w1 w2 w3 final_norm".split()
V0_ORDER += ["rope_cos", "rope_sin", "classifier"]
V1_ORDER = [*NORMS, *"token_embedding wq wk wv wo w1 w2 w3 classifier".split()]


@dataclass(frozen=True)
class Header:
    """The header of a checkpoint."""

    version: int
    values: dict[str, int]  # FIELDS; vocab_size is positive
    byte_of: dict[str, int]  # offset of each field
    shared_classifier: bool
    size: int  # of the header, in bytes
    group_size: int = 0  # version 2 only


def read_header(source: Source) -> Header:
    """Recognise the version and read the fields; whether they fit together is not checked here.

    Raises FormatError for a truncated header or an unknown version, FileError for another kind of
    file that is recognised.
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
    if abs(signed_V) > max(source.size, MAX_TOKENS):  # smaller: maybe a truncated file
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
    """Raise FileError if the file looks like another kind: version 0 has no magic number."""
    kind = kind_of(source.head)
    if kind is not None:
        raise FileError(source.path, f"looks like {kind}")


def file_order(
    version: int, values: Mapping[str, int], shapes: Mapping[str, Shape]
) -> list[tuple[str, Shape]]:
    """Names and shapes of the arrays in the order of the file, with version 0's RoPE tables."""
    if version == 0:
        table = values["seq_len"], values["dim"] // values["n_heads"] // 2
        shapes = {**shapes, "rope_cos": table, "rope_sin": table}
    order = V0_ORDER if version == 0 else V1_ORDER
    return [(name, shapes[name]) for name in order if name in shapes]


def read_tensors(
    source: Source,
    header: Header,
    shapes: Mapping[str, Shape],
    memory_map: bool = False,
    lenient: bool = False,
) -> tuple[dict[str, Array], list[str]]:
    """The arrays of a version 0 or 1 file by name, as views of one buffer, and warnings.

    shapes: of every array, without the RoPE tables. The size of the file is compared with the
    header before the arrays are read. lenient: only warn about two faults that the original does
    not notice: bytes after the last array, and truncated RoPE tables (with a shared classifier).

    Raises FormatError with the size found and needed.
    """
    places, warnings = array_places(source, header, shapes, lenient)
    data = source.read_all(memory_map, aligned_byte=header.size)
    arrays = {
        name: data[places[name] : places[name] + 4 * math.prod(shape)].view("<f4").reshape(shape)
        for name, shape in shapes.items()
    }
    return arrays, warnings


def array_places(
    source: Source, header: Header, shapes: Mapping[str, Shape], lenient: bool = False
) -> tuple[dict[str, int], list[str]]:
    """The first byte of every array of a version 0 or 1 file, and warnings.

    Raises what `read_tensors` raises.
    """
    rows = file_order(header.version, header.values, shapes)
    return place(source, header, [(name, 4 * math.prod(s)) for name, s in rows], lenient)


def place(
    source: Source, header: Header, sizes: list[tuple[str, int]], lenient: bool = False
) -> tuple[dict[str, int], list[str]]:
    """Compare the file's size with its parts; the offset of each part, and warnings.

    sizes: name and bytes of each part, in order, as Python integers, which do not overflow.

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
        unused = header.shared_classifier and ends_short_in in ("rope_cos", "rope_sin")
        words = (
            f"{source.size} bytes, but its header needs {end} ({end - source.size} missing, "
            f"from {ends_short_in} on)"
        )
        if not (lenient and unused):
            refuse_if_another_kind(source)
            raise FormatError(source.path, f"{words}: download incomplete?")
        warnings.append(f"{path}: {words}: continuing, these tables are not used")
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
    """The header as bytes."""
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
    names: Collection[str],
    parts: Callable[[str], Iterable[Array]],
    version: int = 0,
) -> None:
    """Write a version 0 or 1 file, atomically; the classifier is shared if `names` has none.

    parts: the numbers of an array, in one part or several, whose turn comes one by one; of any
    memory layout and byte order. The RoPE tables of version 0 are evaluated in float64 and rounded.

    Raises FileError from the operating system, and what `parts` raises.
    """
    tables = rope_tables(values) if version == 0 else {}
    with atomic_write(path) as file:
        file.write(header_bytes(version, values, "classifier" not in names))
        for name in V0_ORDER if version == 0 else V1_ORDER:
            if name in tables or name in names:
                for part in [tables[name]] if name in tables else parts(name):
                    file.write(np.ascontiguousarray(part, dtype="<f4").data)


def rope_tables(values: Mapping[str, int]) -> dict[str, Array]:
    """The tables of version 0, which nothing reads: (S, hs/2) each."""
    S, hs = values["seq_len"], values["dim"] // values["n_heads"]
    frequencies = 10000.0 ** (-np.arange(0, hs, 2) / hs)  # (hs/2,)
    angles = np.outer(np.arange(S), frequencies)  # (S, hs/2)
    return {
        "rope_cos": np.cos(angles).astype(np.float32),
        "rope_sin": np.sin(angles).astype(np.float32),
    }
