"""Gradients against differences: the specification passes, and what is slightly wrong does not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pyllm2.gpt2 import ops
from pyllm2.testing import gradcheck
from tests.tested import BACKENDS, ops_of


@pytest.mark.parametrize("name", gradcheck.PAIRS)
def test_every_backward_is_the_derivative_of_its_forward(name: str) -> None:
    """In float64, to six digits at the least: nearly equal rows bend sharply in a layernorm."""
    found = gradcheck.check_pair(name, {}, examples=20, seed=1)
    assert found.passed
    assert found.relative <= 1e-6


def test_the_gradient_of_a_model_is_the_derivative_of_its_loss() -> None:
    """Some entries of every tensor of small random models."""
    found = gradcheck.check_model({}, examples=3, seed=1)
    assert found.passed
    assert found.relative <= 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", gradcheck.NAMES)
def test_every_backend_passes(backend: str, name: str) -> None:
    """The float32 ops and models against the bounds around the formula that has passed."""
    rivals = {backend: ops_of(backend, "gpt2")}
    assert gradcheck.check(name, rivals, 1 if name == "model" else 3, seed=2).passed


def off_by(part: float, name: str) -> Any:
    """The ops with one backward scaled by 1 + part."""

    def scaled(*inputs: Any) -> Any:
        found = getattr(ops, name)(*inputs)
        one = found.dtype.type(1 + part) if isinstance(found, np.ndarray) else 1 + np.float32(part)
        return found * one if isinstance(found, np.ndarray) else tuple(a * one for a in found)

    return SimpleNamespace(**{**vars(ops), name: scaled})


@pytest.mark.parametrize("name", gradcheck.PAIRS)
def test_a_millionth_too_much_is_seen_in_float64(name: str) -> None:
    """Differences are that good."""
    backward = gradcheck.PAIRS[name](ops, *_inputs(name)).backward
    wrong = off_by(1e-6, backward)
    assert not gradcheck.check_pair(name, {}, examples=5, seed=0, ops=wrong).passed
    assert not gradcheck.check_model({}, examples=1, seed=0, ops=wrong).passed


@pytest.mark.parametrize("name", gradcheck.PAIRS)
def test_a_thousandth_too_much_is_seen_in_a_backend(name: str) -> None:
    """Bounds are that tight."""
    backward = gradcheck.PAIRS[name](ops, *_inputs(name)).backward
    wrong = off_by(1e-3, backward)
    assert not gradcheck.check_pair(name, {"wrong": wrong}, examples=5, seed=0).passed
    assert not gradcheck.check_model({"wrong": wrong}, examples=1, seed=0).passed


def _inputs(name: str) -> Any:
    return gradcheck.example(name, np.random.default_rng(0))
