"""A picture shows what stands out in an array, wherever it is, in the room that there is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.observe import heat

SHAPES = st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple)


@given(SHAPES, st.integers(1, 50), st.integers(1, 30), st.data())
def test_the_largest_element_is_seen(
    shape: tuple[int, ...], columns: int, rows: int, data: st.DataObject
) -> None:
    """The picture fits; each cell has the value of its element; one outlier is in one cell."""
    array = np.random.default_rng(0).uniform(-1, 1, shape)
    at = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    array[at] = data.draw(st.sampled_from([7.0, -7.0, np.nan, np.inf]))
    found = heat.picture(array, columns, rows)
    R, K = found.values.shape
    assert rows >= R
    assert columns >= K
    cells = [(r, k) for r in range(R) for k in range(K) if found.index(r, k) is not None]
    assert [found.index(*cell) for cell in cells].count(at) == 1
    for r, k in cells:
        np.testing.assert_equal(found.values[r, k], array[found.index(r, k)])
    if found.elements == (1, 1):
        assert len(cells) == array.size
        assert found.legend == ""


def test_a_vector_is_read_in_lines() -> None:
    found = heat.picture(np.arange(10.0), 4, 10)
    assert [found.index(r, k) for r in range(3) for k in range(4)][:10] == [(i,) for i in range(10)]
    assert found.index(2, 3) is None
    assert found.colour(2, 3) is None


def test_a_huge_array_is_thinned_out() -> None:
    """Its rows; the picture says so, and an element has its place in the whole array."""
    array = np.ones((2**12, 2**10), np.float32)
    array[8, 3] = 7
    found = heat.picture(array, 10, 10)
    assert "every 4th row" in found.legend
    assert found.index(0, 0) == (8, 3)
    assert found.values[0, 0] == 7


@pytest.mark.parametrize("empty", [(), (1,)])
def test_a_single_number(empty: tuple[int, ...]) -> None:
    assert heat.picture(np.full(empty, 3.0), 8, 8).values.tolist() == [[3.0]]


def test_colours_say_sign_and_size() -> None:
    """More is brighter, either way; NaN and infinities have colours of their own."""
    scale = 2.0
    blues = [heat.colour(v, scale)[2] for v in (0.0, 0.5, 1.0, 2.0)]
    reds = [heat.colour(-v, scale)[0] for v in (0.0, 0.5, 1.0, 2.0)]
    assert blues == sorted(set(blues))
    assert reds == sorted(set(reds))
    assert heat.colour(0.0, 0.0) == heat.ZERO
    assert len({heat.colour(v, scale) for v in (np.nan, np.inf, 2.0, -2.0, 0.0)}) == 5
    assert heat.shade(0.0, scale) + heat.shade(2.0, scale) + heat.shade(np.nan, scale) == " @N"


def test_two_rows_share_a_line_in_colour() -> None:
    """And each row has its own where there is none."""
    found = heat.picture(np.eye(5), 10, 10)
    assert len(heat.lines_of(found, coloured=True)) == 3
    assert heat.lines_of(found, coloured=False)[1] == " @"
    assert "▀" in heat.lines_of(found, coloured=True)[0]
    assert "38;2;96;176;255;48;2;46;48;54m▀" in heat.lines_of(found, coloured=True)[0]
