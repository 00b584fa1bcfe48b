"""JSON files that are not trusted: size and kind are checked, and every fault is one line."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Settings:
    """The object of a config file. A value of null is as good as none.

    path: of the file, for errors   within: what is in front of a key there, e.g. "rope_scaling."
    """

    path: str
    values: dict[str, Any]
    within: str = ""

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number below 2^31. Raises FormatError, also if it is missing without a default.

        Negative numbers pass: the config of a model refuses them by its own rules.
        """
        found = self._get(key, default)
        if type(found) is not int:
            raise self.error(key, "expected a whole number")
        if abs(found) >= 2**31:
            raise self.error(key, "expected a number below 2^31")
        return found

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number. Raises as `whole`."""
        found = self._get(key, default)
        if type(found) not in (int, float) or not abs(found) < 1e300:
            raise self.error(key, "expected a number")
        return float(found)

    def flag(self, key: str, default: bool) -> bool:
        found = self._get(key, default)
        if type(found) is not bool:
            raise self.error(key, "expected true or false")
        return found

    def text(self, key: str, default: str | None = None) -> str:
        found = self._get(key, default)
        if type(found) is not str:
            raise self.error(key, "expected text")
        return found

    def inside(self, key: str) -> Settings | None:
        """An object in this one; None if there is none. Raises FormatError for another type."""
        found = self.values.get(key)
        if found is None:
            return None
        if type(found) is not dict:
            raise self.error(key, "expected an object")
        return Settings(self.path, found, f"{self.within}{key}.")

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def error(self, key: str, expected: str) -> FormatError:
        """`FILE: KEY = FOUND: EXPECTED`"""
        name = f"{self.within}{key}"
        return FormatError(self.path, f"{name} = {shown(self.values.get(key))}: {expected}")

    def _get(self, key: str, default: Any) -> Any:
        found = self.values.get(key)
        if found is None and default is None:
            raise FormatError(self.path, f"{self.within}{key} is missing")
        return default if found is None else found
