"""`diff --explain`: errors are inside their bounds, and the variants are what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2 import backends
from pyllm2.observe.explain import explain, matmul_in_order
from tests.observe.models import fixed
from tests.support.command import in_process
from tests.support.llama2_files import lay_out

IDS = [1, 5, 7, 5, 2]


@pytest.mark.parametrize("family", ["llama2", "int8", "gpt2"])
def test_every_error_is_inside_its_bound(family: str) -> None:
    budget = explain(fixed(family), IDS, ["numpy"])
    assert {"llama2": "matmul", "int8": "matmul_q8", "gpt2": "matmul_forward"}[family] in str(
        budget
    )
    for row in budget.ops:
        assert row.adds <= row.may_add, row
        assert row.carries <= row.may_carry, row
    assert all(0 < v.share < 1 for v in budget.variants)
    assert len(budget.variants) == (1 if family == "int8" else 4)
    assert budget.variants[0].apart == 0
    assert "should allow" in str(budget)
    assert "<table" in budget._repr_html_()


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 20), st.integers(0, 99))
def test_the_order_is_that_of_the_originals(T: int, OC: int, C: int, seed: int) -> None:
    """The strict backends' bits; backwards: those of the reversed arrays."""
    if backends.why_not("c-strict") is not None:
        pytest.skip("needs a C compiler")
    random = np.random.default_rng(seed)
    x, w = (random.normal(size=(n, C)).astype(np.float32) for n in (T, OC))
    zero = np.zeros(OC, np.float32)
    expected = backends.ops("c-strict").matmul(x, w)
    assert np.array_equal(matmul_in_order(x, w, zero), expected)
    turned = matmul_in_order(x[:, ::-1], w[:, ::-1], zero)
    assert np.array_equal(matmul_in_order(x, w, zero, backwards=True), turned)


def test_fused_multiply_add_rounds_once() -> None:
    """(1 + 2⁻¹²)² - 1 - 2⁻¹¹ is 2⁻²⁴ and not 0."""
    a = np.float32(1 + 2**-12)
    x, w = np.array([[a]]), np.array([[a]])
    first = np.array([-(1 + 2**-11)], np.float32)
    assert matmul_in_order(x, w, first, fused=True) == np.float32(2**-24)
    assert matmul_in_order(x, w, first) == 0


def test_the_command_prints_the_budget(tmp_path: Path) -> None:
    lay_out(tmp_path)
    words: list[Any] = ["diff", "m.bin", "--ids", "1,5", "--backends", "numpy", "--explain"]
    outcome = in_process(words, tmp_path)
    assert (outcome.code, outcome.err) == (0, b"")
    assert b"sums one after another" in outcome.out
    found = json.loads(in_process([*words, "--json"], tmp_path).out)
    assert found["bound"] > 0
    outcome = in_process([*words, "--train", "1"], tmp_path)
    assert outcome.code == 2
    assert b"--explain: not with --train" in outcome.err
