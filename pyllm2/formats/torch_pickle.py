"""PyTorch's `.pth` and `.bin` files, read without PyTorch and without running what is in them.

    a ZIP archive of stored (not compressed) files below one folder of any name
        FOLDER/data.pkl     a pickle: dict of name -> tensor
        FOLDER/data/KEY     the numbers of a storage; tensors may share it
        FOLDER/byteorder    "little"; not in old files

A pickle is a program for a stack machine that may call any function. `pickletools` takes it apart;
the machine here has only the instructions with which torch writes tensors, knows only the names
that torch uses in them, and calls nothing: a call of another name is refused by that name.
"""

from __future__ import annotations

import io
import os
import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyllm2.errors import FileError, FormatError, shown
from pyllm2.formats.kinds import kind_of
from pyllm2.formats.reader import Source, open_source
from pyllm2.formats.tensors import Place, Shape, Tensors, size_of

MOST_PICKLE_BYTES = 2**25  # of 300 tensors: 50 kB
MOST_DIMENSIONS = 16
_BEFORE_ZIP = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")  # what torch wrote before 1.6

# Storage class -> dtype, bytes per number.
STORAGES = {
    "DoubleStorage": ("F64", 8),
    "FloatStorage": ("F32", 4),
    "HalfStorage": ("F16", 2),
    "BFloat16Storage": ("BF16", 2),
    "LongStorage": ("I64", 8),
    "IntStorage": ("I32", 4),
    "ShortStorage": ("I16", 2),
    "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1),
    "BoolStorage": ("BOOL", 1),
    "UntypedStorage": ("U8", 1),
    "ComplexFloatStorage": ("C64", 8),
    "ComplexDoubleStorage": ("C128", 16),
}
_DICT, _TENSOR, _PARAMETER = "OrderedDict", "_rebuild_tensor_v2", "_rebuild_parameter"
_ALLOWED = {
    "collections OrderedDict": _DICT,
    "torch._utils _rebuild_tensor_v2": _TENSOR,
    "torch._utils _rebuild_parameter": _PARAMETER,
    "torch.storage UntypedStorage": "UntypedStorage",
    **{f"torch {name}": name for name in STORAGES},
}


@dataclass(frozen=True)
class _Name:
    """A name of `_ALLOWED` on the stack: a word, not what torch has under it."""

    word: str


