"""Products of int8 rows, 64 bytes at a time: `vectors` for weights quantised in groups.

A product of 64 bytes is 16 integers, each the exact sum of four neighbouring products. They are
scaled to floats in place, and only the sum of a whole row is horizontal. There are two ways to the
16 integers, with the same bits: one instruction on processors with VNNI, a few portable ones
elsewhere.
"""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from pyllm2.compiling.numba_build import device
from pyllm2.fast.ir import (
    F32,
    I8,
    I32,
    I64,
    call,
    emits,
    fma,
    load,
    numbers,
    prefetch,
    processor_features,
    put_float,
    shuffle,
    splat,
    store,
)
from pyllm2.fast.vectors import J16, LINE, PREFETCH, V16, constant, each_vector, read, sums_of_four

B16 = ir.VectorType(I8, 16)
ZEROS = numbers(I32, [0] * 16)


def has_vnni() -> bool:
    """Whether Numba compiles for a processor with VNNI."""
    return {"avx512f", "avx512bw", "avx512vnni"} <= processor_features()


def _load_line(b: Any, address: Any, width: int) -> Any:
    """`width` bytes, then zeros up to 64."""
    kind = ir.VectorType(I8, width)
    lanes = [min(lane, width) for lane in range(LINE)]  # lane `width` is the first zero
    return shuffle(b, load(b, address, kind, align=1), ir.Constant(kind, None), *lanes)


def _widened_products(b: Any, w: Any, x: Any) -> Any:
    """64 products, then twice the sums of neighbours: LLVM makes vpmaddwd of it."""
    wide = ir.VectorType(I32, 64)
    sums = b.mul(b.sext(w, wide), b.sext(x, wide))
    for lanes in (64, 32):
        evens = shuffle(b, sums, sums, *range(0, lanes, 2))
        sums = b.add(evens, shuffle(b, sums, sums, *range(1, lanes, 2)))
    return sums


def _vpdpbusd(b: Any, start: Any, unsigned: Any, signed: Any) -> Any:
    return call(b, "llvm.x86.avx512.vpdpbusd.512", J16, start, unsigned, signed)


def _products_of_four(b: Any, ws: list[Any], x: Any, vnni: bool) -> list[Any]:
    """For each w of 64 bytes the 16 integers Σ w · x over four neighbours."""
    if not vnni:
        return [_widened_products(b, w, x) for w in ws]
    # The instruction takes one operand as unsigned: w + 128, which is w with the sign bit flipped.
    # The sum starts at -128 · Σ x to make up for it.
    high = numbers(I8, [-128] * 64)
    start = b.sub(ZEROS, _vpdpbusd(b, ZEROS, high, x))
    return [_vpdpbusd(b, start, b.xor(w, high), x) for w in ws]


def _float_at(b: Any, base: Any, index: Any) -> Any:
    return load(b, b.add(base, b.mul(index, I64(4))), F32)


