"""Gradients against finite differences: correct ones pass, slightly wrong ones do not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pyllm2.backends import Engine
from pyllm2.testing import gradcheck
from pyllm2.testing.gradcheck import MODELS, NAMES
from pyllm2.testing.gradients import Gradients
from tests.support.tested import able, engine_of

PAIRS = [name for name in NAMES if not name.endswith(".model")]


def split(name: str) -> tuple[Gradients, str]:
    """A model's gradients and the name of a pair: "gpt2.gelu" -> MODELS["gpt2"], "gelu"."""
    model, _, pair = name.partition(".")
    return MODELS[model], pair


def off_by(ops: Any, part: float, name: str) -> Any:
    """The ops, with the results of one scaled by 1 + part."""

    def scaled(*inputs: Any) -> Any:
        found = getattr(ops, name)(*inputs)
        if isinstance(found, np.ndarray):
            return found * found.dtype.type(1 + part)
        return tuple(a * a.dtype.type(1 + part) for a in found)

    return SimpleNamespace(**{**vars(ops), name: scaled})


def wrong_backward(name: str, part: float) -> Any:
    """The specification, with the backward of a pair scaled by 1 + part."""
    model, pair = split(name)
    inputs = model.example(pair, np.random.default_rng(0))
    return off_by(model.ops, part, model.pairs[pair](model.ops, *inputs).backward)


@pytest.mark.parametrize("name", PAIRS)
def test_every_backward_is_the_derivative_of_its_forward(name: str) -> None:
    """In float64, to at least six digits (a norm of nearly equal rows is strongly curved)."""
    found = gradcheck.check(name, {}, examples=20, seed=1)
    assert found.passed
    assert found.relative <= 1e-6


@pytest.mark.parametrize(("name", "examples"), [("llama2.model", 6), ("gpt2.model", 3)])
def test_the_gradient_of_a_model_is_the_derivative_of_its_loss(name: str, examples: int) -> None:
    """Some entries of every tensor of small random models."""
    found = gradcheck.check(name, {}, examples, seed=1)
    assert found.passed
    assert found.relative <= 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_every_backend_passes(name: str) -> None:
    """The float32 ops and models against the bounds around the formula that has passed."""
    family = name.partition(".")[0]
    engines = {backend: engine_of(backend, family) for backend in able()}
    found = gradcheck.check(name, engines, 1 if name.endswith(".model") else 3, seed=2)
    assert set(found.bound_used) == set(engines)
    assert found.passed, found


@pytest.mark.parametrize("name", [name for name in PAIRS if name != "llama2.dropout"])
def test_a_millionth_too_much_is_seen_in_float64(name: str) -> None:
    """Differences are that accurate. (Dropout is its own backward: both would be wrong.)"""
    model, pair = split(name)
    wrong = wrong_backward(name, 1e-6)
    assert not gradcheck.check_pair(model, pair, {}, examples=5, seed=0, ops=wrong).passed


@pytest.mark.parametrize("name", PAIRS)
def test_a_thousandth_too_much_is_seen_in_a_backend(name: str) -> None:
    """Bounds are that tight."""
    engines = {"wrong": Engine(wrong_backward(name, 1e-3))}
    assert not gradcheck.check(name, engines, examples=5, seed=0).passed


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama2", "attention_backward"),
        ("llama2", "rmsnorm_backward"),
        ("gpt2", "attention_backward"),
        ("gpt2", "residual_backward"),
    ],
)
def test_both_are_seen_in_a_whole_model(family: str, name: str) -> None:
    """However deep in the model the error is."""
    model = MODELS[family]
    wrong = off_by(model.ops, 1e-6, name)
    assert not gradcheck.check_model(model, {}, examples=1, seed=0, ops=wrong).passed
    engines = {"wrong": Engine(off_by(model.ops, 1e-3, name))}
    assert not gradcheck.check_model(model, engines, examples=1, seed=0).passed
