"""Files as PyTorch writes them, instruction by instruction, so that each can be made wrong."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLASSES = {"<f8": "Double", "<f4": "Float", "<f2": "Half", "<u2": "BFloat16", "<i8": "Long"}
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def text(word: str) -> bytes:
    data = word.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def integer(n: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", n)


def tuple_of(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def integers(numbers: Sequence[int]) -> bytes:
    return tuple_of(*map(integer, numbers))


def storage(key: str, dtype: str, numel: int) -> bytes:
    kind = f"ctorch\n{CLASSES[dtype]}Storage\n".encode()
    return tuple_of(text("storage"), kind, text(key), text("cpu"), integer(numel)) + b"Q"


def tensor(stored: bytes, offset: int, shape: Sequence[int], strides: Sequence[int]) -> bytes:
    arguments = stored, integer(offset), integers(shape), integers(strides), b"\x89", ORDERED_DICT
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + tuple_of(*arguments) + b"R"


def dictionary(items: Mapping[str, bytes]) -> bytes:
    """A whole pickle."""
    pairs = b"".join(text(name) + value for name, value in items.items())
    return b"\x80\x02}(" + pairs + b"u."


def archive(
    pickled: bytes, storages: Mapping[str, bytes], method: int = zipfile.ZIP_STORED, **more: bytes
) -> bytes:
    """The file; more: other entries by name."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        file.writestr("a/data.pkl", pickled)
        for key, data in storages.items():
            file.writestr(f"a/data/{key}", data)
        for name, data in more.items():
            file.writestr(f"a/{name}", data)
    return out.getvalue()


def torch_file(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """A file of these arrays, each with a storage of its own and its own strides."""
    items, storages = {}, {}
    for i, (name, array) in enumerate(arrays.items()):
        base = array.copy(order="K")
        strides = [step // base.itemsize for step in base.strides]
        flat = np.lib.stride_tricks.as_strided(base, (base.size,), (base.itemsize,))
        storages[str(i)] = flat.tobytes()
        stored = storage(str(i), base.dtype.str, base.size)
        items[name] = tensor(stored, 0, base.shape, strides)
    return archive(dictionary(items), storages)
