"""JSON files that are not trusted: size and kind are checked, and every fault is one line."""

from __future__ import annotations

import json
import os
from typing import Any

from pyllm2.errors import FileError, FormatError, shown
from pyllm2.formats.kinds import kind_of
from pyllm2.formats.reader import open_source

MOST_BYTES = 2**27  # the largest tokenizer.json has some ten megabytes


def read_object(path: str | os.PathLike[str], most: int = MOST_BYTES) -> dict[str, Any]:
    """The JSON object of a file.

    Raises FileError for another kind of file or one of more than `most` bytes, FormatError.
    """
    with open_source(path) as source:
        if source.size > most:
            raise FileError(source.path, f"{source.size} bytes: at most {most} are read")
        if not source.head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            kind = kind_of(source.head)
            if kind is not None:
                raise FileError(source.path, f"looks like {kind}, expected a JSON object")
        data = source.read_range(0, source.size).tobytes()
    return parse_object(data, source.path)


def parse_object(data: bytes, path: str, unique: bool = False) -> dict[str, Any]:
    """The object that these bytes of the file are.

    unique: refuse a key that an object has twice, instead of taking the last.

    Raises FormatError.
    """
    try:
        found = json.loads(data, object_pairs_hook=_unique if unique else None)
    except UnicodeDecodeError as error:
        raise FormatError(path, f"not JSON: byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise FormatError(path, "not JSON that can be read: nested too deeply") from None
    except ValueError as error:
        raise FormatError(path, f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise FormatError(path, f"JSON of the type {type(found).__name__}: expected an object")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"{shown(name)} is there twice")
            seen.add(name)
    return found


def member(
    value: Any, key: str, kind: type | tuple[type, ...], path: str, where: str, default: Any = ...
) -> Any:
    """`value[key]`, if `value` is an object and that is of this kind; `default` if it is not there.

    where: name of `value`, for errors. None is a kind of its own: `type(None)`.

    Raises FormatError.
    """
    name = f"{where}.{key}" if where else key
    if not isinstance(value, dict):
        raise FormatError(path, f"{where or 'the file'} = {shown(value)}: expected an object")
    if key not in value:
        if default is not ...:
            return default
        raise FormatError(path, f"{name} is missing")
    found = value[key]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(found, kinds) or (isinstance(found, bool) and bool not in kinds):
        expected = " or ".join(_KINDS[k] for k in kinds)
        raise FormatError(path, f"{name} = {shown(found)}: expected {expected}")
    return found


_KINDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
    type(None): "null",
}
