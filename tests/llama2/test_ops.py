"""Every Llama-2 op on every backend: inside its bound, and obeying its laws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.llama2 import ops as specification
from pyllm2.testing import assert_all_close, bounds
from pyllm2.testing.llama2 import strategies
from pyllm2.testing.llama2.table import OPS
from pyllm2.testing.op import hold
from tests.support.arrays import with_gaps
from tests.support.profiles import few
from tests.support.tested import BACKENDS, functions_of, ops_of


@pytest.mark.parametrize("name", OPS)
def test_op_stays_inside_its_bound_and_obeys_its_laws(name: str) -> None:
    """All backends on the same inputs, against a float64 evaluation of each."""
    hold(OPS[name], functions_of(name))


@pytest.mark.parametrize("name", OPS)
@few(5)  # every example has every array in an odd layout
@given(data=st.data())
def test_the_layout_of_an_array_does_not_matter(name: str, data: Any) -> None:
    """An array is made contiguous before C gets a pointer to it."""
    inputs = data.draw(OPS[name].inputs)
    bounded = OPS[name].bound(*inputs)
    for label, function in functions_of(name).items():
        assert_all_close(function(*map(with_gaps, inputs)), bounded, label)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("hs", [2, 6, 8, 48, 64, 128])
def test_rope_angles_are_rounded_to_float32(backend: str, hs: int) -> None:
    """Power, frequency and product: at far positions these roundings outweigh all others."""
    h_over_hs = np.arange(0, hs, 2, dtype=np.float32) / np.float32(hs)
    power = (10000.0 ** h_over_hs.astype(np.float64)).astype(np.float32)
    angle = np.arange(4000, dtype=np.float32)[:, None] * (np.float32(1) / power)
    exact = np.exp(1j * angle.astype(np.float64))
    cos, sin = ops_of(backend).rope_tables(4000, hs)
    for found, expected in ((cos, exact.real), (sin, exact.imag)):
        assert np.abs(found - expected).max() <= 2 * bounds.COS_ULP * bounds.U


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b.endswith("-strict")])
@given(inputs=strategies.matmul_inputs())
def test_a_strict_matmul_is_the_naive_one_to_the_bit(backend: str, inputs: Any) -> None:
    """One running sum, ascending, rounded after every step."""
    found = ops_of(backend).matmul(*inputs)
    expected = specification._matmul_naive(*inputs)
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b.endswith("-strict")])
@few(20)
@given(inputs=strategies.matmul_packed_inputs())
def test_a_strict_matmul_packed_is_that_of_the_dequantised_matrix(
    backend: str, inputs: Any
) -> None:
    """To the bit: the same numbers, in the same order."""
    x, w, kind, b = inputs
    found = ops_of(backend).matmul_packed(x, w, kind, b)
    numbers = specification.dequantize_packed(w, kind)
    expected = specification._matmul_naive(x, numbers, b)
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))
    found = ops_of(backend).dequantize_packed(w, kind)
    np.testing.assert_array_equal(found, numbers)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "numpy"])
@pytest.mark.parametrize(("kind", "nbytes"), [(10, 84), (99, 18), (-1, 18), (2, 17), (2, 36)])
def test_blocks_that_have_no_kernel_are_refused(backend: str, kind: int, nbytes: int) -> None:
    """C and Numba would read past the rows: another kind, a part of a block, two blocks."""
    x, w = np.ones((1, 32), np.float32), np.zeros((3, nbytes), np.uint8)
    with pytest.raises(ValueError, match=r"kernel|per row|differ in length"):
        ops_of(backend).matmul_packed(x, w, kind)


def test_the_naive_matmul_is_a_matmul() -> None:
    """The strict backends' model lies within the bound itself."""
    hold(OPS["matmul"], {"naive": specification._matmul_naive})
