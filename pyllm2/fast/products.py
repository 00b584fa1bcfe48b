"""Products of rows of weights with one to many columns, each with the bits that it has alone.

A sum runs over sixteen lanes, in order, and ends with the same tree of additions whatever the tile:
so a column's bits depend neither on the number of columns nor on the place of a row. The rows of a
tile are read from memory for its first columns, and from the cache for all others.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils

from pyllm2.fast.ir import I32, I64, emits, fma, prefetch, processor_features, store
from pyllm2.fast.vectors import PREFETCH, V16, constant, each_vector, read, sums_of_four


def widest() -> int:
    """Columns of the widest tile: so many that the sums of four rows stay in registers."""
    return 4 if "avx512f" in processor_features() else 1


def _tile(b: Any, rows: int, columns: int, place: dict[str, Any], n: Any) -> None:
    """Emit `rows` × `columns` dot products: out[r][k] = Σ_j w[r][j] · x[k][j]; strides in bytes."""
    zero = constant(0.0)
    sums = [[cgutils.alloca_once(b, V16) for _ in range(columns)] for _ in range(rows)]
    for row in sums:
        for total in row:
            b.store(zero, total)
    ws = [b.add(place["w"], b.mul(place["w_stride"], I64(r))) for r in range(rows)]
    xs = [b.add(place["x"], b.mul(place["x_stride"], I64(k))) for k in range(columns)]

    def body(offset: Any, mask: Any) -> None:
        inputs = [read(b, b.add(x, offset), mask) for x in xs]
        for w, row in zip(ws, sums, strict=True):
            at = b.add(w, offset)
            if mask is None and rows > 1:
                prefetch(b, b.add(at, I64(PREFETCH)))
            weights = read(b, at, mask)
            for one, total in zip(inputs, row, strict=True):
                b.store(fma(b, weights, one, b.load(total)), total)

    each_vector(b, n, body)
    for k in range(columns):
        found = sums_of_four(b, [b.load(row[k]) for row in sums] + [zero] * (4 - rows))
        to = b.add(place["out"], b.mul(place["out_column"], I64(k)))
        for r in range(rows):
            one = b.extract_element(found, I32(r))
            store(b, one, b.add(to, b.mul(place["out_stride"], I64(r))))


def _products(rows: int) -> Any:
    @emits(types.void)
    def products(b, out, out_stride, out_column, w, w_stride, x, n, columns):
        """`rows` rows of w times the columns of x: out[r][k] = w[r] · x[k]

        out_stride, out_column: from row to row and from column to column of out, in bytes
        w_stride: from row to row of w, in bytes   x: (columns, n)
        """
        x_stride = b.mul(n, I64(4))

        def tile(k: Any, width: int) -> None:
            place = {"w": w, "w_stride": w_stride, "x_stride": x_stride}
            place |= {"out_stride": out_stride, "out_column": out_column}
            place["out"] = b.add(out, b.mul(out_column, k))
            place["x"] = b.add(x, b.mul(x_stride, k))
            _tile(b, rows, width, place, n)

        most = widest()
        done = b.and_(columns, I64(-most))
        with cgutils.for_range_slice(b, I64(0), done, I64(most), intp=I64) as (k, _):
            tile(k, most)
        while most > 1:
            most //= 2
            some = b.and_(columns, I64(most))
            with b.if_then(b.icmp_signed("!=", some, I64(0))):
                tile(done, most)
            done = b.add(done, some)

    return products


def _dots(rows: int) -> Any:
    @emits(types.void)
    def dots(b, out, out_stride, w, w_stride, x, n):
        """`rows` rows of w times one column, the tile of `products` without its loop."""
        place = {"w": w, "w_stride": w_stride, "x": x, "x_stride": I64(0)}
        place |= {"out": out, "out_stride": out_stride, "out_column": I64(0)}
        _tile(b, rows, 1, place, n)

    return dots


products4, products1 = _products(4), _products(1)
dots4, dots1 = _dots(4), _dots(1)
