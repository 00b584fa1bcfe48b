"""Every GPT-2 op on every backend: inside its bound, and obeying its laws."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.testing import GPT2_OPS, assert_all_close, check_op
from tests.arrays import with_gaps
from tests.tested import BACKENDS, ops_of


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", GPT2_OPS)
def test_op_stays_inside_its_bound_and_obeys_its_laws(name: str, backend: str) -> None:
    """Against a float64 evaluation, with a bound derived from the drawn data."""
    check_op(name, getattr(ops_of(backend, "gpt2"), name))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", GPT2_OPS)
@given(data=st.data())
def test_the_layout_of_an_array_does_not_matter(
    name: str, backend: str, data: st.DataObject
) -> None:
    """What is handed to C as a pointer must be made contiguous first."""
    inputs = data.draw(GPT2_OPS[name].inputs)
    found = getattr(ops_of(backend, "gpt2"), name)(*map(with_gaps, inputs))
    assert_all_close(found, GPT2_OPS[name].bound(*inputs), name)
