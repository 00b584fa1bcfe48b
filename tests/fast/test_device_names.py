"""No two device functions have one name: kernels from the cache would call each other's code."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import pyllm2.fast

numba = pytest.importorskip("numba", reason="needs numba")
if numba.config.DISABLE_JIT:
    pytest.skip("compiles nothing", allow_module_level=True)


def test_device_functions_have_names_of_their_own() -> None:
    """Closures of one place too, such as the workers for float32 and int8."""
    found = {}
    for module in pkgutil.walk_packages(pyllm2.fast.__path__, "pyllm2.fast."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, numba.core.dispatcher.Dispatcher):
                found[id(value)] = (value.py_func.__module__, value.py_func.__qualname__)
    assert len(found) > 20
    assert len(set(found.values())) == len(found)
