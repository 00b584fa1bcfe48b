"""The safetensors format: named arrays in one file, and nothing in it that runs.

    8 bytes    length of the header, little-endian
    header     JSON: name -> dtype, shape, begin and end of its bytes; padded with blanks to 8
    bytes      the arrays, without holes

Written here, so that no second copy of a large model is made and a full disk is an ordinary error;
read by the `safetensors` library, which checks every size and offset.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import FileError, FormatError
from pyllm2.formats.reader import open_source
from pyllm2.formats.writer import atomic_write

# In the order in which the library lays the arrays out, so that files are byte for byte its own.
_NAMES = {"<u8": "U64", "<i8": "I64", "<f8": "F64", "<f4": "F32", "<u4": "U32", "<i4": "I32"}
_DTYPES = {name: np.dtype(text) for text, name in _NAMES.items()}
_ORDER = list(_NAMES)


def write_safetensors(
    path: str | os.PathLike[str],
    arrays: Mapping[str, NDArray[Any]],
    metadata: Mapping[str, str],
) -> None:
    """Write the arrays; the same arrays and metadata give the same bytes. Raises FileError."""
    little = {
        name: np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        for name, array in arrays.items()
    }
    ordered = sorted(little.items(), key=lambda item: (_ORDER.index(item[1].dtype.str), item[0]))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name, array in ordered:
        begin, end = end, end + array.nbytes
        dtype, shape = _NAMES[array.dtype.str], arrays[name].shape
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in ordered:
            file.write(array.reshape(-1).view(np.uint8).data)


class SafetensorsFile:
    """An open file: its metadata and the arrays in it, read one by one.

    Raises FileError, FormatError (not a safetensors file, truncated, sizes that disagree).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._file = _open(self.path)
        self.metadata: dict[str, str] = self._file.metadata() or {}
        self.names = frozenset(self._file.keys())

    def read(
        self, name: str, dtype: type[np.generic], shape: tuple[int | None, ...]
    ) -> NDArray[Any]:
        """The array of that name, a copy. None in `shape`: any length.

        Raises FormatError if it is missing, of another dtype or shape, or not finite.
        """
        if name not in self.names:
            raise FormatError(self.path, f"tensor {name!r} is missing")
        entry = self._file.get_slice(name)
        found_shape, found_dtype = tuple(entry.get_shape()), entry.get_dtype()
        if _DTYPES.get(found_dtype) != np.dtype(dtype):
            expected = _NAMES[np.dtype(dtype).newbyteorder("<").str]
            raise FormatError(self.path, f"tensor {name!r}: {found_dtype}, expected {expected}")
        if not _fits(found_shape, shape):
            raise FormatError(
                self.path, f"tensor {name!r}: shape {_words(found_shape)}, expected {_words(shape)}"
            )
        return self._finite(name)

    def read_any(self, name: str) -> NDArray[Any]:
        """The array of that name, whatever its shape. Raises FormatError if it is not finite."""
        return self._finite(name)

    def _finite(self, name: str) -> NDArray[Any]:
        array = self._file.get_tensor(name)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise FormatError(self.path, f"tensor {name!r} has numbers that are not finite")
        return array


def _open(path: str) -> Any:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise FileError(
            path, "reading it needs the safetensors package: pip install 'pyllm2[train]'"
        ) from None
    with open_source(path) as source:
        if source.size < 8:
            raise FormatError(path, f"{source.size} bytes: a header needs 8")
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise FormatError(path, f"not a whole safetensors file: {reason}") from None


def _fits(found: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(found) == len(wanted) and all(
        w is None or f == w for f, w in zip(found, wanted, strict=True)
    )


def _words(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
