"""The two orders of rotated numbers: inverse to each other, and the same rotation."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.llama2 import ops
from pyllm2.llama2.rotary_order import half_split, interleaved


@given(heads=st.integers(1, 4), pairs=st.integers(1, 5), columns=st.sampled_from([(), (1,), (3,)]))
def test_there_and_back(heads: int, pairs: int, columns: tuple[int, ...]) -> None:
    """Vectors and matrices."""
    rows = np.arange(heads * 2 * pairs * int(np.prod(columns)), dtype=np.float32)
    rows = rows.reshape(heads * 2 * pairs, *columns)
    assert np.array_equal(half_split(interleaved(rows, heads), heads), rows)
    assert np.array_equal(interleaved(half_split(rows, heads), heads), rows)


@given(heads=st.integers(1, 3), pairs=st.integers(1, 4), seed=st.integers(0, 99))
def test_turning_halves_is_turning_pairs(heads: int, pairs: int, seed: int) -> None:
    """rope on interleaved numbers = the half-split rotation, reordered."""
    hs, rng = 2 * pairs, np.random.default_rng(seed)
    x = rng.standard_normal((heads, hs)).astype(np.float32)
    cos, sin = ops.rope_tables(4, hs)
    first, second, c, s = x[:, :pairs], x[:, pairs:], cos[3], sin[3]
    turned = np.concatenate([first * c - second * s, second * c + first * s], axis=1)
    pairwise = interleaved(x.ravel(), heads).reshape(1, heads, hs)
    found = ops.rope(pairwise, cos[3:], sin[3:])
    np.testing.assert_allclose(half_split(found.ravel(), heads), turned.ravel(), atol=1e-6)
