"""The safetensors format: named arrays in one file, without any code in it.

    8 bytes    length of the header, little-endian, at most 100 MB
    header     JSON: name -> dtype, shape, first and last offset; spaces may follow
    bytes      the arrays, without gaps, each in C order and little-endian

Every size and offset is checked here before anything is read; the checks are those of the
`safetensors` library, with which the tests compare them. Arrays are then read one by one. They are
not mapped: a disk error would kill the process (SIGBUS) instead of being reported.

Arrays are written one by one too, without a second copy of a large model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import FileError, FormatError, shown
from pyllm2.formats.json_file import parse_object
from pyllm2.formats.kinds import kind_of
from pyllm2.formats.reader import Source, open_source
from pyllm2.formats.tensors import Place, Shape, Tensors, narrowed, size_of, widened
from pyllm2.formats.writer import atomic_write

MOST_HEADER_BYTES = 100_000_000
MOST_DIMENSIONS = 32
METADATA = "__metadata__"
_PIECE = 2**20  # numbers read at once where a whole array is not needed

# In the order in which the library writes arrays, so that its files have the same bytes.
_NAMES = {"<u8": "U64", "<i8": "I64", "<f8": "F64", "<f4": "F32", "<u4": "U32", "<i4": "I32"}
_NAMES["|i1"] = "I8"
_DTYPES = {name: np.dtype(text) for text, name in _NAMES.items()}
_ORDER = "U64 I64 F64 F32 U32 I32 BF16 F16 I8".split()
_BITS = {
    **dict.fromkeys("F4".split(), 4),
    **dict.fromkeys("F6_E2M3 F6_E3M2".split(), 6),
    **dict.fromkeys("BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ".split(), 8),
    **dict.fromkeys("I16 U16 F16 BF16".split(), 16),
    **dict.fromkeys("I32 U32 F32".split(), 32),
    **dict.fromkeys("I64 U64 F64 C64".split(), 64),
}


@dataclass(frozen=True)
class Blocks:
    """A float32 array to be written, as an iterable of its blocks: it is never there as a whole."""

    shape: Shape
    blocks: Iterable[NDArray[np.float32]]

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return iter(self.blocks)


# ---- writing ---------------------------------------------------------------------------------


def write_safetensors(
    path: str | os.PathLike[str],
    arrays: Mapping[str, NDArray[Any] | Blocks],
    metadata: Mapping[str, str],
) -> None:
    """Write arrays and metadata, atomically and reproducibly. Raises FileError.

    `Blocks` are asked for in the order of the file: by dtype, then by name.
    """
    kinds = {
        name: ("F32" if isinstance(array, Blocks) else _name_of(array.dtype), array.shape)
        for name, array in arrays.items()
    }

    def little(name: str) -> Iterator[NDArray[Any]]:
        array = arrays[name]
        for block in array if isinstance(array, Blocks) else [array]:
            yield np.ascontiguousarray(block, block.dtype.newbyteorder("<"))

    _write(path, kinds, little, metadata)


def write_weights(
    path: str | os.PathLike[str],
    shapes: Mapping[str, Shape],
    read: Callable[[str], NDArray[np.float32]],
    dtypes: Mapping[str, str],
    metadata: Mapping[str, str],
) -> None:
    """Write float32 arrays in dtypes of `tensors.STORED`; each is read when its turn comes.

    Raises FileError, also for a number that becomes infinite in its dtype, and what `read` raises;
    then there is no file.
    """
    kinds = {name: (dtypes[name], shape) for name, shape in shapes.items()}

    def whole(name: str) -> Iterator[NDArray[Any]]:
        array, (dtype, shape) = read(name), kinds[name]
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
        stored = np.ascontiguousarray(narrowed(array, dtype))
        if dtype != "F32" and (np.isinf(widened(stored)) & np.isfinite(array)).any():
            of = f"tensor {name!r} has numbers up to {np.abs(array).max():g}"
            raise FileError(path, f"{of}: too large for {dtype}, write f32")
        yield stored

    _write(path, kinds, whole, metadata)


def _write(
    path: str | os.PathLike[str],
    kinds: Mapping[str, tuple[str, Shape]],
    read: Callable[[str], Iterator[NDArray[Any]]],
    metadata: Mapping[str, str],
) -> None:
    """kinds: dtype and shape of each array; read: its numbers, little-endian and in C order,
    in one array or several."""
    names = sorted(kinds, key=lambda name: (_ORDER.index(kinds[name][0]), name))
    header: dict[str, Any] = {METADATA: dict(sorted(metadata.items()))}
    end = 0
    for name in names:
        dtype, shape = kinds[name]
        begin, end = end, end + size_of(shape) * _BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            for block in read(name):
                file.write(block.reshape(-1).view(np.uint8).data)


def _name_of(dtype: np.dtype[Any]) -> str:
    return _NAMES[dtype.newbyteorder("<").str]


# ---- reading ---------------------------------------------------------------------------------


def open_safetensors(path: str | os.PathLike[str]) -> Tensors:
    """The tensors of a file, which has been checked and not been read.

    Raises FileError, FormatError.
    """
    with open_source(path) as source:
        places, _ = _header(source)
    return Tensors(source.path, places)


class SafetensorsFile:
    """A checked file: its metadata, and its arrays, read one by one.

    Raises FileError, FormatError (not a safetensors file, truncated, sizes that disagree).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        with open_source(path) as source:
            self._places, self.metadata = _header(source)
        self.path = source.path
        self.names = frozenset(self._places)

    def read(
        self, name: str, dtype: type[np.generic], shape: tuple[int | None, ...]
    ) -> NDArray[Any]:
        """A copy of the array of that name. None in `shape` matches any length.

        Raises FormatError if it is missing, of another dtype or shape, or not finite.
        """
        self._require(name, dtype, shape)
        return self._finite(name)

    def read_vector(self, name: str, n: int) -> StoredVector:
        """The float32 vector of that name, checked, but left in the file. Raises as `read`."""
        self._require(name, np.float32, (n,))
        for start in range(0, n, _PIECE):
            self.read_part(name, start, min(n, start + _PIECE))
        return StoredVector(self, name, n)

    def _require(self, name: str, dtype: type[np.generic], shape: tuple[int | None, ...]) -> None:
        if name not in self.names:
            raise FormatError(self.path, f"tensor {name!r} is missing")
        found_shape, found_dtype = self._places[name].shape, self._places[name].dtype
        if _DTYPES.get(found_dtype) != np.dtype(dtype):
            expected = _NAMES[np.dtype(dtype).newbyteorder("<").str]
            raise FormatError(self.path, f"tensor {name!r}: {found_dtype}, expected {expected}")
        if not _fits(found_shape, shape):
            raise FormatError(
                self.path, f"tensor {name!r}: shape {_words(found_shape)}, expected {_words(shape)}"
            )

    def read_any(self, name: str) -> NDArray[Any]:
        """The array of that name, whatever its shape.

        Raises FormatError if it is not finite or of a dtype that `write_safetensors` has not.
        """
        found_dtype = self._places[name].dtype
        if found_dtype not in _DTYPES:
            raise FormatError(self.path, f"tensor {name!r}: {found_dtype} is not supported")
        return self._finite(name)

    def _finite(self, name: str) -> NDArray[Any]:
        shape = self._places[name].shape
        return self.read_part(name, 0, size_of(shape)).reshape(shape)

    def read_part(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Elements start to stop of the flattened array. Raises FormatError if not finite."""
        place = self._places[name]
        dtype = _DTYPES[place.dtype]
        first = place.start + start * dtype.itemsize
        with open_source(self.path) as source:
            data = source.read_range(first, (stop - start) * dtype.itemsize)
        array: NDArray[Any] = data.view(dtype)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise FormatError(self.path, f"tensor {name!r} has numbers that are not finite")
        return array


class StoredVector:
    """A vector in a file; a slice of it is read when it is asked for."""

    def __init__(self, file: SafetensorsFile, name: str, size: int) -> None:
        self._file, self._name, self.size = file, name, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: slice) -> NDArray[Any]:
        start, stop, _ = i.indices(self.size)
        return self._file.read_part(self._name, start, stop)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype)


def _header(source: Source) -> tuple[dict[str, Place], dict[str, str]]:
    """The place of every tensor, and the metadata. Raises FileError, FormatError."""
    path, size = source.path, source.size
    if size < 8:
        raise FormatError(path, f"{size} bytes: a header needs 8")
    n = int.from_bytes(source.head[:8], "little")
    start = 8 + n
    if start > size or n > MOST_HEADER_BYTES or source.head[8:9] != b"{":
        kind = kind_of(source.head)
        if kind is not None and source.head[8:9] != b"{":
            raise FileError(path, f"looks like {kind}")
        if source.head[8:9] != b"{":
            raise _broken(path, f"header begins with {source.head[8:9]!r} (byte 8): expected '{{'")
        most = min(size - 8, MOST_HEADER_BYTES)
        raise _broken(path, f"header length = {n} (byte 0): at most {most} is possible")
    try:
        entries = parse_object(source.read_range(8, n).tobytes(), path, unique=True)
    except FormatError as error:
        raise _broken(path, f"header (byte 8): {error.reason}") from None
    metadata = entries.pop(METADATA, None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _broken(path, f"{METADATA}: expected strings by name")
    places = {}
    begins = []
    for name, entry in entries.items():
        dtype, shape, begin, end = _entry(path, name, entry)
        places[name] = Place(path, dtype, shape, start + begin)
        begins.append((begin, end, name))
    expected = 0
    for begin, end, name in sorted(begins):
        if begin != expected:
            of = f"tensor {shown(name)}: data_offsets = [{begin}, {end}]"
            raise _broken(path, f"{of}: expected {expected} as the first, without gap or overlap")
        expected = end
    if start + expected != size:
        missing = start + expected - size
        if missing > 0:
            words = f"({missing} missing): download incomplete?"
            raise _broken(path, f"{size} bytes, but its header needs {start + expected} {words}")
        raise _broken(path, f"{-missing} bytes after the last tensor (byte {start + expected})")
    return places, metadata


def _entry(path: str, name: str, entry: Any) -> tuple[str, Shape, int, int]:
    """dtype, shape and the two offsets of a tensor, which agree. Raises FormatError."""
    of = f"tensor {shown(name)}"
    if not isinstance(entry, dict) or not entry.keys() >= {"dtype", "shape", "data_offsets"}:
        raise _broken(path, f"{of}: expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _broken(path, f"{of}: dtype = {shown(dtype)}: not a type of this format")
    for field, value in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(value, list) or not all(type(n) is int and 0 <= n < 2**63 for n in value):
            found = f"{field} = {shown(value)}"
            raise _broken(path, f"{of}: {found}: expected whole numbers ≥ 0")
    if len(shape) > MOST_DIMENSIONS:
        raise _broken(path, f"{of}: {len(shape)} dimensions: at most {MOST_DIMENSIONS} are read")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _broken(path, f"{of}: data_offsets = {shown(offsets)}: expected first ≤ last")
    bits = size_of(tuple(shape)) * _BITS[dtype]
    if bits != 8 * (offsets[1] - offsets[0]):
        found = f"data_offsets = {shown(offsets)}"
        raise _broken(path, f"{of}: {found}: {dtype} of shape {shown(shape)} has {bits // 8} bytes")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _broken(path: str, reason: str) -> FormatError:
    return FormatError(path, f"not a whole safetensors file: {reason}")


def _fits(found: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(found) == len(wanted) and all(
        w is None or f == w for f, w in zip(found, wanted, strict=True)
    )


def _words(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
