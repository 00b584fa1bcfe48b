"""Every op on every backend: inside its bound, and obeying its laws."""

from __future__ import annotations

import pytest

from pyllm2 import backends
from pyllm2.testing import OPS, check_op


@pytest.mark.parametrize("backend", backends.NAMES)
@pytest.mark.parametrize("name", OPS)
def test_op_stays_inside_its_bound_and_obeys_its_laws(name: str, backend: str) -> None:
    """Against a float64 evaluation, with a bound derived from the drawn data."""
    reason = backends.why_not(backend)
    if reason is not None:
        pytest.skip(f"backend {backend} {reason}")
    check_op(name, getattr(backends.ops(backend), name))
