"""Rows in blocks of GGUF: expanded to floats, or multiplied as they are.

A block becomes vectors of 16 floats in registers, and these are multiplied and added exactly as
`products` does it with floats from memory. Scales and integers have at most 24 bits together, so
every float is the dequantised number to the last bit, and so is the product. Layouts are stated in
`formats/gguf_blocks.py`.

The numbers of a block with 4 or 5 bits are a table of 16 or 32 floats. With AVX-512 a lookup in
registers takes the place of conversion, scale and minimum.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from pyllm2.compiling.numba_build import device
from pyllm2.fast.ir import (
    F32,
    I1,
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
    shuffle,
    splat,
    store,
)
from pyllm2.fast.vectors import J16, LINE, PREFETCH, V16, constant, sums_of_four

# Ids of `formats.gguf_blocks.TYPES`, and bytes of a block.
Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K = 2, 3, 6, 7, 8, 12, 13, 14
BYTES = {Q4_0: 18, Q4_1: 20, Q5_0: 22, Q5_1: 24, Q8_0: 34, Q4_K: 144, Q5_K: 176, Q6_K: 210}
B4, B8, B16, I16 = (*(ir.VectorType(I8, n) for n in (4, 8, 16)), ir.IntType(16))


def numbers_of(kind: int) -> int:
    """Numbers of a block."""
    return 256 if kind >= Q4_K else 32


# ---- parts of a block -------------------------------------------------------------------------


def _at(b: Any, address: Any, offset: int) -> Any:
    return b.add(address, I64(offset))


def _whole(value: int) -> Any:
    """The same integer in sixteen lanes."""
    return numbers(I32, [value] * 16)


def _bytes(b: Any, address: Any, offset: int) -> Any:
    """Sixteen bytes as integers."""
    return b.zext(load(b, _at(b, address, offset), B16, align=1), J16)


def _half(b: Any, address: Any, offset: int) -> Any:
    """The IEEE half at an address.

    Without an instruction for it: exponent and fraction, as those of a float, are off by 2^112.
    """
    bits = load(b, _at(b, address, offset), I16, align=1)
    features = processor_features()
    if "f16c" in features or "neon" in features:
        return b.fpext(b.bitcast(bits, ir.HalfType()), F32)
    wide = b.zext(bits, I32)
    magnitude = b.shl(b.and_(wide, I32(0x7FFF)), I32(13))
    usual = b.fmul(b.bitcast(magnitude, F32), ir.Constant(F32, 2.0**112))
    beyond = b.bitcast(b.or_(magnitude, I32(0x7F800000)), F32)  # infinity or NaN
    is_beyond = b.icmp_signed(">=", magnitude, I32(0x7C00 << 13))
    size = b.bitcast(b.select(is_beyond, beyond, usual), I32)
    return b.bitcast(b.or_(size, b.shl(b.and_(wide, I32(0x8000)), I32(16))), F32)


def _floats(b: Any, integers: Any) -> Any:
    return b.sitofp(integers, V16)


class _Lines:
    """Numbers d · (q - offset) + m for q of `bits` bits: a table in registers, or computed."""

    def __init__(self, b: Any, bits: int, d: Any, m: Any, offset: int = 0) -> None:
        self._b, self._bits, self._offset = b, bits, offset
        self._d, self._m = splat(b, d, 16), None if m is None else splat(b, m, 16)
        self._table: list[Any] = []
        if "avx512f" in processor_features():
            starts = range(0, 2**bits, 16)
            self._table = [self._number(numbers(I32, range(s, s + 16))) for s in starts]

    def _number(self, q: Any) -> Any:
        b = self._b
        centred = _floats(b, b.sub(q, _whole(self._offset)) if self._offset else q)
        return b.fmul(centred, self._d) if self._m is None else fma(b, centred, self._d, self._m)

    def of(self, q: Any, clean: bool = True) -> Any:
        """Sixteen numbers. clean: whether q has no bits above those that count."""
        b = self._b
        if len(self._table) == 1:
            return call(b, "llvm.x86.avx512.permvar.sf.512", V16, self._table[0], q)
        if self._table:
            low, high = self._table
            return call(b, "llvm.x86.avx512.vpermi2var.ps.512", V16, low, q, high)
        return self._number(q if clean else b.and_(q, _whole(2**self._bits - 1)))


# ---- the vectors of a block, in the order of its numbers ---------------------------------------


def _q8_0(b: Any, w: Any) -> list[Any]:
    d = splat(b, _half(b, w, 0), 16)
    signed = [b.sext(load(b, _at(b, w, 2 + i), B16, align=1), J16) for i in (0, 16)]
    return [b.fmul(_floats(b, q), d) for q in signed]


def _q4(b: Any, w: Any, minimum: bool) -> list[Any]:
    """Q4_0 and Q4_1"""
    m = _half(b, w, 2) if minimum else None
    line = _Lines(b, 4, _half(b, w, 0), m, 0 if minimum else 8)
    q = _bytes(b, w, 4 if minimum else 2)
    return [line.of(q, clean=False), line.of(b.lshr(q, _whole(4)))]


def _q5(b: Any, w: Any, minimum: bool) -> list[Any]:
    """Q5_0 and Q5_1. The fifth bits are 32 bits by themselves."""
    m = _half(b, w, 2) if minimum else None
    line = _Lines(b, 5, _half(b, w, 0), m, 0 if minimum else 16)
    at = 4 if minimum else 2
    fifth = b.bitcast(load(b, _at(b, w, at), I32, align=1), ir.VectorType(I1, 32))
    q, found = _bytes(b, w, at + 4), []
    for lower, first in ((b.and_(q, _whole(15)), 0), (b.lshr(q, _whole(4)), 16)):
        bits = shuffle(b, fifth, fifth, *range(first, first + 16))
        found.append(line.of(b.select(bits, b.or_(lower, _whole(16)), lower)))
    return found


def _scales_of_k(b: Any, w: Any) -> list[list[Any]]:
    """Scales and minimums of Q4_K and Q5_K, eight each, times d and -dmin.

    Bytes 0 to 3 have the lower six bits of the first four scales, 4 to 7 those of the minimums;
    bytes 8 to 11 four bits each of the other scales and minimums, whose upper two are in 0 to 7.
    """
    first, second, third = (load(b, _at(b, w, at), I32, align=1) for at in (4, 8, 12))
    found = []
    for packed, shift, at, sign in ((first, 0, 0, 1), (second, 4, 2, -1)):
        low = b.and_(packed, I32(0x3F3F3F3F))
        lower = b.and_(b.lshr(third, I32(shift)), I32(0x0F0F0F0F))
        upper = b.shl(b.and_(b.lshr(packed, I32(6)), I32(0x03030303)), I32(4))
        eight = shuffle(b, *(b.bitcast(x, B4) for x in (low, b.or_(lower, upper))), *range(8))
        floats = b.uitofp(b.zext(eight, ir.VectorType(I32, 8)), ir.VectorType(F32, 8))
        factor = _half(b, w, at)
        if sign < 0:
            factor = b.fsub(ir.Constant(F32, -0.0), factor)
        scaled = b.fmul(floats, splat(b, factor, 8))
        found.append([b.extract_element(scaled, I32(j)) for j in range(8)])
    return found


def _q4_k(b: Any, w: Any) -> list[Any]:
    scales, minimums = _scales_of_k(b, w)
    found = []
    for j in range(8):
        line = _Lines(b, 4, scales[j], minimums[j])
        for i in (0, 16):
            q = _bytes(b, w, 16 + 32 * (j // 2) + i)
            found.append(line.of(b.lshr(q, _whole(4)) if j % 2 else q, clean=j % 2 == 1))
    return found


def _q5_k(b: Any, w: Any) -> list[Any]:
    """The fifth bits of number i of every group are in byte i."""
    scales, minimums = _scales_of_k(b, w)
    fifth = [_bytes(b, w, 16 + i) for i in (0, 16)]
    found = []
    for j in range(8):
        line = _Lines(b, 5, scales[j], minimums[j])
        for i in (0, 16):
            q = _bytes(b, w, 48 + 32 * (j // 2) + i)
            lower = b.lshr(q, _whole(4)) if j % 2 else b.and_(q, _whole(15))
            bits = b.and_(b.lshr(fifth[i // 16], _whole(j)), _whole(1))
            found.append(line.of(b.or_(lower, b.shl(bits, _whole(4)))))
    return found


def _q6_k(b: Any, w: Any) -> list[Any]:
    """Half a block of 128 numbers has 64 bytes of lower bits and 32 of upper ones."""
    d = splat(b, _half(b, w, 208), 16)
    scales = b.fmul(_floats(b, b.sext(load(b, _at(b, w, 192), B16, align=1), J16)), d)
    found = []
    for group in range(16):
        half, first = group // 8, 16 * (group % 8)
        lower = _bytes(b, w, 64 * half + first % 64)
        upper = _bytes(b, w, 128 + 32 * half + first % 32)
        low = b.and_(b.lshr(lower, _whole(4 * (first // 64))), _whole(15))
        high = b.and_(b.lshr(upper, _whole(2 * (first // 32))), _whole(3))
        q = b.sub(b.or_(low, b.shl(high, _whole(4))), _whole(32))
        scale = shuffle(b, scales, scales, *[group] * 16)
        found.append(b.fmul(_floats(b, q), scale))
    return found


_VECTORS = {
    Q8_0: _q8_0,
    Q4_0: lambda b, w: _q4(b, w, False),
    Q4_1: lambda b, w: _q4(b, w, True),
    Q5_0: lambda b, w: _q5(b, w, False),
    Q5_1: lambda b, w: _q5(b, w, True),
    Q4_K: _q4_k,
    Q5_K: _q5_k,
    Q6_K: _q6_k,
}

# ---- rows -------------------------------------------------------------------------------------


def _expand(kind: int) -> Any:
    @emits(types.void)
    def expand(b, out, w, blocks):
        """The numbers of so many blocks."""
        with cgutils.for_range(b, blocks, intp=I64) as block:
            found = _VECTORS[kind](b, b.add(w, b.mul(block.index, I64(BYTES[kind]))))
            to = b.add(out, b.mul(block.index, I64(4 * numbers_of(kind))))
            for i, vector in enumerate(found):
                store(b, vector, _at(b, to, LINE * i))

    return expand


def _dot4(kind: int) -> Any:
    @emits(types.void)
    def dot4(b, out, out_stride, w, w_stride, x, blocks):
        """Four rows times x: out[r] = Σ_j w[r][j] · x[j]; strides in bytes."""
        sums = [cgutils.alloca_once_value(b, constant(0.0)) for _ in range(4)]
        starts = [b.add(w, b.mul(w_stride, I64(r))) for r in range(4)]
        with cgutils.for_range(b, blocks, intp=I64) as block:
            offset = b.mul(block.index, I64(BYTES[kind]))
            xs = b.add(x, b.mul(block.index, I64(4 * numbers_of(kind))))
            for start, total in zip(starts, sums, strict=True):
                at = b.add(start, offset)
                for line in range(0, BYTES[kind], LINE):
                    prefetch(b, _at(b, at, PREFETCH + line))
                added = b.load(total)
                for i, vector in enumerate(_VECTORS[kind](b, at)):
                    added = fma(b, vector, load(b, _at(b, xs, LINE * i), V16), added)
                b.store(added, total)
        found = sums_of_four(b, [b.load(total) for total in sums])
        for r in range(4):
            one = b.extract_element(found, I32(r))
            store(b, one, b.add(out, b.mul(out_stride, I64(r))))

    return dot4


def _row_functions(kind):
    emit_rows, emit_expanded = _dot4(kind), _expand(kind)
    size, nbytes = numbers_of(kind), BYTES[kind]

    @device()
    def rows(out, far, w, x, n, begin, end):
        """out[i] = w[i] · x for rows begin … end - 1, and those 1, 2 and 3 times `far` below."""
        row = n // size * nbytes
        for i in range(begin, end):
            emit_rows(out + 4 * i, 4 * far, w + i * row, far * row, x, n // size)

    @device()
    def expanded(out, w, n):
        """The n numbers of a row."""
        emit_expanded(out, w, n // size)

    return rows, expanded


_rows_q4_0, _expand_q4_0 = _row_functions(Q4_0)
_rows_q4_1, _expand_q4_1 = _row_functions(Q4_1)
_rows_q5_0, _expand_q5_0 = _row_functions(Q5_0)
_rows_q5_1, _expand_q5_1 = _row_functions(Q5_1)
_rows_q8_0, _expand_q8_0 = _row_functions(Q8_0)
_rows_q4_k, _expand_q4_k = _row_functions(Q4_K)
_rows_q5_k, _expand_q5_k = _row_functions(Q5_K)
_rows_q6_k, _expand_q6_k = _row_functions(Q6_K)


@device()
def row_bytes(kind, n):
    """Bytes of a row of n numbers."""
    if kind == Q4_0:
        return n // 32 * 18
    if kind == Q4_1:
        return n // 32 * 20
    if kind == Q5_0:
        return n // 32 * 22
    if kind == Q5_1:
        return n // 32 * 24
    if kind == Q8_0:
        return n // 32 * 34
    if kind == Q4_K:
        return n // 256 * 144
    if kind == Q5_K:
        return n // 256 * 176
    return n // 256 * 210


@device()
def expand_row(kind, out, w, n):
    """The n numbers of a row."""
    if kind == Q4_0:
        _expand_q4_0(out, w, n)
    elif kind == Q4_1:
        _expand_q4_1(out, w, n)
    elif kind == Q5_0:
        _expand_q5_0(out, w, n)
    elif kind == Q5_1:
        _expand_q5_1(out, w, n)
    elif kind == Q8_0:
        _expand_q8_0(out, w, n)
    elif kind == Q4_K:
        _expand_q4_k(out, w, n)
    elif kind == Q5_K:
        _expand_q5_k(out, w, n)
    else:
        _expand_q6_k(out, w, n)


@device()
def four_quarters(kind, out, far, w, x, n, begin, end):
    """out[i] = w[i] · x for rows begin … end - 1, and those 1, 2 and 3 times `far` below."""
    if kind == Q4_0:
        _rows_q4_0(out, far, w, x, n, begin, end)
    elif kind == Q4_1:
        _rows_q4_1(out, far, w, x, n, begin, end)
    elif kind == Q5_0:
        _rows_q5_0(out, far, w, x, n, begin, end)
    elif kind == Q5_1:
        _rows_q5_1(out, far, w, x, n, begin, end)
    elif kind == Q8_0:
        _rows_q8_0(out, far, w, x, n, begin, end)
    elif kind == Q4_K:
        _rows_q4_k(out, far, w, x, n, begin, end)
    elif kind == Q5_K:
        _rows_q5_k(out, far, w, x, n, begin, end)
    else:
        _rows_q6_k(out, far, w, x, n, begin, end)
