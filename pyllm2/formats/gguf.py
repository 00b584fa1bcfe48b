"""GGUF, the container of llama.cpp, versions 2 and 3: metadata and tensors, in one file or several.

    "GGUF", u32 version, u64 number of tensors, u64 number of metadata entries
    entry     string key, u32 type, value
    tensor    string name, u32 number of dimensions, u64 ne[…], u32 type, u64 offset
    padding to the alignment, then data; offsets count from there

    string    u64 length, bytes (UTF-8)
    array     u32 type of its elements, u64 number of them, elements

All numbers are little-endian. ne has the fastest dimension first: ne = (in, out) is a C-order array
(out, in). A model in several files, `name-00001-of-00003.gguf`, has its metadata in the first;
each of them has tensors of its own.

The `gguf` package trusts every count and offset of a file, so files are read here: nothing is
allocated or read before its size is compared with what is left of the file.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import FileError, FormatError, printable, shown
from pyllm2.formats.gguf_blocks import TYPES, UNSUPPORTED, BlockType
from pyllm2.formats.kinds import kind_of
from pyllm2.formats.reader import Source, open_source

Array = NDArray[np.float32]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  # if there is no general.alignment
MAX_HEADER = 2**27  # bytes before the data: the largest vocabularies need 30 MB
MAX_DIMENSIONS = 4
MAX_NAME = 64  # bytes of a tensor's name
PIECE = 2**22  # bytes of data that are read at once

# Metadata types by id. A bool is a byte; a string and an array have a length of their own.
NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?"}
NUMBERS |= {10: "<u8", 11: "<i8", 12: "<f8"}
UINT32, STRING, ARRAY = 4, 8, 9
_LEAST_STRING = 8  # bytes of an empty one
_LEAST_ENTRY = 8 + 4 + 1
_LEAST_TENSOR = 8 + 4 + 8 + 4 + 8
_PART_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True)
class Tensor:
    """Where a tensor is, and what it is."""

    name: str
    kind: BlockType
    shape: tuple[int, ...]  # C order
    path: str
    start: int  # byte of the file
    byte: int  # of its entry in the header, for errors

    @property
    def nbytes(self) -> int:
        return self.kind.size(math.prod(self.shape))


@dataclass(frozen=True)
class Gguf:
    """A model in GGUF: metadata, and tensors that are read on demand.

    metadata values are int, float, bool, str; an array is an array of NumPy, or a list of str.
    """

    path: str
    version: int
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]
    byte_of: dict[str, int]  # where the value of a metadata entry begins
    paths: tuple[str, ...]  # every file, in order

    def tensor(self, name: str) -> Array:
        """All numbers of a tensor, in C order, float32, dequantised.

        Needs the memory of the result and PIECE bytes. Raises what `read_into` raises.
        """
        out = np.empty(self._tensor(name).shape, np.float32)
        self.read_into(name, out)
        return out

    def read_into(self, name: str, out: Array, first_row: int = 0) -> None:
        """Write rows of a tensor, as many as `out` has, into `out`, a contiguous array.

        out: (rows, …) with the tensor's other dimensions

        Raises FormatError if there is no such tensor, FileError from the operating system.
        """
        tensor = self._tensor(name)
        row = tensor.kind.size(math.prod(tensor.shape[1:])) if len(tensor.shape) > 1 else 0
        start, flat = tensor.start + first_row * row, out.reshape(-1)
        if not np.shares_memory(flat, out) or math.prod(tensor.shape[1:]) * len(out) != out.size:
            raise ValueError(f"out: expected a contiguous array of rows {tensor.shape[1:]}")
        step = max(1, PIECE // tensor.kind.nbytes)  # blocks
        with open_source(tensor.path) as source:
            for done in range(0, flat.size, step * tensor.kind.numbers):
                piece = flat[done : done + step * tensor.kind.numbers]
                at = start + tensor.kind.size(done)
                tensor.kind.expand(source.read_range(at, tensor.kind.size(piece.size)), piece)

    def blocks(self, name: str) -> NDArray[np.uint8]:
        """The rows of a tensor as they are in the file: (rows, bytes of a row).

        Raises what `read_into` raises.
        """
        tensor = self._tensor(name)
        with open_source(tensor.path) as source:
            return source.read_range(tensor.start, tensor.nbytes).reshape(tensor.shape[0], -1)

    def kind(self, name: str) -> BlockType:
        """The number format of a tensor. Raises FormatError if there is no such tensor."""
        return self._tensor(name).kind

    def _tensor(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise FormatError(self.path, f"tensor {name!r} is missing")
        return self.tensors[name]

    def dtype(self, name: str) -> str:
        """F32, F16 or BF16: what holds all numbers of a tensor exactly. Raises as `rows`."""
        found = self._tensor(name).kind.name
        return found if found in ("F16", "BF16") else "F32"

    def rows(self, name: str) -> int:
        """The number of rows of a tensor. Raises FormatError if there is no such tensor."""
        return self._tensor(name).shape[0]

    def require(self, shapes: Mapping[str, tuple[int, ...]], ignored: re.Pattern[str]) -> None:
        """Check that the tensors are these, and perhaps some whose names match `ignored`.

        Raises FormatError naming a tensor that is missing, of another shape, or neither.
        """
        for name, shape in shapes.items():
            tensor = self._tensor(name)
            if tensor.shape != shape:
                what = f"tensor {name!r} (byte {tensor.byte})"
                raise FormatError(tensor.path, f"{what}: shape = {tensor.shape}: expected {shape}")
        for name, tensor in self.tensors.items():
            if name not in shapes and not ignored.fullmatch(name):
                what = f"tensor {shown(name)} (byte {tensor.byte})"
                raise FormatError(tensor.path, f"{what}: not part of this architecture")

    # ---- metadata

    def architecture(self, supported: Sequence[str]) -> str:
        """general.architecture. Raises FormatError if it is none of these."""
        key = "general.architecture"
        found: str = self.value(key, str)
        if found not in supported:
            raise self.error(key, f"supported are {', '.join(supported)}")
        return found

    def constant(self, key: str, default: int | None = None) -> int:
        """A whole number, or an array of one per layer that are all the same.

        Raises FormatError if it is neither, or missing without a default.
        """
        found = self.metadata.get(key)
        if not isinstance(found, np.ndarray):
            return int(self.value(key, int, default))
        if found.dtype.kind not in "iu" or not found.size or (found != found[0]).any():
            raise self.error(key, "must be one whole number for all layers")
        return int(found[0])

    def error(self, key: str, expected: str) -> FormatError:
        """The FormatError for the value of a metadata entry: `FILE: KEY = FOUND (byte N): …`."""
        return FormatError.field(
            self.path, printable(key), shown(self.metadata[key]), self.byte_of[key], expected
        )

    def value(self, key: str, kind: type[Any], default: Any = None) -> Any:
        """A metadata value that must be of this type: int, float, str, bool, or list of str.

        Raises FormatError if it is of another type, or missing without a default.
        """
        if key not in self.metadata:
            if default is None:
                raise FormatError(self.path, f"{key} is missing in the metadata")
            return default
        found: Any = self.metadata[key]
        if kind is float and type(found) is int:
            return float(found)
        if type(found) is not kind:
            words = {int: "a whole number", float: "a number", str: "a string", bool: "a bool"}
            raise self.error(key, f"must be {words.get(kind, 'an array of strings')}")
        if kind is float and not math.isfinite(found):
            raise self.error(key, "must be finite")
        return found


def read_gguf(source: Source | str | os.PathLike[str]) -> Gguf:
    """Metadata and tensors of a file that is open already, or of a path; and of its other parts.

    Every size, count and offset is checked; the data itself is read by `Gguf.tensor`.

    Raises FileError, FormatError (which entry, what was found and expected).
    """
    with _opened(source) as first:
        gguf = _read_file(first)
    return _with_other_parts(gguf) if gguf.value("split.count", int, 1) > 1 else gguf


@contextmanager
def _opened(source: Source | str | os.PathLike[str]) -> Iterator[Source]:
    if isinstance(source, Source):
        yield source
    else:
        with open_source(source) as opened:
            yield opened


# ---- one file --------------------------------------------------------------------------------


class _Header:
    """The header of a file, read from front to back; `byte` is where the next value begins."""

    def __init__(self, source: Source) -> None:
        self.source, self.path = source, source.path
        self.byte, self._buffer = 0, b""
        self.end = min(source.size, MAX_HEADER)

    def take(self, n: int, what: str) -> int:
        """The place of the next n bytes in `self._buffer`; they are read if necessary."""
        start, stop = self.byte, self.byte + n
        if stop > self.end:
            if self.end < self.source.size:
                raise FormatError(
                    self.path, f"{what} (byte {start}): the header exceeds {MAX_HEADER} bytes"
                )
            raise FormatError(
                self.path,
                f"{what} (byte {start}): needs {n} bytes, the file has {self.end - start} left: "
                "download incomplete?",
            )
        if stop > len(self._buffer):
            more = min(self.end, max(stop, 2 * len(self._buffer), 2**16))
            new = self.source.read_range(len(self._buffer), more - len(self._buffer))
            self._buffer += new.tobytes()
        self.byte = stop
        return start

    def number(self, type_id: int, what: str) -> Any:
        """A number or bool."""
        dtype = np.dtype(NUMBERS[type_id])
        at = self.take(dtype.itemsize, what)
        if type_id == 7:
            return self._buffer[at] != 0
        return np.frombuffer(self._buffer, dtype, 1, at)[0].item()

    def u32(self, what: str) -> int:
        at = self.take(4, what)
        return int.from_bytes(self._buffer[at : at + 4], "little")

    def u64(self, what: str) -> int:
        at = self.take(8, what)
        return int.from_bytes(self._buffer[at : at + 8], "little")

    def count(self, what: str, least: int) -> int:
        """A u64 that counts things of at least so many bytes."""
        at = self.byte
        n = self.u64(what)
        if n * least > self.source.size - self.byte:
            left = self.source.size - self.byte
            raise FormatError.field(
                self.path,
                what,
                n,
                at,
                f"needs {n * least} bytes, the file has {left} left: download incomplete?",
            )
        return n

    def string(self, what: str) -> str:
        n = self.count(f"length of {what}", 1)
        at = self.take(n, what)
        try:
            return self._buffer[at : at + n].decode()
        except UnicodeDecodeError as error:
            raise FormatError(
                self.path, f"{what} (byte {at + error.start}): expected UTF-8"
            ) from None

    def value(self, key: str) -> tuple[Any, int, int]:
        """A metadata value, its type and where it begins."""
        at = self.byte
        type_id = self.u32(f"type of {key}")
        start = self.byte
        if type_id in NUMBERS:
            return self.number(type_id, key), type_id, start
        if type_id == STRING:
            return self.string(key), type_id, start
        if type_id == ARRAY:
            return self.array(key), type_id, start
        raise FormatError.field(self.path, f"type of {key}", type_id, at, "must be 0 to 12")

    def array(self, key: str) -> Any:
        at = self.byte
        type_id = self.u32(f"type of the elements of {key}")
        if type_id == STRING:
            n = self.count(f"length of {key}", _LEAST_STRING)
            return [self.string(key) for _ in range(n)]
        if type_id not in NUMBERS:
            expected = "nested arrays are not supported" if type_id == ARRAY else "must be 0 to 12"
            raise FormatError.field(
                self.path, f"type of the elements of {key}", type_id, at, expected
            )
        dtype = np.dtype(NUMBERS[type_id])
        n = self.count(f"length of {key}", dtype.itemsize)
        at = self.take(n * dtype.itemsize, key)
        if type_id == 7:
            return np.frombuffer(self._buffer, np.uint8, n, at) != 0
        return np.frombuffer(self._buffer, dtype, n, at).copy()


def _read_file(source: Source) -> Gguf:
    """Metadata and tensors of one file."""
    header = _Header(source)
    version = _version(header)
    n_tensors = header.count("number of tensors", _LEAST_TENSOR)
    n_entries = header.count("number of metadata entries", _LEAST_ENTRY)
    metadata: dict[str, Any] = {}
    byte_of: dict[str, int] = {}
    for i in range(n_entries):
        at = header.byte
        key = header.string(f"key {i} of the metadata")
        if key in metadata:
            raise FormatError(source.path, f"metadata key {shown(key)} (byte {at}): is there twice")
        metadata[key], type_id, byte_of[key] = header.value(printable(key)[:80])
        if key == "general.alignment" and type_id != UINT32:
            raise FormatError(source.path, f"{key} (byte {byte_of[key]}): must be a u32")
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if alignment < 8 or alignment & (alignment - 1):
        raise FormatError.field(
            source.path,
            "general.alignment",
            alignment,
            byte_of["general.alignment"],
            "must be a power of two ≥ 8",
        )
    entries = [_tensor_entry(header, i) for i in range(n_tensors)]
    data = -(-header.byte // alignment) * alignment
    tensors = _placed(source, entries, data, alignment)
    return Gguf(source.path, version, metadata, tensors, byte_of, (source.path,))


def _version(header: _Header) -> int:
    """Magic number and version. Raises FileError for another kind of file."""
    path, head = header.path, header.source.head
    if head[:4] != MAGIC:
        kind = kind_of(head)
        raise FileError(path, f"looks like {kind}" if kind else "is no GGUF file")
    header.take(4, "magic number")
    version = header.u32("version")
    if version in (v << 24 for v in (1, *VERSIONS)):
        raise FormatError(path, "is a big-endian GGUF file, not supported")
    if version not in VERSIONS:
        raise FormatError.field(path, "version", version, 4, "2 and 3 are supported")
    return version


def _tensor_entry(header: _Header, i: int) -> tuple[str, BlockType, tuple[int, ...], int, int]:
    """Name, format, shape, offset, and where the entry begins."""
    path, byte = header.path, header.byte
    name = header.string(f"name of tensor {i}")
    what = f"tensor {shown(name)}"
    if len(name.encode()) > MAX_NAME:
        raise FormatError(path, f"{what} (byte {byte}): its name exceeds {MAX_NAME} bytes")
    at = header.byte
    n_dims = header.u32(what)
    if not 1 <= n_dims <= MAX_DIMENSIONS:
        raise FormatError.field(
            path, f"number of dimensions of {what}", n_dims, at, f"must be 1 to {MAX_DIMENSIONS}"
        )
    at = header.byte
    ne = [header.u64(what) for _ in range(n_dims)]
    if 0 in ne:
        raise FormatError.field(path, f"ne of {what}", ne, at, "must be at least 1 each")
    kind_at = header.byte
    kind_id = header.u32(what)
    kind = TYPES.get(kind_id)
    if kind is None:
        names = ", ".join(t.name for t in TYPES.values())
        found = f"{kind_id} ({UNSUPPORTED[kind_id]})" if kind_id in UNSUPPORTED else kind_id
        raise FormatError.field(path, f"type of {what}", found, kind_at, f"supported are {names}")
    if ne[0] % kind.numbers:
        raise FormatError.field(
            path,
            f"ne[0] of {what}",
            ne[0],
            at,
            f"must be a multiple of {kind.numbers} ({kind.name})",
        )
    return name, kind, tuple(reversed(ne)), header.u64(what), byte


def _placed(
    source: Source,
    entries: list[tuple[str, BlockType, tuple[int, ...], int, int]],
    data: int,
    alignment: int,
) -> dict[str, Tensor]:
    """The tensors by name. Raises FormatError if they do not lie inside the file, side by side."""
    tensors: dict[str, Tensor] = {}
    for name, kind, shape, offset, byte in entries:
        what = f"tensor {shown(name)}"
        if name in tensors:
            raise FormatError(source.path, f"{what} (byte {byte}): is there twice")
        if offset % alignment:
            raise FormatError.field(
                source.path, f"offset of {what}", offset, byte, f"must be a multiple of {alignment}"
            )
        tensors[name] = Tensor(name, kind, shape, source.path, data + offset, byte)
    end, before = data, "the header"
    for tensor in sorted(tensors.values(), key=lambda t: t.start):
        what = f"tensor {shown(tensor.name)}"
        if tensor.start < end:
            raise FormatError(source.path, f"{what} (byte {tensor.byte}): overlaps {before}")
        end, before = tensor.start + tensor.nbytes, what
        if end > source.size:
            raise FormatError(
                source.path,
                f"{source.size} bytes, but {what} ends at byte {end}: download incomplete?",
            )
    return tensors


# ---- several files ---------------------------------------------------------------------------


def part_names(path: str) -> list[str]:
    """The paths of all parts of a model, one of which has this path; empty for other names."""
    folder, file = os.path.split(path)
    match = _PART_NAME.fullmatch(file)
    count = int(match[3]) if match else 0
    parts = (f"{match[1]}-{i + 1:05}-of-{count:05}.gguf" for i in range(count)) if match else ()
    return [os.path.join(folder, part) for part in parts]


def _with_other_parts(first: Gguf) -> Gguf:
    """The model of which this file is the first part. Raises FileError for a part that is not."""
    count = first.value("split.count", int)
    if first.value("split.no", int) != 0:
        number = first.value("split.no", int) + 1
        raise FileError(
            first.path, f"is part {number} of {count} of a model: name the first one (-00001-of-…)"
        )
    names = part_names(first.path)
    if len(names) != count or os.path.basename(first.path) != os.path.basename(names[0]):
        raise FileError(
            first.path,
            f"is the first of {count} parts, which are found by name: "
            f"expected …-00001-of-{count:05}.gguf",
        )
    tensors, paths = dict(first.tensors), [first.path]
    for i, path in enumerate(names[1:], 1):
        with open_source(path) as source:
            part = _read_file(source)
        if (part.value("split.no", int), part.value("split.count", int)) != (i, count):
            raise FileError(path, f"is not part {i + 1} of {count} by its split.no, split.count")
        for tensor in part.tensors.values():
            if tensor.name in tensors:
                where = tensors[tensor.name].path
                what = f"tensor {shown(tensor.name)} (byte {tensor.byte})"
                raise FormatError(path, f"{what}: is in {printable(where)} too")
        tensors |= part.tensors
        paths.append(path)
    if len(tensors) != first.value("split.tensors.count", int, len(tensors)):
        raise first.error("split.tensors.count", f"the {count} parts have {len(tensors)} tensors")
    return Gguf(first.path, first.version, first.metadata, tensors, first.byte_of, tuple(paths))
