"""Every op of GPT-2 on every backend: within its bound, and obeying its laws."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.testing import assert_all_close
from pyllm2.testing.gpt2.table import OPS
from pyllm2.testing.op import hold
from tests.support.arrays import with_gaps
from tests.support.profiles import few
from tests.support.tested import functions_of


@pytest.mark.parametrize("name", OPS)
def test_op_stays_inside_its_bound_and_obeys_its_laws(name: str) -> None:
    """All backends on the same inputs, against a float64 evaluation of each."""
    hold(OPS[name], functions_of(name, "gpt2"))


@pytest.mark.parametrize("name", OPS)
@few(5)  # every example has every array in an odd layout
@given(data=st.data())
def test_the_layout_of_an_array_does_not_matter(name: str, data: Any) -> None:
    """An array is made contiguous before C gets a pointer to it."""
    inputs = data.draw(OPS[name].inputs)
    bounded = OPS[name].bound(*inputs)
    for label, function in functions_of(name, "gpt2").items():
        assert_all_close(function(*map(with_gaps, inputs)), bounded, label)
