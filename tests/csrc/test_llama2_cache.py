"""The memory of the key/value cache of csrc/llama2."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.compiling import c_build
from pyllm2.compiling.c_library import library
from tests.csrc.layout import offsets, starts

pytestmark = pytest.mark.skipif(
    c_build.why_not() is not None, reason=f"backend 'c' {c_build.why_not()}"
)


@given(L=st.integers(1, 4), NKV=st.integers(1, 3), group=st.integers(1, 3), S=st.integers(1, 30))
def test_keys_and_values_of_every_layer_and_position(L, NKV, group, S):
    """Two arrays (L, S, NKV * hs), one after the other, and no float more."""
    llama2, hs = library("llama2", "strict"), 6
    config = llama2.struct("config", **dict.fromkeys(llama2.fields("config"), 0))
    config.dim, config.n_layers = NKV * group * hs, L
    config.n_heads, config.n_kv_heads = NKV * group, NKV
    shape = (L, S, NKV * hs)
    cache = llama2.struct("cache")
    llama2.cache_bind(cache, config, None, S)
    assert cache.positions == S
    assert offsets(cache)[1:] == starts([shape] * 2)
    assert llama2.cache_floats(config, S) == 2 * L * S * NKV * hs
