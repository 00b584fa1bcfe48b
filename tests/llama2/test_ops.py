"""Every op on every backend: inside its bound, and obeying its laws."""

from __future__ import annotations

import pytest

from pyllm2.testing import OPS, check_op
from tests.tested import BACKENDS, ops_of


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPS)
def test_op_stays_inside_its_bound_and_obeys_its_laws(name: str, backend: str) -> None:
    """Against a float64 evaluation, with a bound derived from the drawn data."""
    check_op(name, getattr(ops_of(backend), name))
