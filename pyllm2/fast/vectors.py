"""Sixteen floats at a time: intrinsics in LLVM IR that each do one pass over memory.

Portable: LLVM splits <16 x float> where registers are narrower. What 16 does not divide ends with
a masked vector.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from pyllm2.fast.ir import (
    F32,
    I1,
    I32,
    I64,
    call,
    emits,
    fma,
    load,
    numbers,
    shuffle,
    splat,
    store,
)

V16, M16, J16 = (ir.VectorType(element, 16) for element in (F32, I1, I32))
LINE = 64  # bytes of one vector, and of a cache line
PREFETCH = 768  # bytes ahead; measured: less, or none, loses a third of the bandwidth

# ---- parts of intrinsics ----------------------------------------------------------------------


def constant(value: float) -> Any:
    """The same number in all sixteen lanes."""
    return numbers(F32, [value] * 16)


def _mask(b: Any, left: Any) -> Any:
    """True in the first `left` lanes."""
    return b.icmp_signed("<", numbers(I32, range(16)), splat(b, b.trunc(left, I32), 16))


def sums_of_four(b: Any, v: list[Any]) -> Any:
    """The four sums of four vectors of 16, as one vector; the halving steps are shared."""
    low, high = range(8), range(8, 16)
    halves = [b.fadd(shuffle(b, x, x, *low), shuffle(b, x, x, *high)) for x in v]
    pairs = []
    for x, y in (halves[:2], halves[2:]):
        front = shuffle(b, x, y, 0, 1, 2, 3, 8, 9, 10, 11)
        pairs.append(b.fadd(front, shuffle(b, x, y, 4, 5, 6, 7, 12, 13, 14, 15)))
    front = shuffle(b, *pairs, 0, 1, 4, 5, 8, 9, 12, 13)
    twos = b.fadd(front, shuffle(b, *pairs, 2, 3, 6, 7, 10, 11, 14, 15))
    return b.fadd(shuffle(b, twos, twos, 0, 2, 4, 6), shuffle(b, twos, twos, 1, 3, 5, 7))


def each_vector(b: Any, n: Any, body: Any) -> None:
    """Emit body(byte offset, None) for the whole vectors of n floats, body(offset, mask) after."""
    whole = b.and_(b.mul(n, I64(4)), I64(-LINE))
    with cgutils.for_range_slice(b, I64(0), whole, I64(LINE), intp=I64) as (offset, _):
        body(offset, None)
    left = b.and_(n, I64(15))
    with b.if_then(b.icmp_signed("!=", left, I64(0))):
        body(whole, _mask(b, left))


def read(b: Any, address: Any, mask: Any, otherwise: float = 0.0) -> Any:
    """Sixteen floats; where the mask is false, `otherwise` instead."""
    if mask is None:
        return load(b, address, V16)
    pointer, rest = b.inttoptr(address, V16.as_pointer()), constant(otherwise)
    return call(b, "llvm.masked.load.v16f32.p0", V16, pointer, I32(4), mask, rest)


def write(b: Any, value: Any, address: Any, mask: Any) -> None:
    """Sixteen floats, or those where the mask is true."""
    if mask is None:
        store(b, value, address)
    else:
        pointer = b.inttoptr(address, V16.as_pointer())
        call(b, "llvm.masked.store.v16f32.p0", ir.VoidType(), value, pointer, I32(4), mask)


def _exp(b: Any, x: Any) -> Any:
    """e^x within about 1 ulp: x = n·ln 2 + r, a polynomial in r, and n added to the exponent.

    Below -87.33, where results are no normal numbers, it is 0; above 88.72, just below where they
    exceed float32, infinity; NaN stays NaN. Adding 1.5·2²³ rounds to an integer and leaves it in
    the low bits. n is added to y's bits: 2^n itself is no float32 for n = 128, from 88.38 on.
    """
    small = b.fcmp_ordered("<", x, constant(-87.33))
    large = b.fcmp_ordered(">", x, constant(88.72))
    magic = constant(1.5 * 2**23)
    shifted = fma(b, x, constant(1 / math.log(2)), magic)
    n = b.fsub(shifted, magic)
    r = fma(b, n, constant(-0.693359375), x)  # ln 2 in two parts, the first exact
    r = fma(b, n, constant(0.693359375 - math.log(2)), r)
    y = constant(1 / 720)
    for coefficient in (1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        y = fma(b, y, r, constant(coefficient))
    exponent = b.shl(b.bitcast(shifted, J16), numbers(I32, [23] * 16))
    y = b.bitcast(b.add(b.bitcast(y, J16), exponent), V16)
    y = b.select(large, constant(math.inf), b.select(small, constant(0.0), y))
    return b.select(b.fcmp_unordered("uno", x, x), x, y)


def _sum(b: Any, vector: Any) -> Any:
    zero = constant(0.0)
    return b.extract_element(sums_of_four(b, [vector, zero, zero, zero]), I32(0))


@emits(types.void)
def dot16(b, out, keys, q, hs, blocks):
    """q · key for sixteen positions at a time: blocks of keys are [i][16]."""
    total = cgutils.alloca_once(b, V16)
    with cgutils.for_range(b, blocks, intp=I64) as block:
        b.store(constant(0.0), total)
        with cgutils.for_range(b, hs, intp=I64) as i:
            row = b.add(b.mul(block.index, hs), i.index)
            element = splat(b, load(b, b.add(q, b.mul(i.index, I64(4))), F32), 16)
            sixteen = load(b, b.add(keys, b.mul(row, I64(LINE))), V16)
            b.store(fma(b, element, sixteen, b.load(total)), total)
        store(b, b.load(total), b.add(out, b.mul(block.index, I64(LINE))))


@emits(types.float32, divisor=types.float32)
def scale_and_largest(b, a, n, divisor):
    """a /= divisor in place; returns the largest."""
    largest = cgutils.alloca_once_value(b, constant(-math.inf))

    def body(offset: Any, mask: Any) -> None:
        at = b.add(a, offset)
        # Lanes past the end are -inf and stay so: never the largest.
        scaled = b.fdiv(read(b, at, mask, -math.inf), splat(b, divisor, 16))
        write(b, scaled, at, mask)
        b.store(call(b, "llvm.maxnum.v16f32", V16, b.load(largest), scaled), largest)

    each_vector(b, n, body)
    return call(b, "llvm.vector.reduce.fmax.v16f32", F32, b.load(largest))


@emits(types.float32, largest=types.float32)
def exp_and_sum(b, a, n, largest):
    """a = exp(a - largest) in place; returns the sum."""
    total = cgutils.alloca_once_value(b, constant(0.0))

    def body(offset: Any, mask: Any) -> None:
        at = b.add(a, offset)
        e = _exp(b, b.fsub(read(b, at, mask, -math.inf), splat(b, largest, 16)))
        write(b, e, at, mask)
        b.store(b.fadd(b.load(total), e), total)

    each_vector(b, n, body)
    return _sum(b, b.load(total))


@emits(types.void, total=types.float32)
def mix(b, out, v, v_stride, a, positions, n, total):
    """out[0..n) = Σ_p a[p] · v[p][0..n) / total, four positions at a time."""
    sums = [cgutils.alloca_once(b, V16) for _ in range(4)]

    def body(offset: Any, mask: Any) -> None:
        def add(p: Any, k: int) -> None:
            weight = splat(b, load(b, b.add(a, b.mul(p, I64(4))), F32), 16)
            values = read(b, b.add(b.add(v, offset), b.mul(p, v_stride)), mask)
            b.store(fma(b, weight, values, b.load(sums[k])), sums[k])

        for one in sums:
            b.store(constant(0.0), one)
        fours = b.and_(positions, I64(-4))
        with cgutils.for_range_slice(b, I64(0), fours, I64(4), intp=I64) as (p, _):
            for k in range(4):
                add(b.add(p, I64(k)), k)
        with cgutils.for_range_slice(b, fours, positions, I64(1), intp=I64) as (p, _):
            add(p, 0)
        left, right = (b.fadd(b.load(sums[k]), b.load(sums[k + 1])) for k in (0, 2))
        mixed = b.fdiv(b.fadd(left, right), splat(b, total, 16))
        write(b, mixed, b.add(out, offset), mask)

    each_vector(b, n, body)


@emits(types.void)
def swiglu_row(b, out, gate, up, n):
    """out = gate / (1 + exp(-gate)) · up"""

    def body(offset: Any, mask: Any) -> None:
        g, u = (read(b, b.add(address, offset), mask) for address in (gate, up))
        e = _exp(b, b.fsub(constant(-0.0), g))
        silu = b.fdiv(g, b.fadd(constant(1.0), e))
        write(b, b.fmul(silu, u), b.add(out, offset), mask)

    each_vector(b, n, body)


@emits(types.void, eps=types.float32)
def rmsnorm_row(b, out, x, weight, n, eps):
    """out = weight · (x / sqrt(mean(x²) + eps)); out may be x"""
    squares = cgutils.alloca_once_value(b, constant(0.0))

    def square(offset: Any, mask: Any) -> None:
        xs = read(b, b.add(x, offset), mask)
        b.store(fma(b, xs, xs, b.load(squares)), squares)

    each_vector(b, n, square)
    mean = b.fdiv(_sum(b, b.load(squares)), b.sitofp(n, F32))
    shifted = b.fadd(mean, eps)
    scale = b.fdiv(ir.Constant(F32, 1.0), call(b, "llvm.sqrt.f32", F32, shifted))

    def normalize(offset: Any, mask: Any) -> None:
        scaled = b.fmul(splat(b, scale, 16), read(b, b.add(x, offset), mask))
        result = b.fmul(read(b, b.add(weight, offset), mask), scaled)
        write(b, result, b.add(out, offset), mask)

    each_vector(b, n, normalize)


@emits(types.void)
def add(b, out, x, y, n):
    """out = x + y"""

    def body(offset: Any, mask: Any) -> None:
        xs, ys = (read(b, b.add(address, offset), mask) for address in (x, y))
        write(b, b.fadd(xs, ys), b.add(out, offset), mask)

    each_vector(b, n, body)


@emits(types.void)
def copy(b, out, x, n):
    """out = x"""

    def body(offset: Any, mask: Any) -> None:
        write(b, read(b, b.add(x, offset), mask), b.add(out, offset), mask)

    each_vector(b, n, body)
