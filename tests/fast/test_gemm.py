"""The Numba matrix product: error bound for every shape, layout and start value."""

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

from pyllm2.fast.gemm import K_BLOCKS, KC, OWN_WIDTH, SHARED, Products
from pyllm2.fast.tile import MR, NR
from pyllm2.testing.bounds import U
from pyllm2.testing.llama2 import bounds
from tests.support.profiles import few

PRODUCTS = {threads: Products(threads) for threads in (1, 2)}

# Sizes around every boundary: of a tile, a thread's share, a block of K, a packed part.
edges = sorted(
    {1, 2, MR - 1, MR, MR + 1, NR - 1, NR, NR + 1, OWN_WIDTH, OWN_WIDTH + 1, 2 * OWN_WIDTH}
)
sizes = st.one_of(st.sampled_from(edges), st.integers(1, 130))
depths = st.one_of(st.sampled_from([1, 15, 16, 17, KC, KC + 1]), st.integers(1, 60))


def matrix(random: Any, rows: int, columns: int, transposed: bool, gap: int) -> Any:
    """A random matrix as a view with `gap` floats between rows (columns if transposed)."""
    shape = (columns, rows) if transposed else (rows, columns)
    buffer = random.standard_normal((shape[0], shape[1] + gap), dtype=np.float32)
    view = buffer[:, : shape[1]]
    return view.T if transposed else view


def product(case: Any, M: int, N: int, K: int, threads: int = 2) -> tuple[Any, Any, Any]:
    """The product, its float64 value, and the error bound."""
    seed, a_transposed, b_transposed, a_gap, b_gap, start_kind = case
    random = np.random.default_rng(seed)
    a, b = matrix(random, M, K, a_transposed, a_gap), matrix(random, K, N, b_transposed, b_gap)
    out = random.standard_normal((M, N), dtype=np.float32)
    start = {
        "zero": None,
        "bias": random.standard_normal(N, dtype=np.float32),
        "itself": out,
        "matrix": random.standard_normal((M, N), dtype=np.float32),
    }[start_kind]
    before = np.zeros((M, N)) if start is None else np.broadcast_to(start, (M, N)).astype(float)
    value, error = bounds.matmul(a, b.T)
    # Adding the start value is one more rounding, of a sum that was rounded before.
    error = error + 2 * U * (np.abs(value) + error + np.abs(before))
    PRODUCTS[threads](a, b, out, start)
    return out, value + before, error


cases = st.tuples(
    st.integers(0, 2**32),  # seed
    st.booleans(),  # a transposed
    st.booleans(),  # b transposed
    st.sampled_from([0, 0, 3]),  # gap of a
    st.sampled_from([0, 0, 5]),  # gap of b
    st.sampled_from(["zero", "bias", "itself", "matrix"]),  # start
)


@given(case=cases, M=sizes, N=sizes, K=depths)
def test_every_element_lies_within_the_forward_error_bound(
    case: Any, M: int, N: int, K: int
) -> None:
    """|computed - exact| ≤ γ_K Σ|a·b| for all layouts, start values and incomplete tiles."""
    found, value, error = product(case, M, N, K)
    assert (np.abs(found - value) <= error).all()


@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("start", ["zero", "bias", "itself", "matrix"])
@pytest.mark.parametrize(
    ("M", "N", "K"),
    [
        # K is packed in two parts: of a, then of b
        (NR, 2 * NR, K_BLOCKS * KC * SHARED // NR + 5),
        (2 * NR, NR, K_BLOCKS * KC * SHARED // NR + 5),
        (SHARED + MR + 1, SHARED + NR + 1, 3),  # the shared operand in two parts: rows of a
        (SHARED + NR + 1, SHARED + 1, 3),  # columns of b
        (40, 3 * OWN_WIDTH + 7, 2 * KC + 3),
        (3 * OWN_WIDTH + 7, 40, 2 * KC + 3),
    ],
)
def test_products_packed_in_parts_are_complete(
    M: int, N: int, K: int, start: str, transposed: tuple[bool, bool]
) -> None:
    """Shapes too large for one packing in M, N or K stay within the bound."""
    found, value, error = product((1, *transposed, 0, 0, start), M, N, K)
    assert (np.abs(found - value) <= error).all()


@few(10)
@given(case=cases, M=sizes, N=sizes, K=depths)
def test_the_bits_do_not_depend_on_the_number_of_threads(case: Any, M: int, N: int, K: int) -> None:
    """One thread and two give the same bits: a sum is never split between threads."""
    alone, together = (product(case, M, N, K, threads)[0] for threads in (1, 2))
    np.testing.assert_array_equal(alone, together)


@given(case=cases, M=sizes, N=sizes, K=st.integers(1, 40), data=st.data())
def test_integers_are_exact_and_nothing_else_is_written(
    case: Any, M: int, N: int, K: int, data: st.DataObject
) -> None:
    """Products of small integers are exact, and the memory around the result is unchanged."""
    random = np.random.default_rng(case[0])
    a, b = (random.integers(-8, 9, shape).astype(np.float32) for shape in ((M, K), (K, N)))
    buffer = np.full((M + 2, N + 7), np.float32(0.5))
    PRODUCTS[2](a, b, buffer[1:-1, 3 : 3 + N])
    np.testing.assert_array_equal(buffer[1:-1, 3 : 3 + N], a.astype(int) @ b.astype(int))
    buffer[1:-1, 3 : 3 + N] = 0.5
    assert (buffer == 0.5).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@given(M=sizes, N=sizes, K=depths, data=st.data())
@settings(max_examples=10)
def test_nan_and_infinity_stay_in_their_row(
    value: float, M: int, N: int, K: int, data: st.DataObject
) -> None:
    """A NaN or infinity changes its own row only, although padding is multiplied too."""
    a, b = np.ones((M, K), np.float32), np.ones((K, N), np.float32)
    i, k = data.draw(st.integers(0, M - 1)), data.draw(st.integers(0, K - 1))
    a[i, k] = value
    out = np.zeros((M, N), np.float32)
    PRODUCTS[2](a, b, out)
    expected = np.full((M, N), np.float32(K))
    expected[i] = value
    np.testing.assert_array_equal(out, expected)
