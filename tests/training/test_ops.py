"""AdamW and the norm on every backend: inside their bounds, and obeying their laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.testing import TRAINING_OPS, assert_all_close, check_op
from tests.arrays import with_gaps
from tests.tested import BACKENDS, ops_of


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TRAINING_OPS)
def test_op_stays_inside_its_bound_and_obeys_its_laws(name: str, backend: str) -> None:
    """Against a float64 evaluation, with a bound derived from the drawn data."""
    check_op(name, getattr(ops_of(backend, "training"), name))


@pytest.mark.parametrize("backend", BACKENDS)
@given(data=st.data())
def test_the_gradient_may_lie_anywhere_in_memory(backend: str, data: st.DataObject) -> None:
    """It is only read: a view with gaps does as well."""
    op = TRAINING_OPS["global_norm"]
    (dw,) = data.draw(op.inputs)
    found = op.call(ops_of(backend, "training").global_norm, with_gaps(dw))
    assert_all_close(found, op.bound(dw), "global_norm", np.float64)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TRAINING_OPS)
@pytest.mark.parametrize("n", [2**16, 2**16 + 3, 3 * 2**16 + 1])
def test_a_long_vector_is_done_to_its_end(backend: str, name: str, n: int) -> None:
    """Whatever the number of elements that an implementation takes at a time."""
    op, random = TRAINING_OPS[name], np.random.default_rng(n)
    w, dw, m, v = random.normal(size=(4, n)).astype(np.float32)
    hyper = 3, 1e-3, 0.9, 0.999, 1e-8, 0.01, 0.5
    inputs = (dw,) if name == "global_norm" else (w, dw, m, np.abs(v), *hyper)
    found = op.call(getattr(ops_of(backend, "training"), name), *inputs)
    assert_all_close(found, op.bound(*inputs), name, op.dtype)