@dataclass(frozen=True)
class _Storage:
    """Numbers of one dtype in a file of the archive."""

    key: str
    dtype: str
    size: int  # bytes per number
    numel: int


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage; offset and strides count numbers."""

    storage: _Storage
    offset: int
    shape: Shape
    strides: Shape


class _Mark:
    """Where a tuple or a run of items begins on the stack."""


# ---- the file --------------------------------------------------------------------------------


def open_torch(path: str | os.PathLike[str]) -> Tensors:
    """The tensors of a file, every one of which has been checked to be inside its storage.

    Raises FileError for another kind of file; FormatError for a pickle that is more than tensors by
    name, for sizes that disagree, and for what no archive of torch has (compression, encryption).
    """
    with open_source(path) as source:
        _refuse_another_kind(source)
        parts = _parts(source)
        folder = _folder(source.path, parts)
        _require_little(source, parts.get(f"{folder}byteorder"))
        start, size = parts[f"{folder}data.pkl"]
        if size > MOST_PICKLE_BYTES:
            raise FormatError(
                source.path, f"data.pkl: {size} bytes: at most {MOST_PICKLE_BYTES} are read"
            )
        found = _Machine(source.path).run(source.read_range(start, size).tobytes())
        places = {
            name: _place(source.path, name, tensor, parts, folder) for name, tensor in found.items()
        }
    return Tensors(source.path, places)


def is_torch(head: bytes) -> bool:
    """Whether a file with these first bytes may be one of torch: a ZIP archive."""
    return head[:4] == b"PK\x03\x04"


def _refuse_another_kind(source: Source) -> None:
    head = source.head
    if head.startswith(_BEFORE_ZIP):
        raise FileError(
            source.path,
            "is in the format of torch before 1.6, which is not supported: save it again with "
            "torch.save of a newer torch",
        )
    if not is_torch(head):
        kind = kind_of(head)
        if kind is None:
            raise FormatError(source.path, "no ZIP archive, as PyTorch writes them")
        raise FileError(source.path, f"looks like {kind}")


def _parts(source: Source) -> dict[str, tuple[int, int]]:
    """First byte and size of every file of the archive, all inside of it."""
    path = source.path
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except OSError as error:
        raise FileError(path, (error.strerror or str(error)).lower()) from None
    except Exception as error:  # zipfile raises what the damage leads to: struct.error, ValueError
        reason = " ".join(str(error).split()).lower() or type(error).__name__
        raise FormatError(path, f"no whole ZIP archive: {reason}: download incomplete?") from None
    parts = {}
    for entry in entries:
        name, of = entry.filename, f"archive: {shown(entry.filename)}"
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise FormatError(path, f"{of} is compressed: torch stores its files as they are")
        if entry.flag_bits & 0x41:
            raise FormatError(path, f"{of} is encrypted")
        if name in parts:
            raise FormatError(path, f"{of} is there twice")
        parts[name] = _start(source, entry, of), entry.file_size
    return parts


def _start(source: Source, entry: zipfile.ZipInfo, of: str) -> int:
    """The first byte of a file, after its own header, whose lengths the directory does not have."""
    at, size = entry.header_offset, entry.file_size
    if not 0 <= at <= source.size - 30:
        raise FormatError(source.path, f"{of}: its header (byte {at}) is beyond the end")
    header = source.read_range(at, 30).tobytes()
    name_length, extra_length = struct.unpack_from("<HH", header, 26)
    start = at + 30 + name_length + extra_length
    if header[:4] != b"PK\x03\x04" or start + size > source.size:
        end = start + size
        found = f"{of}: {size} bytes from byte {start}"
        raise FormatError(source.path, f"{found}: ends at {end}, the file has {source.size} bytes")
    return start


def _folder(path: str, parts: dict[str, tuple[int, int]]) -> str:
    found = [name for name in parts if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(found) != 1:
        raise FormatError(path, f"a ZIP archive with {len(found)} files */data.pkl: torch has one")
    return found[0].removesuffix("data.pkl")


def _require_little(source: Source, part: tuple[int, int] | None) -> None:
    if part is not None:
        word = source.read_range(part[0], min(part[1], 16)).tobytes()
        if word != b"little":
            found = shown(word.decode("latin-1"))
            raise FormatError(source.path, f"byteorder = {found}: expected 'little'")


def _place(
    path: str, name: str, tensor: _Tensor, parts: dict[str, tuple[int, int]], folder: str
) -> Place:
    """Where the tensor is in the file. Raises FormatError if it reaches beyond its storage."""
    storage, of = tensor.storage, f"tensor {shown(name)}"
    part = parts.get(f"{folder}data/{storage.key}")
    if part is None:
        raise FormatError(path, f"{of}: storage {shown(storage.key)} is missing in the archive")
    start, nbytes = part
    if storage.numel * storage.size != nbytes:
        found = f"{storage.numel} numbers of {storage.dtype}"
        raise FormatError(
            path, f"{of}: storage {shown(storage.key)} has {nbytes} bytes: expected {found}"
        )
    steps = zip(tensor.shape, tensor.strides, strict=True)
    last = tensor.offset + sum((n - 1) * step for n, step in steps)
    size = size_of(tensor.shape)
    if size and (last >= storage.numel or size > storage.numel):
        found = f"offset = {tensor.offset}, shape {shown(tensor.shape)}, strides"
        raise FormatError(
            path,
            f"{of}: {found} {shown(tensor.strides)}: its storage has {storage.numel} numbers",
        )
    begin = start + tensor.offset * storage.size
    strides = None if _is_c_order(tensor.shape, tensor.strides) or not size else tensor.strides
    return Place(path, storage.dtype, tensor.shape, begin, strides)


def _is_c_order(shape: Shape, strides: Shape) -> bool:
    """Whether each number follows the one before; the stride of a dimension of 1 is any."""
    expected = 1
    for n, step in zip(reversed(shape), reversed(strides), strict=True):
        if n != 1 and step != expected:
            return False
        expected *= n
    return True


# ---- the pickle ------------------------------------------------------------------------------


class _Machine:
    """The stack machine of pickle, without the instructions that torch does not use for tensors.

    Everything on the stack is an int, str, bool, None, tuple, list, dict, or one of the classes
    above. Values are never compared, hashed or printed unless they are strings or numbers.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> dict[str, _Tensor]:
        """The tensors by name. Raises FormatError."""
        try:
            for instruction, argument, at in pickletools.genops(io.BytesIO(data)):
                if instruction.name == "STOP":
                    return self._tensors()
                self.step(instruction.name, argument, int(at or 0))
        except FormatError:
            raise
        except (IndexError, KeyError, TypeError, AttributeError) as error:
            found = f"{type(error).__name__.removesuffix('Error')} at a wrong place"
            raise self._error(f"not a pickle of tensors ({found})") from None
        except Exception as error:  # pickletools: ValueError, UnicodeDecodeError, OverflowError
            reason = " ".join(str(error).split())[:100]
            raise self._error(f"not a whole pickle: {reason}") from None
        raise self._error("not a whole pickle: it has no end")

    def step(self, name: str, argument: Any, at: int) -> None:
        """One instruction. Raises FormatError for one that torch does not use."""
        stack = self.stack
        if name in _PUSH:
            stack.append(_PUSH[name](argument))
        elif name in ("PROTO", "FRAME"):
            pass
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            n = int(name[-1])
            if len(stack) < n:
                raise IndexError
            stack[-n:] = [tuple(stack[-n:])]
        elif name == "TUPLE":
            stack.append(tuple(self._from_mark()))
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else self._from_mark()
            for key, value in zip(items[::2], items[1::2], strict=True):
                if type(key) is not str or type(stack[-1]) is not dict:
                    raise TypeError
                stack[-1][key] = value
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            if name == "STACK_GLOBAL":
                word, module = stack.pop(), stack.pop()
                argument = f"{module} {word}" if type(word) is type(module) is str else "?"
            stack.append(self._name(argument, at))
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._call(function, arguments))
        elif name == "BUILD":  # attributes of an OrderedDict: versions of modules
            stack.pop()
            if type(stack[-1]) is not dict:
                raise TypeError
        else:
            raise self._error(f"instruction {name} (byte {at}) is refused: tensors do not need it")

    def _from_mark(self) -> list[Any]:
        """Take everything down to the last mark from the stack."""
        at = next(i for i in range(len(self.stack) - 1, -2, -1) if self._is_mark(i))
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def _is_mark(self, i: int) -> bool:
        if i < 0:
            raise IndexError
        return type(self.stack[i]) is _Mark

    def _name(self, found: str, at: int) -> _Name:
        word = _ALLOWED.get(found)
        if word is None:
            what = shown(found.replace(" ", ".", 1))
            raise self._error(f"calls {what} (byte {at}), which is refused: it could run any code")
        return _Name(word)

    def _storage(self, found: Any) -> _Storage:
        """`("storage", class, key, location, number of numbers)`"""
        word, kind, key, _, numel = found
        if word != "storage" or type(kind) is not _Name or type(key) is not str:
            raise TypeError
        return _Storage(key, *STORAGES[kind.word], _whole(numel))

    def _call(self, function: Any, arguments: Any) -> Any:
        """What torch would build: a tensor, a parameter (its tensor), an ordered dictionary."""
        word = function.word
        if word == _DICT and not arguments:
            return {}
        if word == _TENSOR:
            storage, offset, shape, strides = arguments[:4]
            if type(storage) is not _Storage or len(shape) != len(strides):
                raise TypeError
            if len(shape) > MOST_DIMENSIONS:
                raise self._error(f"a tensor of {len(shape)} dimensions")
            sizes, steps = tuple(map(_whole, shape)), tuple(map(_whole, strides))
            return _Tensor(storage, _whole(offset), sizes, steps)
        if word == _PARAMETER and type(arguments[0]) is _Tensor:
            return arguments[0]
        raise TypeError

    def _tensors(self) -> dict[str, _Tensor]:
        """What is on the stack at the end."""
        found = self.stack[-1]
        if type(found) is not dict:
            raise self._error("not a dictionary of tensors")
        for name, value in found.items():
            if type(value) is not _Tensor:
                what = f"{shown(name)} is of the type {type(value).__name__.lower().strip('_')}"
                raise self._error(f"{what}: expected tensors by name")
        return found

    def _error(self, reason: str) -> FormatError:
        return FormatError(self.path, f"data.pkl: {reason}")


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise TypeError
    return value


def _same(value: Any) -> Any:
    return value


_PUSH: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys("BININT BININT1 BININT2 LONG1 BINUNICODE SHORT_BINUNICODE".split(), _same),
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_DICT": lambda _: {},
    "MARK": lambda _: _Mark(),
}
