"""A digest of all our source files and constants that a function can reach.

Numba's cache on disk tells kernels apart by file, line and name, and notices edits of the kernel's
own file only. `numba_build.kernel` puts this digest into the name.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

OURS = "pyllm2"


def digest(*functions: Callable[..., Any]) -> str:
    """12 hexadecimal digits.

    The names in a function's code are looked up in its globals, its closure and its defaults, then
    those of each function found there, be it plain, jitted, an intrinsic or an attribute of a
    module. A function or class contributes its whole file, any other object its value. Only
    pyllm2 and the top-level packages of `functions` are followed.
    """
    packages = {OURS, *(_package(function.__module__) for function in functions)}
    facts: set[str] = set()
    seen: dict[Any, Any] = {}  # holds the objects, whose identities would be reused otherwise

    def visit(place: str, found: Any, names: frozenset[str]) -> None:
        """names: those in the code in which the object was found."""
        found = _unwrapped(found)
        if isinstance(found, dict):
            for key, value in found.items():
                visit(f"{place}[{key!r}]", value, names)
        elif isinstance(found, list | tuple):
            for i, value in enumerate(found):
                visit(f"{place}[{i}]", value, names)
        elif not isinstance(found, FunctionType | ModuleType | type):
            facts.add(f"{place} = {_shown(found)}")
        elif _package(_module(found)) in packages:
            key = (id(found), names if isinstance(found, ModuleType) else None)
            if key not in seen:
                seen[key] = found
                facts.add(f"{_module(found)}: {_file_digest(_path(found))}")
                inner = _names(found.__code__) if isinstance(found, FunctionType) else names
                for name, value in _parts(found, names):
                    visit(f"{_module(found)}.{found.__name__}.{name}", value, inner)

    for function in functions:
        visit("", function, frozenset())
    return hashlib.sha256("\n".join(sorted(facts)).encode()).hexdigest()[:12]


@functools.cache
def read_files(module: str) -> None:
    """Read the source files that a module imports from, now.

    Call it while the module is imported: a file edited after that is not what the process runs.
    """
    packages = {OURS, _package(module)}
    for name, loaded in list(sys.modules.items()):
        path = getattr(loaded, "__file__", None)
        if path is not None and _package(name) in packages:
            _file_digest(path)


@functools.cache
def _file_digest(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:  # typed at a prompt: Numba does not keep it on disk
        return ""


def _package(module: str) -> str:
    return module.partition(".")[0]


def _module(found: Any) -> str:
    return found.__name__ if isinstance(found, ModuleType) else found.__module__


def _path(found: Any) -> str:
    if isinstance(found, FunctionType):
        return found.__code__.co_filename
    return getattr(sys.modules.get(_module(found)), "__file__", None) or ""


def _unwrapped(found: Any) -> Any:
    """The Python function inside a dispatcher, an intrinsic or a cache."""
    if isinstance(found, functools.partial):
        return [found.func, found.args, found.keywords]
    for attribute in ("py_func", "_defn", "__wrapped__", "__func__"):
        inner = getattr(found, attribute, None)
        if isinstance(inner, FunctionType):
            return inner
    return found


def _parts(found: Any, names: frozenset[str]) -> Iterator[tuple[str, Any]]:
    """What a function refers to, the named attributes of a module, the methods of a class."""
    if isinstance(found, FunctionType):
        for name in _names(found.__code__):
            if name in found.__globals__:
                yield name, found.__globals__[name]
        for name, cell in zip(found.__code__.co_freevars, found.__closure__ or (), strict=True):
            yield name, cell.cell_contents
        yield "defaults", [found.__defaults__ or (), found.__kwdefaults__ or {}]
    else:
        every = vars(found).items()
        if isinstance(found, ModuleType):
            yield from ((name, value) for name, value in every if name in names)
        else:
            yield from ((name, value) for name, value in every if isinstance(value, FunctionType))


@functools.cache
def _names(code: CodeType) -> frozenset[str]:
    """Globals and attributes in a function's code and in the functions inside it."""
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return frozenset(code.co_names).union(*inner)


def _shown(value: Any) -> str:
    """A text that differs where values differ and is the same in another process."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, set | frozenset):
        return str(sorted(map(_shown, value)))
    text = repr(value)
    return str(type(value)) if " at 0x" in text else text