def _dot_q8(rows: int, group: int, vnni: bool) -> Any:
    """`rows` products for groups of 4, 8, 16 or 32, or (group = 64) of any multiple of 64."""

    def emit(b, out, stride, w, w_stride, scales, x, xs, groups, size):
        totals = [cgutils.alloca_once_value(b, constant(0.0)) for _ in range(rows)]
        starts = [b.add(w, b.mul(w_stride, I64(k))) for k in range(rows)]

        def spread(base: Any, g: Any, width: int = LINE) -> Any:
            """The scales of `width` bytes from group g on, one per integer."""
            n = width // group
            some = load(b, b.add(base, b.mul(g, I64(4))), ir.VectorType(F32, n))
            return shuffle(b, some, some, *(min(4 * i // group, n - 1) for i in range(16)))

        def line(offset: Any, w_scales: list[Any], x_scale: Any, width: int = LINE) -> None:
            ws = [_load_line(b, b.add(start, offset), width) for start in starts]
            if rows > 1 and width == LINE:
                for start in starts:
                    prefetch(b, b.add(start, b.add(offset, I64(PREFETCH))))
            sums = _products_of_four(b, ws, _load_line(b, b.add(x, offset), width), vnni)
            for integers, w_scale, total in zip(sums, w_scales, totals, strict=True):
                scaled = b.fmul(b.sitofp(integers, V16), w_scale)
                b.store(fma(b, scaled, x_scale, b.load(total)), total)

        def groups_of_line(g: Any, width: int = LINE) -> None:
            w_scales = [spread(s, g, width) for s in scales]
            line(b.mul(g, I64(group)), w_scales, spread(xs, g, width), width)

        if group < LINE:
            n = LINE // group
            whole = b.and_(groups, I64(-n))
            with cgutils.for_range_slice(b, I64(0), whole, I64(n), intp=I64) as (g, _):
                groups_of_line(g)
            while n > 1:  # the rest: half a line, a quarter, …
                g, n = b.and_(groups, I64(-n)), n // 2
                with b.if_then(b.icmp_signed("!=", b.and_(groups, I64(n)), I64(0))):
                    groups_of_line(g, n * group)
        else:
            with cgutils.for_range(b, groups, intp=I64) as g:
                begin = b.mul(g.index, size)
                end = b.add(begin, size)
                w_scales, x_scale = [spread(s, g.index) for s in scales], spread(xs, g.index)
                with cgutils.for_range_slice(b, begin, end, I64(LINE), intp=I64) as (at, _):
                    line(at, w_scales, x_scale)
        zeros = [constant(0.0)] * (4 - rows)
        found = sums_of_four(b, [b.load(total) for total in totals] + zeros)
        for k in range(rows):
            store(b, b.extract_element(found, I32(k)), b.add(out, b.mul(stride, I64(k))))

    if rows == 1:

        @emits(types.void)
        def dot1_q8(b, out, w, scales, x, xs, groups, size):
            """out = w · x; scales: of the row's first group, xs: of the first group of x."""
            emit(b, out, I64(0), w, I64(0), [scales], x, xs, groups, size)

        return dot1_q8

    @emits(types.void)
    def dot4_q8(b, out, stride, w, w_stride, s0, s1, s2, s3, x, xs, groups, size):
        """out[k] = w[k] · x for four rows; strides in bytes."""
        emit(b, out, stride, w, w_stride, [s0, s1, s2, s3], x, xs, groups, size)

    return dot4_q8


@functools.cache
def dots(group: int, vnni: bool) -> tuple[Any, Any]:
    """The products of four rows and of one."""
    return _dot_q8(4, group, vnni), _dot_q8(1, group, vnni)


@emits(types.void)
def dot_any_q8(b, out, w, scales, x, xs, groups, size):
    """out = w · x for groups of any size, added and scaled in the order of the specification."""
    total = cgutils.alloca_once_value(b, ir.Constant(F32, 0.0))
    integers = cgutils.alloca_once(b, J16)
    with cgutils.for_range(b, groups, intp=I64) as g:
        begin = b.mul(g.index, size)
        b.store(ZEROS, integers)

        def body(offset: Any, mask: Any) -> None:
            at = b.add(begin, b.sdiv(offset, I64(4)))  # offset is for 4-byte elements
            wide = []
            for address in (b.add(w, at), b.add(x, at)):
                if mask is None:
                    sixteen = load(b, address, B16, align=1)
                else:
                    pointer = b.inttoptr(address, B16.as_pointer())
                    name, rest = "llvm.masked.load.v16i8.p0", ir.Constant(B16, None)
                    sixteen = call(b, name, B16, pointer, I32(1), mask, rest)
                wide.append(b.sext(sixteen, J16))
            b.store(b.add(b.load(integers), b.mul(*wide)), integers)

        each_vector(b, size, body)
        exact = call(b, "llvm.vector.reduce.add.v16i32", I32, b.load(integers))
        term = b.fmul(b.sitofp(exact, F32), _float_at(b, scales, g.index))
        term = b.fmul(term, _float_at(b, xs, g.index))
        b.store(b.fadd(b.load(total), term), total)
    store(b, b.load(total), out)


@emits(types.float32)
def quantize_group(b, values, x, n):
    """values = x / scale, rounded half away from zero; returns scale = max|x| / 127."""
    # The bits of |x| compare like |x|, and NaN is the largest, so it is not lost.
    largest, no_sign = cgutils.alloca_once_value(b, ZEROS), numbers(I32, [2**31 - 1] * 16)

    def look(offset: Any, mask: Any) -> None:
        sixteen = read(b, b.add(x, offset), mask)
        sizes = b.and_(b.bitcast(sixteen, J16), no_sign)
        b.store(call(b, "llvm.smax.v16i32", J16, b.load(largest), sizes), largest)

    each_vector(b, n, look)
    bits = call(b, "llvm.vector.reduce.smax.v16i32", I32, b.load(largest))
    scale = b.fdiv(b.bitcast(bits, F32), ir.Constant(F32, 127.0))
    divisor = splat(b, scale, 16)
    usable = b.fcmp_ordered(">", divisor, constant(0.0))

    def write(offset: Any, mask: Any) -> None:
        quotient = b.fdiv(read(b, b.add(x, offset), mask), divisor)
        usual = b.and_(usable, b.fcmp_ordered("==", quotient, quotient))
        quotient = b.select(usual, quotient, constant(0.0))
        rounded = call(b, "llvm.round.v16f32", V16, quotient)
        for name, limit in (("min", 127.0), ("max", -127.0)):
            rounded = call(b, f"llvm.{name}num.v16f32", V16, rounded, constant(limit))
        sixteen = b.trunc(b.fptosi(rounded, J16), B16)
        address = b.add(values, b.sdiv(offset, I64(4)))
        if mask is None:
            store(b, sixteen, address, align=1)
        else:
            pointer = b.inttoptr(address, B16.as_pointer())
            name = "llvm.masked.store.v16i8.p0"
            call(b, name, ir.VoidType(), sixteen, pointer, I32(1), mask)

    each_vector(b, n, write)
    return scale


# ---- whole rows and matrices ------------------------------------------------------------------


@device()
def quantize_row(values, scales, x, n, size):
    """Quantise the whole groups of a row; what is left over is not written."""
    for g in range(n // size):
        put_float(scales + 4 * g, quantize_group(values + g * size, x + 4 * g * size, size))


def _some_rows(group):
    """`matvec_q8` for groups of one kind, see `_dot_q8`."""
    four, one = dots(group, has_vnni())

    @device()
    def rows(out, w, scales, x, xs, n, size, begin, end):
        groups, quarter = n // size, (end - begin) // 4
        for i in range(begin, begin + quarter):
            to, row, far = out + 4 * i, w + i * n, quarter * n
            s0 = scales + 4 * (i * n // size)
            s1 = scales + 4 * ((i + quarter) * n // size)
            s2 = scales + 4 * ((i + 2 * quarter) * n // size)
            s3 = scales + 4 * ((i + 3 * quarter) * n // size)
            four(to, 4 * quarter, row, far, s0, s1, s2, s3, x, xs, groups, size)
        for i in range(begin + 4 * quarter, end):
            one(out + 4 * i, w + i * n, scales + 4 * (i * n // size), x, xs, groups, size)

    return rows


_rows_4, _rows_8, _rows_16, _rows_32, _rows_64 = (_some_rows(g) for g in (4, 8, 16, 32, 64))


@device()
def matvec_q8(out, w, scales, x, xs, n, size, begin, end):
    """out[i] = w[i] · x for rows begin … end - 1, four at a time from four distant places.

    xs: scales of x   n: row length   size: of a group. The first scale of a row is that of the
    group that holds the row's first element.
    """
    if size % 64 == 0:
        _rows_64(out, w, scales, x, xs, n, size, begin, end)
    elif size == 32:
        _rows_32(out, w, scales, x, xs, n, size, begin, end)
    elif size == 16:
        _rows_16(out, w, scales, x, xs, n, size, begin, end)
    elif size == 8:
        _rows_8(out, w, scales, x, xs, n, size, begin, end)
    elif size == 4:
        _rows_4(out, w, scales, x, xs, n, size, begin, end)
    else:
        for i in range(begin, end):
            first = scales + 4 * (i * n // size)
            dot_any_q8(out + 4 * i, w + i * n, first, x, xs, n // size, size)
