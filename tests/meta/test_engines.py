"""Which backends have which whole passes."""

from __future__ import annotations

import os

import pytest

from pyllm2 import backends
from tests.support.tested import BACKENDS, engine_of

PASSES = ("forward", "losses", "add_gradient")
WHOLE = {"llama2": PASSES, "gpt2": ("losses", "add_gradient")}
COMPOSED = ["numpy", "numba-strict"] + ["numba"] * (os.environ.get("NUMBA_DISABLE_JIT") == "1")


@pytest.mark.parametrize("family", WHOLE)
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_engine_has_these_whole_passes(backend: str, family: str) -> None:
    """A pass that is missing would be composed: the same numbers, but slower."""
    engine = engine_of(backend, family)
    found = [name for name in PASSES if getattr(engine, name) is not None]
    assert found == ([] if backend in COMPOSED else list(WHOLE[family]))
    together = (backend, family) == ("numba", "llama2") and backend not in COMPOSED
    assert (engine.forward_each is not None, engine.columns > 1) == (together, together)
    assert engine.name == backend


@pytest.mark.parametrize("family", WHOLE)
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_engine_has_the_plain_ops_of_its_backend(backend: str, family: str) -> None:
    """They are what a whole pass must equal, and what runs where there is none."""
    ops = backends.ops(engine_of(backend, family).name, package=family)
    assert type(engine_of(backend, family).ops) is type(ops)
