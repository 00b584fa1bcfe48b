"""Structs and functions that a C header of csrc declares, as ctypes types and checked calls.

The parser reads the C that csrc is written in, not all of C: `typedef struct { ... } name;` with
one field per declaration, and functions that start in the first column. Types are the integers of
stdint.h, float, double, structs and pointers to these.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

Convert = Callable[[Any], Any]

_SCALARS: dict[str, tuple[type, Convert]] = {
    "int32_t": (ctypes.c_int32, operator.index),
    "int64_t": (ctypes.c_int64, operator.index),
    "uint32_t": (ctypes.c_uint32, operator.index),
    "uint64_t": (ctypes.c_uint64, operator.index),
    "float": (ctypes.c_float, float),
    "double": (ctypes.c_double, float),
}
_ELEMENTS: dict[str, np.dtype[Any]] = {
    "char": np.dtype(np.uint8),
    "int8_t": np.dtype(np.int8),
    "uint8_t": np.dtype(np.uint8),
    "int32_t": np.dtype(np.int32),
    "int64_t": np.dtype(np.int64),
    "uint64_t": np.dtype(np.uint64),
    "float": np.dtype(np.float32),
}
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_DIRECTIVE = re.compile(r"^[ \t]*#(?:\\\n|[^\n])*", re.MULTILINE)
_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
_STRUCT = re.compile(r"^typedef struct \{([^{}]*)\} (\w+);", re.MULTILINE)
_FUNCTION = re.compile(
    r"^(?!static |typedef |enum )(\w[\w ]*?\**) ?(\w+)\(([^(){};]*)\)\s*[;{]", re.MULTILINE
)
_DECLARATOR = re.compile(r"(const )?(\w+) (\**)(\w+)")


class Variable(NamedTuple):
    """A field or a parameter: its type, and the conversion of a Python value, with its checks."""

    name: str
    ctype: type
    convert: Convert


class Struct(ctypes.Structure):
    """A struct of a header, made from its fields: arrays become pointers and are kept alive."""

    converts: ClassVar[dict[str, Convert]]

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        for name, value in fields.items():
            try:
                setattr(self, name, self.converts[name](value))
            except TypeError as error:
                raise TypeError(f"{type(self).__name__}.{name}: {error}") from None
        self.kept = fields


@dataclass(frozen=True)
class Function:
    """A function that a header declares."""

    name: str
    prototype: str
    returns: type | None
    parameters: list[Variable]

    def bound(self, library: ctypes.CDLL) -> Callable[..., Any]:
        """The function of a loaded library; its arguments are checked at each call.

        An array is passed as a pointer, a struct by its address, None as NULL. Raises TypeError for
        a wrong number of arguments, and for an array of another dtype, not contiguous, or read-only
        where C writes.
        """
        function = getattr(library, self.name)
        function.restype = self.returns
        function.argtypes = [parameter.ctype for parameter in self.parameters]
        converts = [parameter.convert for parameter in self.parameters]

        def call(*arguments: Any) -> Any:
            if len(arguments) != len(converts):
                raise TypeError(f"{len(arguments)} arguments for {self.prototype}")
            try:
                return function(*[c(a) for c, a in zip(converts, arguments, strict=True)])
            except TypeError:
                raise self._wrong_argument(arguments) from None

        return call

    def prepared(self, library: ctypes.CDLL, **known: Any) -> Callable[..., Any]:
        """`bound` with some arguments given by name, once for all calls: checking takes time.

        The known arrays and structs are kept; the other arguments are passed in their order.
        """
        names = [parameter.name for parameter in self.parameters]
        assert set(known) <= set(names), f"{[*known]}: not all in {self.prototype}"
        self.bound(library)  # tells ctypes the types
        converts = {parameter.name: parameter.convert for parameter in self.parameters}
        values = [converts[name](known[name]) if name in known else None for name in names]
        places = [(i, converts[name]) for i, name in enumerate(names) if name not in known]
        function = getattr(library, self.name)

        def prepared_call(*arguments: Any) -> Any:
            if len(arguments) != len(places):
                raise TypeError(f"{len(known)} + {len(arguments)} arguments for {self.prototype}")
            given = values.copy()
            try:
                for (place, convert), argument in zip(places, arguments, strict=True):
                    given[place] = convert(argument)
            except TypeError:
                rest = iter(arguments)
                every = [known[name] if name in known else next(rest) for name in names]
                raise self._wrong_argument(tuple(every)) from None
            return function(*given)

        prepared_call.known = known  # type: ignore[attr-defined]  # kept as long as the call
        return prepared_call

    def _wrong_argument(self, arguments: tuple[Any, ...]) -> TypeError:
        for parameter, a in zip(self.parameters, arguments, strict=True):
            try:
                parameter.convert(a)
            except TypeError as error:
                return TypeError(f"{self.name}: {parameter.name}: {error}")
        return TypeError(f"{self.name}: arguments do not fit {self.prototype}")


@dataclass
class Interface:
    """All structs and functions of some C text, and the hash of their declarations."""

    structs: dict[str, type[Struct]] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)
    abi: int = 0


@functools.cache
def read_interface(path: Path) -> Interface:
    """What a header declares, with the headers that it includes.

    `abi` depends on the declarations only, not on comments or spacing.
    """
    return parse("\n".join(file.read_text(encoding="utf-8") for file in with_includes(path)))


def with_includes(path: Path) -> list[Path]:
    """A C file and all that it includes with quotes, directly or not: each once, deepest first."""
    found: dict[Path, None] = {}
    visiting = set()

    def visit(file: Path) -> None:
        if file in visiting or not file.exists():  # of a missing file the compiler complains
            return
        visiting.add(file)
        for name in _INCLUDE.findall(file.read_text(encoding="utf-8")):
            visit((file.parent / name).resolve())
        found[file] = None

    visit(path.resolve())
    return list(found)


def parse(text: str) -> Interface:
    """The interface that C text declares. Raises ValueError for a type that it cannot express."""
    code = _DIRECTIVE.sub("", _COMMENT.sub(" ", text))
    digest = hashlib.sha256(" ".join(code.split()).encode()).hexdigest()
    interface = Interface(abi=int(digest[:15], 16))
    for body, name in _STRUCT.findall(code):
        # a field does not say whether C writes through it: its arrays may be read-only
        fields = [_variable(f"const {f}", interface) for f in body.split(";") if f.strip()]
        members = {
            "_fields_": [(f.name, f.ctype) for f in fields],
            "converts": {f.name: f.convert for f in fields},
        }
        interface.structs[name] = type(name, (Struct,), members)
    for returned, name, parameters in _FUNCTION.findall(code):
        prototype = " ".join(f"{returned} {name}({parameters})".split())
        interface.functions[name] = Function(
            name,
            prototype,
            None if returned == "void" else _variable(f"{returned} _", interface).ctype,
            list(_parameters(parameters, interface)),
        )
    return interface


def _parameters(text: str, interface: Interface) -> Iterator[Variable]:
    for part in text.split(","):
        if part.strip() not in ("", "void"):
            yield _variable(part, interface)


def _variable(text: str, interface: Interface) -> Variable:
    """A field or parameter such as `const float *x`."""
    text = " ".join(text.split()).replace("unsigned char", "char").replace("const const", "const")
    found = _DECLARATOR.fullmatch(text)
    if found is not None:
        const, base, stars, name = found.groups()
        if stars == "" and base in _SCALARS:
            return Variable(name, *_SCALARS[base])
        if stars == "" and base in interface.structs:
            return Variable(name, interface.structs[base], _instance_of(interface.structs[base]))
        if stars == "*" and base in _ELEMENTS:
            return Variable(name, ctypes.c_void_p, _pointer_to(_ELEMENTS[base], const is None))
        if stars == "*" and base in interface.structs:
            return Variable(name, ctypes.c_void_p, _address_of(interface.structs[base]))
    raise ValueError(f"{text}: not a type that Python can pass")


def _instance_of(struct: type[Struct]) -> Convert:
    def convert(a: Any) -> Struct:
        if not isinstance(a, struct):
            raise TypeError(f"expected a {struct.__name__}, got {type(a).__name__}")
        return a

    return convert


def _address_of(struct: type[Struct]) -> Convert:
    instance = _instance_of(struct)
    return lambda a: None if a is None else ctypes.byref(instance(a))


def _pointer_to(dtype: np.dtype[Any], written: bool) -> Convert:
    """The address of an array's elements; the array must outlive its use."""
    needed = f"a contiguous {'writeable ' if written else ''}{dtype} array"

    def convert(a: Any) -> Any:
        if isinstance(a, np.ndarray):
            if a.dtype == dtype and a.flags.c_contiguous and (a.flags.writeable or not written):
                return a.__array_interface__["data"][0]
            fault = f"{a.dtype}, strides {a.strides}" + (", read-only" * (not a.flags.writeable))
            raise TypeError(f"expected {needed}, got {fault}")
        if a is None or (isinstance(a, bytes) and dtype == np.uint8 and not written):
            return a
        raise TypeError(f"expected {needed}, got {type(a).__name__}")

    return convert
