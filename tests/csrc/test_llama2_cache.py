"""The memory of the key/value cache of csrc/llama2."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.compiling import c_build
from pyllm2.compiling.c_library import library
from pyllm2.llama2.ops_c import Ops
from tests.csrc.layout import offsets, starts

pytestmark = pytest.mark.skipif(
    c_build.why_not() is not None, reason=f"backend 'c' {c_build.why_not()}"
)


@given(L=st.integers(1, 4), NKV=st.integers(1, 3), group=st.integers(1, 3), S=st.integers(1, 30))
def test_keys_and_values_of_every_layer_and_position(L, NKV, group, S):
    """Two arrays (L, S, NKV * hs), the two tables of rope, one after the other, no float more."""
    llama2, hs = library("llama2", "strict"), 6
    config = llama2.struct("config")
    config.dim, config.n_layers = NKV * group * hs, L
    config.n_heads, config.n_kv_heads, config.head_size = NKV * group, NKV, hs
    shapes = [(L, S, NKV * hs)] * 2 + [(S, hs // 2)] * 2
    cache = llama2.struct("cache")
    n = llama2.cache_floats(config, S)
    assert n == sum(math.prod(shape) for shape in shapes)
    memory = np.full(n, np.nan, np.float32)
    llama2.cache_bind(cache, config, memory, S)
    assert cache.positions == S
    first = memory.ctypes.data // 4
    assert [offset - first for offset in offsets(cache)[1:]] == starts(shapes)
    cos, sin = Ops("strict").rope_tables(S, hs)
    np.testing.assert_array_equal(memory[-2 * cos.size :], np.concatenate([cos, sin]).ravel())
