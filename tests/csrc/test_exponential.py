"""exp of the fast build, and the largest of some numbers, of csrc/common/exponential.h."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pyllm2.compiling import c_build
from pyllm2.testing.bounds import EXP_ULP
from tests.csrc.program import CSRC, compile_c
from tests.support.profiles import few

pytestmark = pytest.mark.skipif(
    c_build.why_not() is not None, reason=f"backend 'c' {c_build.why_not()}"
)
CODE = f"""
#include "{CSRC}/common/exponential.h"
void exponentials(float *y, const float *x, int64_t n)
{{
    for (int64_t i = 0; i < n; i++) {{
        y[i] = exponential(x[i]);
    }}
}}
float largest(const float *x, int64_t n) {{ return largest_of(x, n); }}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Both functions with the flags of the fast build."""
    folder = tmp_path_factory.mktemp("exponential")
    (folder / "e.c").write_text(CODE)
    flags = ["-shared", "-fPIC", *(f for f in c_build._FLAGS["fast"][0] if f != "-fopenmp")]
    compile_c(folder / "e.so", folder / "e.c", *flags)
    return ctypes.CDLL(str(folder / "e.so"))


def exp(compiled: Any, x: Any) -> Any:
    y = np.empty_like(x)
    address = (ctypes.c_void_p(a.ctypes.data) for a in (y, x))
    compiled.exponentials(*address, ctypes.c_int64(len(x)))
    return y


def test_exp_is_as_exact_as_the_bounds_assume(compiled: Any) -> None:
    """EXP_ULP wherever the result is a normal number."""
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.uniform(-87.33, 88.72, 200_000), rng.uniform(-1, 1, 100_000)])
    x = x.astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    error = np.abs(exp(compiled, x) - exact) / np.spacing(exact.astype(np.float32))
    assert error.max() <= EXP_ULP


def test_exp_beyond_the_range_of_float32(compiled: Any) -> None:
    """0 or a subnormal number below, infinity above, and NaN."""
    x = np.array([-np.inf, -1e30, -104, -88, 89, 1e30, np.inf, np.nan], np.float32)
    y = exp(compiled, x)
    assert (y[:3] == 0).all()
    assert 0 <= y[3] <= np.finfo(np.float32).tiny
    assert np.isposinf(y[4:7]).all()
    assert np.isnan(y[7])


@few()
@given(x=arrays(np.float32, st.integers(1, 50), elements=st.floats(width=32, allow_nan=False)))
def test_the_largest_number_is_the_largest(x: Any, compiled: Any) -> None:
    """Wherever it stands, of any number of numbers."""
    compiled.largest.restype = ctypes.c_float
    found = compiled.largest(ctypes.c_void_p(x.ctypes.data), ctypes.c_int64(len(x)))
    assert found == x.max()
