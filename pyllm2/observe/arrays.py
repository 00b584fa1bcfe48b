"""Files of named arrays that are not trusted: .npz of NumPy, .safetensors.

Sizes are compared with those of the file before anything is allocated; nothing is unpickled.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2 import memory
from pyllm2.errors import FormatError, PyLLM2Error, os_errors, shown
from pyllm2.formats.reader import open_source
from pyllm2.formats.safetensors_file import (
    SafetensorsFile,
    open_safetensors,
    write_safetensors,
)
from pyllm2.formats.tensors import size_of
from pyllm2.formats.writer import atomic_write

Array = NDArray[Any]
SUFFIXES = (".npz", ".safetensors")


def write_arrays(
    path: str | os.PathLike[str], arrays: Mapping[str, Array], metadata: str = ""
) -> None:
    """Write arrays by name, and a text, as .npz or .safetensors by the name's suffix.

    In an .npz the text is the array `records`, its bytes. Raises FileError.
    """
    if os.fspath(path).endswith(".safetensors"):
        converted = {n: a if a.dtype.str in _WRITTEN else _widened(a) for n, a in arrays.items()}
        write_safetensors(path, converted, {"records": metadata})
        return
    text = {"records": np.frombuffer(metadata.encode(), np.uint8)} if metadata else {}
    with atomic_write(path) as file:
        np.savez(file, **text, **arrays)  # type: ignore[arg-type]


_WRITTEN = ("<f4", "<f8", "<i4", "<i8", "<u4", "<u8")


def _widened(array: Array) -> Array:
    """An array of a dtype that the writer of safetensors has not, in one that it has."""
    return array.astype(np.int32 if array.dtype.kind in "iub" else np.float32)


def read_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, Array], str]:
    """The arrays of a file by name, and the text that was written with them ("" if none).

    The content decides which format it is.

    Raises FileError, FormatError, NotEnoughMemoryError.
    """
    name = os.fspath(path)
    with open_source(name) as source:
        head, size = source.head[:8], source.size
    if head[:2] == b"PK":
        arrays = _read_npz(name)
        text = arrays.pop("records", None)
        if text is None:
            return arrays, ""
        if text.dtype != np.uint8 or text.ndim != 1:
            raise FormatError(name, f"array 'records': {text.dtype}, expected the bytes of a text")
        return arrays, text.tobytes().decode("utf-8", "replace")
    if len(head) == 8 and int.from_bytes(head, "little") <= size:
        return _read_safetensors(name, size)
    raise FormatError(name, f"begins with {head[:4]!r}: expected an .npz or .safetensors file")


def _read_npz(path: str) -> dict[str, Array]:
    arrays = {}
    with os_errors(path):
        try:
            with zipfile.ZipFile(path) as archive:
                total = sum(member.file_size for member in archive.infolist())
                memory.require(total, f"the arrays of {path}", "use a smaller file")
                for member in archive.infolist():
                    with archive.open(member) as file:
                        _check_header(path, member, file)
                    with archive.open(member) as file:
                        array = np.lib.format.read_array(file, allow_pickle=False)
                    arrays[member.filename.removesuffix(".npy")] = array
        except (PyLLM2Error, OSError, MemoryError):
            raise
        except Exception as error:  # of zipfile, zlib, struct, tokenize, ast and NumPy
            raise FormatError(path, f"not a whole .npz file: {shown(str(error))}") from None
    return arrays


def _check_header(path: str, member: zipfile.ZipInfo, file: Any) -> None:
    """Refuse an array of Python objects, or one that is not as long as its shape says."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    shape, _, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)
    if dtype.hasobject:
        raise FormatError(path, f"{member.filename}: an array of Python objects: expected numbers")
    needed = math.prod(shape) * dtype.itemsize
    found = member.file_size - file.tell()
    if needed != found or min(shape, default=0) < 0:
        raise FormatError(
            path, f"{member.filename}: {found} bytes, its shape {shape} needs {needed}"
        )


# Read as they are; float16 and bfloat16 become float32.
_AS_IT_IS = {"F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4", "U8": "|u1", "I8": "|i1"}


def _read_safetensors(path: str, size: int) -> tuple[dict[str, Array], str]:
    tensors = open_safetensors(path)
    memory.require(size, f"the arrays of {path}", "use a smaller file")
    arrays: dict[str, Array] = {}
    with open_source(path) as source:
        for name, place in tensors.items():
            if place.dtype in _AS_IT_IS:
                dtype = np.dtype(_AS_IT_IS[place.dtype])
                data = source.read_range(place.start, size_of(place.shape) * dtype.itemsize)
                arrays[name] = data.view(dtype).reshape(place.shape)
            else:
                arrays[name] = place.read(name)
    return arrays, SafetensorsFile(path).metadata.get("records", "")
