"""AdamW and the norm on every backend: inside their bounds, and obeying their laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from pyllm2.testing import assert_all_close
from pyllm2.testing.adamw.table import OPS
from pyllm2.testing.op import hold
from tests.support.arrays import with_gaps
from tests.support.tested import functions_of


@pytest.mark.parametrize("name", OPS)
def test_op_stays_inside_its_bound_and_obeys_its_laws(name: str) -> None:
    """All backends on the same inputs, against a float64 evaluation of each."""
    hold(OPS[name], functions_of(name, "training"))


@given(inputs=OPS["global_norm"].inputs)
def test_the_norm_accepts_a_strided_gradient(inputs: tuple[np.ndarray]) -> None:
    """The norm only reads the gradient, which may be a view with gaps."""
    op = OPS["global_norm"]
    for label, function in functions_of("global_norm", "training").items():
        found = op.call(function, with_gaps(*inputs))
        assert_all_close(found, op.bound(*inputs), label, np.float64)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("n", [2**16, 2**16 + 3, 3 * 2**16 + 1])
def test_a_long_vector_is_processed_to_its_end(name: str, n: int) -> None:
    """Vectors of whole chunks, and with a remainder of 3 or 1 elements."""
    op, random = OPS[name], np.random.default_rng(n)
    w, dw, m, v = random.normal(size=(4, n)).astype(np.float32)
    hyper = 3, 1e-3, 0.9, 0.999, 1e-8, 0.01, 0.5
    inputs = (dw,) if name == "global_norm" else (w, dw, m, np.abs(v), *hyper)
    bounded = op.bound(*inputs)
    for label, function in functions_of(name, "training").items():
        assert_all_close(op.call(function, *inputs), bounded, label, op.dtype)
