"""Our own matrix product: within the bound of any order of additions, whatever the shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba", reason="needs numba")
import numba

if numba.config.DISABLE_JIT:
    pytest.skip("vector code needs the compiler", allow_module_level=True)

from pyllm2 import gemm_numba
from pyllm2.gemm_numba import KC, OWN_WIDTH, SHARED, Products
from pyllm2.testing import bounds
from pyllm2.tile_numba import MR, NR

PRODUCTS = {threads: Products(threads) for threads in (1, 2)}

# Sizes on either side of every boundary: a tile's, a thread's share, a block of K, a packed part.
edges = sorted(
    {1, 2, MR - 1, MR, MR + 1, NR - 1, NR, NR + 1, OWN_WIDTH, OWN_WIDTH + 1, 2 * OWN_WIDTH}
)
sizes = st.one_of(st.sampled_from(edges), st.integers(1, 130))
depths = st.one_of(st.sampled_from([1, 15, 16, 17, KC, KC + 1]), st.integers(1, 60))


def matrix(random: Any, rows: int, columns: int, turned: bool, gap: int) -> Any:
    """A view: transposed or not, with `gap` floats between its rows."""
    shape = (columns, rows) if turned else (rows, columns)
    room = random.standard_normal((shape[0], shape[1] + gap), dtype=np.float32)
    view = room[:, : shape[1]]
    return view.T if turned else view


def product(case: Any, M: int, N: int, K: int, threads: int = 2) -> tuple[Any, Any, Any]:
    """What we get, what float64 gets, and how far they may be apart."""
    seed, a_turned, b_turned, a_gap, b_gap, start_kind = case
    random = np.random.default_rng(seed)
    a, b = matrix(random, M, K, a_turned, a_gap), matrix(random, K, N, b_turned, b_gap)
    out = random.standard_normal((M, N), dtype=np.float32)
    start = {
        "zero": None, "bias": random.standard_normal(N, dtype=np.float32), "itself": out,
        "matrix": random.standard_normal((M, N), dtype=np.float32),
    }[start_kind]  # fmt: skip
    before = np.zeros((M, N)) if start is None else np.broadcast_to(start, (M, N)).astype(float)
    value, error = bounds.matmul(a, b.T)
    # One more addition, of a number that was rounded before: (1 + u) each.
    error = error + 2 * bounds.U * (np.abs(value) + error + np.abs(before))
    PRODUCTS[threads](a, b, out, start)
    return out, value + before, error


cases = st.tuples(
    st.integers(0, 2**32), st.booleans(), st.booleans(), st.sampled_from([0, 0, 3]),
    st.sampled_from([0, 0, 5]), st.sampled_from(["zero", "bias", "itself", "matrix"]),
)  # fmt: skip


@given(case=cases, M=sizes, N=sizes, K=depths)
def test_every_element_lies_within_the_forward_error_bound(
    case: Any, M: int, N: int, K: int
) -> None:
    """|computed - exact| ≤ γ_K Σ|a·b|, for every variant, start and ragged edge."""
    found, value, error = product(case, M, N, K)
    assert (np.abs(found - value) <= error).all()


@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("start", ["zero", "bias", "itself", "matrix"])
@pytest.mark.parametrize(
    ("M", "N", "K"),
    [
        # K is packed in two parts, here of a and here of b
        (NR, 2 * NR, gemm_numba.K_BLOCKS * KC * SHARED // NR + 5),
        (2 * NR, NR, gemm_numba.K_BLOCKS * KC * SHARED // NR + 5),
        (SHARED + MR + 1, SHARED + NR + 1, 3),  # so is the shared operand, here rows of a
        (SHARED + NR + 1, SHARED + 1, 3),  # and here columns of b
        (40, 3 * OWN_WIDTH + 7, 2 * KC + 3),
        (3 * OWN_WIDTH + 7, 40, 2 * KC + 3),
    ],
)
def test_what_is_cut_into_parts_is_put_together(
    M: int, N: int, K: int, start: str, turned: tuple[bool, bool]
) -> None:
    """Shapes too large for one packing, in each direction."""
    found, value, error = product((1, *turned, 0, 0, start), M, N, K)
    assert (np.abs(found - value) <= error).all()


@settings(max_examples=10)
@given(case=cases, M=sizes, N=sizes, K=depths)
def test_the_bits_do_not_depend_on_the_number_of_threads(case: Any, M: int, N: int, K: int) -> None:
    """A sum is never shared between threads."""
    alone, together = (product(case, M, N, K, threads)[0] for threads in (1, 2))
    np.testing.assert_array_equal(alone, together)


@given(case=cases, M=sizes, N=sizes, K=st.integers(1, 40), data=st.data())
def test_whole_numbers_are_exact_and_nothing_else_is_written(
    case: Any, M: int, N: int, K: int, data: st.DataObject
) -> None:
    """Small integers leave no room for rounding, and what lies around the result stays."""
    random = np.random.default_rng(case[0])
    a, b = (random.integers(-8, 9, shape).astype(np.float32) for shape in ((M, K), (K, N)))
    room = np.full((M + 2, N + 7), np.float32(0.5))
    PRODUCTS[2](a, b, room[1:-1, 3 : 3 + N])
    np.testing.assert_array_equal(room[1:-1, 3 : 3 + N], a.astype(int) @ b.astype(int))
    room[1:-1, 3 : 3 + N] = 0.5
    assert (room == 0.5).all()


@pytest.mark.parametrize("what", [np.nan, np.inf])
@given(M=sizes, N=sizes, K=depths, data=st.data())
@settings(max_examples=10)
def test_nan_and_infinity_reach_their_row_and_no_other(
    what: float, M: int, N: int, K: int, data: st.DataObject
) -> None:
    """Padding of panels is multiplied with them too, and must stay outside."""
    a, b = np.ones((M, K), np.float32), np.ones((K, N), np.float32)
    i, k = data.draw(st.integers(0, M - 1)), data.draw(st.integers(0, K - 1))
    a[i, k] = what
    out = np.zeros((M, N), np.float32)
    PRODUCTS[2](a, b, out)
    expected = np.full((M, N), np.float32(K))
    expected[i] = what
    np.testing.assert_array_equal(out, expected)
