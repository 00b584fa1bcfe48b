"""Each vector intrinsic alone: the right numbers, and nothing written beyond its end."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba", reason="needs numba")
import numba

if numba.config.DISABLE_JIT:
    pytest.skip("vector code needs the compiler", allow_module_level=True)

from pyllm2.fast import products, vectors
from pyllm2.testing import assert_close, check_op
from pyllm2.testing.llama2 import bounds

SIZES = [1, 3, 15, 16, 17, 31, 32, 50]  # around one vector and two
GUARD = np.float32(-77)


def compiled(intrinsic: Any, arguments: str) -> Any:
    """A function of the named arguments that calls an intrinsic."""
    return numba.njit(eval(f"lambda {arguments}: f({arguments})", {"f": intrinsic}))


def place(a: Any) -> int:
    """The address of an array."""
    return int(a.__array_interface__["data"][0])


def guarded(n: int) -> Any:
    """n numbers to write, and some behind them that must stay."""
    return np.full(n + 20, GUARD, np.float32)


def drawn(*shape: int) -> Any:
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def written(out: Any, n: int) -> Any:
    assert (out[n:] == GUARD).all()
    return out[:n]


@pytest.mark.parametrize("rows", [1, 4])
def test_products_lie_within_the_bound_and_do_not_depend_on_each_other(rows: int) -> None:
    """One row, or four, that lie apart, with any number of columns; results apart."""
    arguments = "out, step, column, w, w_step, x, n, columns"
    product = compiled({1: products.products1, 4: products.products4}[rows], arguments)
    for n, K in [(n, 1 + n % 7) for n in SIZES] + [(33, 16), (16, 8), (5, 4)]:
        w, x, out = drawn(rows, n + 5), drawn(K, n), guarded(2 * rows * K)
        product(place(out), 8, 8 * rows, place(w), 4 * (n + 5), place(x), n, K)
        found = out[: 2 * rows * K].reshape(K, rows, 2)
        assert_close(found[:, :, 0], bounds.matmul(x, w[:, :n]))
        assert (found[:, :, 1] == GUARD).all()
        assert (out[2 * rows * K :] == GUARD).all()
        for k in range(K):
            alone = guarded(2 * rows)
            product(place(alone), 8, 0, place(w), 4 * (n + 5), place(x[k]), n, 1)
            np.testing.assert_array_equal(alone[0 : 2 * rows : 2], found[k, :, 0])


def test_scores_of_blocks_of_keys_lie_within_the_bound() -> None:
    """Sixteen keys side by side, in each of several blocks."""
    dot16 = compiled(vectors.dot16, "out, keys, q, hs, blocks")
    for hs, blocks in ((2, 1), (6, 3), (17, 2)):
        keys, q, out = drawn(blocks, hs, 16), drawn(1, hs), guarded(16 * blocks)
        dot16(place(out), place(keys), place(q), hs, blocks)
        expected = bounds.matmul(q, keys.transpose(0, 2, 1).reshape(-1, hs))
        assert_close(written(out, 16 * blocks)[None], expected)


def test_scores_become_weights_that_lie_within_the_bound() -> None:
    """Divided, the largest subtracted, exponentiated; divided by their sum it is a softmax."""
    scale = compiled(vectors.scale_and_largest, "a, n, divisor")
    exp = compiled(vectors.exp_and_sum, "a, n, largest")
    for n in SIZES:
        scores, divisor = drawn(1, n) * np.float32(9), np.float32(math.sqrt(6))
        a = guarded(n)
        a[:n] = scores
        largest = scale(place(a), n, divisor)
        np.testing.assert_array_equal(written(a, n), (scores / divisor)[0])
        assert largest == a[:n].max()
        total = exp(place(a), n, largest)
        assert_close(written(a, n)[None] / total, bounds.softmax(scores / divisor))


def test_exp_is_right_over_its_whole_range() -> None:
    """Also where it underflows, overflows, or has nothing to say."""
    exp = compiled(vectors.exp_and_sum, "a, n, largest")
    a = np.linspace(-87.33, 88.72, 200, dtype=np.float32)
    x = a.copy()
    exp(place(a), len(a), np.float32(0))
    assert (np.abs(a / np.exp(x.astype(np.float64)) - 1) < 4e-7).all()
    edges = np.array([-100, -88, 89, np.inf, -np.inf, np.nan], np.float32)
    exp(place(edges), len(edges), np.float32(0))
    np.testing.assert_array_equal(edges, np.array([0, 0, np.inf, np.inf, 0, np.nan], np.float32))


def test_a_mix_of_values_lies_within_the_bound() -> None:
    """Positions four at a time and what is left, each weight divided by their total."""
    mix = compiled(vectors.mix, "out, v, step, a, positions, n, total")
    for n in (1, 16, 18):
        for positions in (1, 4, 7):
            v, a, out = drawn(positions, n + 3), drawn(1, positions), guarded(n)
            mix(place(out), place(v), 4 * (n + 3), place(a), positions, n, np.float32(1))
            assert_close(written(out, n)[None], bounds.matmul(a, v[:, :n].T.copy()))
            mix(place(out), place(v), 4 * (n + 3), place(a), positions, n, np.float32(2))
            assert_close(2 * written(out, n)[None], bounds.matmul(a, v[:, :n].T.copy()))


@pytest.mark.parametrize(
    ("op", "name"), [("rmsnorm", "rmsnorm_row"), ("swiglu", "swiglu_row"), ("residual", "add")]
)
def test_a_row_lies_within_the_bound_of_its_op(op: str, name: str) -> None:
    """Row by row it is the op, with its laws."""
    more = ", eps" if op == "rmsnorm" else ""
    row = compiled(getattr(vectors, name), f"out, x, y, n{more}")

    def by_rows(x: Any, y: Any, *eps: float) -> Any:
        n = x.shape[1]
        found = []
        for t in range(len(x)):
            out, left, right = guarded(n), x[t].copy(), np.array(y if y.ndim == 1 else y[t])
            row(place(out), place(left), place(right), n, *map(np.float32, eps))
            found.append(written(out, n))
        return np.array(found)

    check_op(op, by_rows)
