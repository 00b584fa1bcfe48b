"""Every op of Llama-2's training on every backend: inside its bound, and obeying its laws."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllm2.testing import LLAMA2_TRAINING_OPS, assert_all_close, check_op
from tests.arrays import with_gaps
from tests.tested import BACKENDS, ops_of


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LLAMA2_TRAINING_OPS)
def test_op_stays_inside_its_bound_and_obeys_its_laws(name: str, backend: str) -> None:
    """Against a float64 evaluation, with a bound derived from the drawn data."""
    check_op(name, getattr(ops_of(backend), name), model="llama2")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LLAMA2_TRAINING_OPS)
@settings(max_examples=5)  # every example has every array in an odd layout
@given(data=st.data())
def test_the_layout_of_an_array_does_not_matter(
    name: str, backend: str, data: st.DataObject
) -> None:
    """What is handed to C as a pointer must be made contiguous first."""
    op = LLAMA2_TRAINING_OPS[name]
    inputs = data.draw(op.inputs)
    found = getattr(ops_of(backend), name)(*map(with_gaps, inputs))
    assert_all_close(found, op.bound(*inputs), name)
