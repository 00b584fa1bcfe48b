"""Sixteen floats at a time: LLVM IR by llvmlite, as intrinsics that Numba kernels call.

Portable: LLVM splits <16 x float> where registers are narrower. An intrinsic takes addresses and
counts, does one pass over memory, and ends with a masked vector for what 16 does not divide.

Numba's cache does not notice edits of this file: kernels that use it are named by `FINGERPRINT`.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

FINGERPRINT = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]

# ---- <16 x float> in LLVM IR ----------------------------------------------------------------

F32, I1, I8, I32, I64 = ir.FloatType(), *(ir.IntType(bits) for bits in (1, 8, 32, 64))
V16, M16, J16 = ir.VectorType(F32, 16), ir.VectorType(I1, 16), ir.VectorType(I32, 16)
LINE = 64  # bytes of one vector, and of a cache line
PREFETCH = 768  # bytes ahead; measured: less or none loses a third of the bandwidth


def _numbers(element: Any, values: Any) -> Any:
    kind = ir.VectorType(element, len(values))
    return ir.Constant(kind, [ir.Constant(element, value) for value in values])


def _splat_constant(value: float) -> Any:
    return _numbers(F32, [value] * 16)


def _call(b: Any, name: str, result: Any, *arguments: Any) -> Any:
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), arguments)


def _load(b: Any, address: Any, kind: Any = V16) -> Any:
    value = b.load(b.inttoptr(address, kind.as_pointer()))
    value.align = 4
    return value


def _store(b: Any, value: Any, address: Any) -> None:
    b.store(value, b.inttoptr(address, value.type.as_pointer())).align = 4


def _splat(b: Any, scalar: Any) -> Any:
    first = b.insert_element(ir.Constant(V16, ir.Undefined), scalar, I32(0))
    return b.shuffle_vector(first, first, _numbers(I32, [0] * 16))


def _shuffle(b: Any, x: Any, y: Any, *lanes: int) -> Any:
    return b.shuffle_vector(x, y, _numbers(I32, lanes))


def _fma(b: Any, x: Any, y: Any, z: Any) -> Any:
    return _call(b, "llvm.fmuladd.v16f32", V16, x, y, z)


def _mask(b: Any, left: Any) -> Any:
    """True in the first `left` lanes."""
    count = b.insert_element(ir.Constant(J16, ir.Undefined), b.trunc(left, I32), I32(0))
    count = b.shuffle_vector(count, count, _numbers(I32, [0] * 16))
    return b.icmp_signed("<", _numbers(I32, range(16)), count)


def _masked_load(b: Any, address: Any, mask: Any, otherwise: float = 0.0) -> Any:
    pointer = b.inttoptr(address, V16.as_pointer())
    rest = _splat_constant(otherwise)
    return _call(b, "llvm.masked.load.v16f32.p0", V16, pointer, I32(4), mask, rest)


def _masked_store(b: Any, value: Any, address: Any, mask: Any) -> None:
    pointer = b.inttoptr(address, V16.as_pointer())
    _call(b, "llvm.masked.store.v16f32.p0", ir.VoidType(), value, pointer, I32(4), mask)


def _prefetch(b: Any, address: Any) -> None:
    pointer = b.inttoptr(address, I8.as_pointer())
    _call(b, "llvm.prefetch.p0", ir.VoidType(), pointer, I32(0), I32(3), I32(1))


def _sums_of_four(b: Any, v: list[Any]) -> Any:
    """Four vectors of 16 to one of their four sums, the halving steps shared."""
    low, high = range(8), range(8, 16)
    halves = [b.fadd(_shuffle(b, x, x, *low), _shuffle(b, x, x, *high)) for x in v]
    pairs = []
    for x, y in (halves[:2], halves[2:]):
        front = _shuffle(b, x, y, 0, 1, 2, 3, 8, 9, 10, 11)
        pairs.append(b.fadd(front, _shuffle(b, x, y, 4, 5, 6, 7, 12, 13, 14, 15)))
    front = _shuffle(b, *pairs, 0, 1, 4, 5, 8, 9, 12, 13)
    twos = b.fadd(front, _shuffle(b, *pairs, 2, 3, 6, 7, 10, 11, 14, 15))
    return b.fadd(_shuffle(b, twos, twos, 0, 2, 4, 6), _shuffle(b, twos, twos, 1, 3, 5, 7))


def _vectors(b: Any, n: Any, body: Any) -> None:
    """body(byte offset, None) for each whole vector of n floats; body(offset, mask) after."""
    whole = b.and_(b.mul(n, I64(4)), I64(-LINE))
    with cgutils.for_range_slice(b, I64(0), whole, I64(LINE), intp=I64) as (offset, _):
        body(offset, None)
    left = b.and_(n, I64(15))
    with b.if_then(b.icmp_signed("!=", left, I64(0))):
        body(whole, _mask(b, left))


def _read(b: Any, address: Any, mask: Any, otherwise: float = 0.0) -> Any:
    return _load(b, address) if mask is None else _masked_load(b, address, mask, otherwise)


def _write(b: Any, value: Any, address: Any, mask: Any) -> None:
    if mask is None:
        _store(b, value, address)
    else:
        _masked_store(b, value, address, mask)


def _exp(b: Any, x: Any) -> Any:
    """e^x within an ulp or so: x = n·ln 2 + r, a polynomial in r, n put into the exponent.

    Below the smallest normal result it gives 0, above the largest infinity; NaN stays NaN.
    Adding 1.5·2²³ rounds to a whole number and leaves it in the low bits.
    """
    small = b.fcmp_ordered("<", x, _splat_constant(-87.33))
    large = b.fcmp_ordered(">", x, _splat_constant(88.72))
    x = b.select(b.fcmp_ordered(">", x, _splat_constant(88.0)), _splat_constant(88.0), x)
    magic = _splat_constant(1.5 * 2**23)
    shifted = _fma(b, x, _splat_constant(1 / math.log(2)), magic)
    n = b.fsub(shifted, magic)
    r = _fma(b, n, _splat_constant(-0.693359375), x)  # ln 2 in two parts, the first exact
    r = _fma(b, n, _splat_constant(0.693359375 - math.log(2)), r)
    y = _splat_constant(1 / 720)
    for coefficient in (1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        y = _fma(b, y, r, _splat_constant(coefficient))
    exponent = b.shl(b.bitcast(shifted, J16), _numbers(I32, [23] * 16))
    scaled = b.fmul(y, b.bitcast(b.add(exponent, _numbers(I32, [127 << 23] * 16)), V16))
    return b.select(large, _splat_constant(math.inf), b.select(small, _splat_constant(0.0), scaled))


# ---- intrinsics: addresses in, everything is int64 but what is said -------------------------


def emits(result: Any, **floats: Any) -> Any:
    """Make an intrinsic of a function (builder, *arguments) that emits IR.

    Every argument is an int64 (an address or a count) but those named here.
    """

    def decorate(emit: Any) -> Any:
        _, *names = inspect.signature(emit).parameters

        def typing(typing_context: Any, *_: Any) -> Any:
            def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
                value = emit(b, *arguments)
                return context.get_dummy_value() if value is None else value

            return result(*(floats.get(name, types.int64) for name in names)), generate

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter(name, kind) for name in ("typing_context", *names)]
        typing.__signature__ = inspect.Signature(parameters)
        typing.__name__, typing.__doc__ = emit.__name__, emit.__doc__
        return intrinsic(typing)

    return decorate


def _sum(b: Any, vector: Any) -> Any:
    zero = _splat_constant(0.0)
    return b.extract_element(_sums_of_four(b, [vector, zero, zero, zero]), I32(0))


def _dot(rows: int) -> Any:
    @emits(types.void)
    def dot(b, out, out_stride, w, w_stride, x, n):
        """`rows` dot products: out[k] = Σ_j w[k][j] · x[j]; strides in bytes."""
        zero = _splat_constant(0.0)
        sums = [cgutils.alloca_once_value(b, zero) for _ in range(rows)]
        starts = [b.add(w, b.mul(w_stride, I64(k))) for k in range(rows)]

        def body(offset: Any, mask: Any) -> None:
            xs = _read(b, b.add(x, offset), mask)
            for start, total in zip(starts, sums, strict=True):
                at = b.add(start, offset)
                if mask is None and rows > 1:
                    _prefetch(b, b.add(at, I64(PREFETCH)))
                b.store(_fma(b, _read(b, at, mask), xs, b.load(total)), total)

        _vectors(b, n, body)
        found = _sums_of_four(b, [b.load(total) for total in sums] + [zero] * (4 - rows))
        for k in range(rows):
            one = b.extract_element(found, I32(k))
            _store(b, one, b.add(out, b.mul(out_stride, I64(k))))

    return dot


dot4, dot1 = _dot(4), _dot(1)


@emits(types.void)
def dot16(b, out, keys, q, hs, blocks):
    """q · key for sixteen positions at a time: element i of all sixteen lies side by side."""
    total = cgutils.alloca_once(b, V16)
    with cgutils.for_range(b, blocks, intp=I64) as block:
        b.store(_splat_constant(0.0), total)
        with cgutils.for_range(b, hs, intp=I64) as i:
            row = b.add(b.mul(block.index, hs), i.index)
            element = _splat(b, _load(b, b.add(q, b.mul(i.index, I64(4))), F32))
            sixteen = _load(b, b.add(keys, b.mul(row, I64(LINE))))
            b.store(_fma(b, element, sixteen, b.load(total)), total)
        _store(b, b.load(total), b.add(out, b.mul(block.index, I64(LINE))))


@emits(types.float32, divisor=types.float32)
def scale_and_largest(b, a, n, divisor):
    """a /= divisor in place; the largest."""
    largest = cgutils.alloca_once_value(b, _splat_constant(-math.inf))

    def body(offset: Any, mask: Any) -> None:
        at = b.add(a, offset)
        # Lanes beyond the end: -inf stays -inf and is never the largest.
        scaled = b.fdiv(_read(b, at, mask, -math.inf), _splat(b, divisor))
        _write(b, scaled, at, mask)
        b.store(_call(b, "llvm.maxnum.v16f32", V16, b.load(largest), scaled), largest)

    _vectors(b, n, body)
    return _call(b, "llvm.vector.reduce.fmax.v16f32", F32, b.load(largest))


@emits(types.float32, largest=types.float32)
def exp_and_sum(b, a, n, largest):
    """a = exp(a - largest) in place; the sum."""
    total = cgutils.alloca_once_value(b, _splat_constant(0.0))

    def body(offset: Any, mask: Any) -> None:
        at = b.add(a, offset)
        e = _exp(b, b.fsub(_read(b, at, mask, -math.inf), _splat(b, largest)))
        _write(b, e, at, mask)
        b.store(b.fadd(b.load(total), e), total)

    _vectors(b, n, body)
    return _sum(b, b.load(total))


@emits(types.void, total=types.float32)
def mix(b, out, v, v_stride, a, positions, n, total):
    """out[0..n) = Σ_p a[p] · v[p][0..n) / total, four positions at a time."""
    sums = [cgutils.alloca_once(b, V16) for _ in range(4)]

    def body(offset: Any, mask: Any) -> None:
        def add(p: Any, k: int) -> None:
            weight = _splat(b, _load(b, b.add(a, b.mul(p, I64(4))), F32))
            values = _read(b, b.add(b.add(v, offset), b.mul(p, v_stride)), mask)
            b.store(_fma(b, weight, values, b.load(sums[k])), sums[k])

        for one in sums:
            b.store(_splat_constant(0.0), one)
        fours = b.and_(positions, I64(-4))
        with cgutils.for_range_slice(b, I64(0), fours, I64(4), intp=I64) as (p, _):
            for k in range(4):
                add(b.add(p, I64(k)), k)
        with cgutils.for_range_slice(b, fours, positions, I64(1), intp=I64) as (p, _):
            add(p, 0)
        left, right = (b.fadd(b.load(sums[k]), b.load(sums[k + 1])) for k in (0, 2))
        mixed = b.fdiv(b.fadd(left, right), _splat(b, total))
        _write(b, mixed, b.add(out, offset), mask)

    _vectors(b, n, body)


@emits(types.void)
def swiglu_row(b, out, gate, up, n):
    """out = gate / (1 + exp(-gate)) · up"""

    def body(offset: Any, mask: Any) -> None:
        g, u = (_read(b, b.add(address, offset), mask) for address in (gate, up))
        e = _exp(b, b.fsub(_splat_constant(-0.0), g))
        silu = b.fdiv(g, b.fadd(_splat_constant(1.0), e))
        _write(b, b.fmul(silu, u), b.add(out, offset), mask)

    _vectors(b, n, body)


@emits(types.void)
def rmsnorm_row(b, out, x, weight, n):
    """out = weight · (x / sqrt(mean(x²) + 1e-5))"""
    squares = cgutils.alloca_once_value(b, _splat_constant(0.0))

    def square(offset: Any, mask: Any) -> None:
        xs = _read(b, b.add(x, offset), mask)
        b.store(_fma(b, xs, xs, b.load(squares)), squares)

    _vectors(b, n, square)
    mean = b.fdiv(_sum(b, b.load(squares)), b.sitofp(n, F32))
    shifted = b.fadd(mean, ir.Constant(F32, float(np.float32(1e-5))))
    scale = b.fdiv(ir.Constant(F32, 1.0), _call(b, "llvm.sqrt.f32", F32, shifted))

    def write(offset: Any, mask: Any) -> None:
        scaled = b.fmul(_splat(b, scale), _read(b, b.add(x, offset), mask))
        result = b.fmul(_read(b, b.add(weight, offset), mask), scaled)
        _write(b, result, b.add(out, offset), mask)

    _vectors(b, n, write)


@emits(types.void)
def add(b, out, x, y, n):
    """out = x + y"""

    def body(offset: Any, mask: Any) -> None:
        xs, ys = (_read(b, b.add(address, offset), mask) for address in (x, y))
        _write(b, b.fadd(xs, ys), b.add(out, offset), mask)

    _vectors(b, n, body)


@emits(types.float32)
def get_float(b, address):
    return _load(b, address, F32)


@emits(types.void, value=types.float32)
def put_float(b, address, value):
    _store(b, value, address)
