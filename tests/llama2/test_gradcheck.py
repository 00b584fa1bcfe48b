"""Llama-2's gradients against differences: right ones pass, slightly wrong ones do not."""

from __future__ import annotations

import numpy as np
import pytest

from pyllm2.testing import gradcheck
from tests.tested import BACKENDS, ops_of
from tests.wrong import off_by

MODEL = gradcheck.MODELS["llama2"]


def backward_of(name: str) -> str:
    """The op that goes back where `name` went forward."""
    inputs = MODEL.example(name, np.random.default_rng(0))
    return MODEL.pairs[name](MODEL.ops, *inputs).backward


@pytest.mark.parametrize("name", MODEL.pairs)
def test_every_backward_is_the_derivative_of_its_forward(name: str) -> None:
    """In float64, to six digits at the least: nearly equal rows bend sharply in a norm."""
    found = gradcheck.check_pair(MODEL, name, {}, examples=20, seed=1)
    assert found.passed
    assert found.relative <= 1e-6


def test_the_gradient_of_a_model_is_the_derivative_of_its_loss() -> None:
    """Some entries of every tensor of small random models."""
    found = gradcheck.check_model(MODEL, {}, examples=6, seed=1)
    assert found.passed
    assert found.relative <= 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MODEL.names)
def test_every_backend_passes(backend: str, name: str) -> None:
    """The float32 ops and models against the bounds around the formula that has passed."""
    rivals = {backend: ops_of(backend, "llama2")}
    examples = 1 if name == "model" else 3
    assert gradcheck.check(f"llama2.{name}", rivals, examples, seed=2).passed


@pytest.mark.parametrize("name", [name for name in MODEL.pairs if name != "dropout"])
def test_a_millionth_too_much_is_seen_in_float64(name: str) -> None:
    """Differences are that good. (Dropout is its own backward: there both would be wrong.)"""
    wrong = off_by(MODEL.ops, 1e-6, backward_of(name))
    assert not gradcheck.check_pair(MODEL, name, {}, examples=5, seed=0, ops=wrong).passed


@pytest.mark.parametrize("name", MODEL.pairs)
def test_a_thousandth_too_much_is_seen_in_a_backend(name: str) -> None:
    """Bounds are that tight."""
    rivals = {"wrong": off_by(MODEL.ops, 1e-3, backward_of(name))}
    assert not gradcheck.check_pair(MODEL, name, rivals, examples=5, seed=0).passed


@pytest.mark.parametrize("name", ["attention_backward", "rmsnorm_backward"])
def test_both_are_seen_in_a_whole_model(name: str) -> None:
    """However deep in it the error sits."""
    wrong = off_by(MODEL.ops, 1e-6, name)
    assert not gradcheck.check_model(MODEL, {}, examples=1, seed=0, ops=wrong).passed
    rivals = {"wrong": off_by(MODEL.ops, 1e-3, name)}
    assert not gradcheck.check_model(MODEL, rivals, examples=1, seed=0).passed
