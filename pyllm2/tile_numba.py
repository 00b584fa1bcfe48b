"""The innermost loop of a matrix product, and the rearranging that feeds it, as LLVM IR.

A tile is MR x NR sums held in registers. Step k multiplies MR floats, each spread over a vector,
with NR / LANES vectors: MR·NR multiply-adds for MR + NR loads, which is what lets the arithmetic
units and not the memory set the pace. Both operands come from panels, where what step k needs
lies side by side:

    panel of a: [k][MR]          panel of b: [k][NR]

Numba's cache does not notice edits of this file: kernels that use it are named by `FINGERPRINT`.
"""

from __future__ import annotations

import hashlib
import inspect
import platform
import types as pytypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils, config
from numba.core.registry import cpu_target
from numba.extending import intrinsic

FINGERPRINT = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]

F32, I8, I32, I64 = ir.FloatType(), *(ir.IntType(bits) for bits in (8, 32, 64))
AHEAD = 8  # steps: how far before their use the vectors of b are asked for


def _shape() -> tuple[int, int, int]:
    """LANES, MR, NR for the processor that Numba compiles for.

    Sums, one step's vectors of b and one float of a must fit into the registers: 24 + 3 + 1 of
    32 with AVX-512 and on ARM, 12 + 3 + 1 of 16 with AVX2 and before. Numba's own list of
    features is asked, not the processor: NUMBA_CPU_FEATURES and NUMBA_ENABLE_AVX have had their
    say there. A wrong guess costs time only: LLVM splits what is too wide.
    """
    features = {""}
    if config.CPU_NAME is None or config.CPU_FEATURES is not None:
        features = set(cpu_target.target_context.codegen().magic_tuple()[2].split(","))
    if "+avx512f" in features:
        return 16, 8, 48
    if {"+avx2", "+fma"} <= features:
        return 8, 4, 24
    return (4, 8, 12) if platform.machine() in ("arm64", "aarch64") else (4, 4, 12)


LANES, MR, NR = _shape()


def _call(b: Any, name: str, result: Any, *arguments: Any) -> Any:
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), arguments)


def _vector(lanes: int) -> Any:
    return ir.VectorType(F32, lanes)


def _numbers(values: Any) -> Any:
    numbers = [I32(n) for n in values]
    return ir.Constant(ir.VectorType(I32, len(numbers)), numbers)


def _load(b: Any, address: Any, kind: Any) -> Any:
    value = b.load(b.inttoptr(address, kind.as_pointer()))
    value.align = 4
    return value


def _store(b: Any, value: Any, address: Any) -> None:
    b.store(value, b.inttoptr(address, value.type.as_pointer())).align = 4


def _at(b: Any, address: Any, row: int, stride: Any, offset: int = 0) -> Any:
    return b.add(b.add(address, b.mul(stride, I64(row))), I64(offset))


def _splat(b: Any, scalar: Any, lanes: int) -> Any:
    kind = _vector(lanes)
    first = b.insert_element(ir.Constant(kind, ir.Undefined), scalar, I32(0))
    return b.shuffle_vector(first, first, _numbers([0] * lanes))


def _prefetch(b: Any, address: Any) -> None:
    pointer = b.inttoptr(address, I8.as_pointer())
    _call(b, "llvm.prefetch.p0", ir.VoidType(), pointer, I32(0), I32(3), I32(1))


def emits(result: Any, **others: Any) -> Any:
    """Make an intrinsic of a function (builder, *arguments) that emits IR.

    Every argument is an int64 (an address or a count) but those named here.
    """

    def decorate(emit: Any) -> Any:
        _, *names = inspect.signature(emit).parameters

        def typing(typing_context: Any, *_: Any) -> Any:
            def generate(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
                value = emit(b, *arguments)
                return context.get_dummy_value() if value is None else value

            return result(*(others.get(name, types.int64) for name in names)), generate

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter(name, kind) for name in ("typing_context", *names)]
        typing.__signature__ = inspect.Signature(parameters)
        typing.__name__, typing.__doc__ = emit.__name__, emit.__doc__
        return intrinsic(typing)

    return decorate


def kernel(fingerprint: str, *, parallel: bool = False) -> Callable[[Any], Any]:
    """njit, kept on disk where that is possible, under a name that an edit changes."""

    def decorate(function: Any) -> Any:
        twin = pytypes.FunctionType(
            function.__code__, function.__globals__, function.__name__, function.__defaults__
        )
        twin.__qualname__ = f"{function.__name__}_{'parallel_' * parallel}{fingerprint}"
        twin.__module__ = function.__module__
        flags: dict[str, Any] = {
            "fastmath": {"contract"}, "parallel": parallel, "error_model": "numpy",
        }  # fmt: skip
        try:
            return njit(cache=True, **flags)(twin)
        except RuntimeError:  # "cannot cache function": no folder can be written
            return njit(**flags)(twin)

    return decorate


@emits(types.int64)
def atomic_add(b, address, value):
    """Add to the int64 at an address; what was there before."""
    return b.atomic_rmw("add", b.inttoptr(address, I64.as_pointer()), value, "acq_rel")


@emits(types.void)
def tile(b, a, panel, steps, out, out_row, start, start_row):
    """out[r][j] = start[r][j] + Σ_k a[k][r] · panel[k][j], MR rows of NR; strides in bytes.

    Each sum is one chain in ascending k from 0, so a result does not depend on where in the
    matrix its tile lies.
    """
    kind, width = _vector(LANES), NR // LANES
    zero = ir.Constant(kind, None)
    sums = [[cgutils.alloca_once_value(b, zero) for _ in range(width)] for _ in range(MR)]
    for row in sums:  # alloca_once_value stores in the entry block: once a call is not enough
        for one in row:
            b.store(zero, one)
    fma = f"llvm.fmuladd.v{LANES}f32"
    with cgutils.for_range(b, steps, intp=I64) as step:
        left = b.add(a, b.mul(step.index, I64(4 * MR)))
        right = b.add(panel, b.mul(step.index, I64(4 * NR)))
        vectors = []
        for j in range(width):
            at = b.add(right, I64(4 * LANES * j))
            _prefetch(b, b.add(at, I64(4 * NR * AHEAD)))
            vectors.append(_load(b, at, kind))
        for r in range(MR):
            value = _splat(b, _load(b, b.add(left, I64(4 * r)), F32), LANES)
            for j in range(width):
                b.store(_call(b, fma, kind, value, vectors[j], b.load(sums[r][j])), sums[r][j])
    for r in range(MR):
        for j in range(width):
            before = _load(b, _at(b, start, r, start_row, 4 * LANES * j), kind)
            _store(b, b.fadd(before, b.load(sums[r][j])), _at(b, out, r, out_row, 4 * LANES * j))


def _turned(b: Any, rows: list[Any]) -> list[Any]:
    """R vectors of n floats, a matrix (R, n), to the same floats as (n, R), R a power of 2.

    Seen as one row of R·n floats, the number of a float is the bits of r, then those of its
    column. To riffle the first half of the row with the second moves the top bit to the bottom;
    after log2 R times the bits of r are at the end.
    """
    lanes, half = rows[0].type.count, len(rows) // 2
    pairs = [number for i in range(lanes) for number in (i, i + lanes)]
    masks = _numbers(pairs[:lanes]), _numbers(pairs[lanes:])
    for _ in range(len(rows).bit_length() - 1):
        halves = zip(rows[:half], rows[half:], strict=True)
        rows = [b.shuffle_vector(x, y, mask) for x, y in halves for mask in masks]
    return rows


def _turn(R: int) -> Any:
    @emits(types.void)
    def turn(b, out, out_row, x, x_row, columns):
        """out[c][r] = x[r][c] for R rows of `columns` floats, a multiple of LANES."""
        kind = _vector(LANES)
        with cgutils.for_range_slice(b, I64(0), columns, I64(LANES), intp=I64) as (c, _):
            at = b.add(x, b.mul(c, I64(4)))
            rows = _turned(b, [_load(b, _at(b, at, r, x_row), kind) for r in range(R)])
            target = b.add(out, b.mul(c, out_row))
            size = min(R, LANES)
            for i, row in enumerate(rows):
                for lane in range(0, LANES, size):
                    column, r = divmod(i * LANES + lane, R)
                    mask = _numbers(range(lane, lane + size))
                    piece = row if size == LANES else b.shuffle_vector(row, row, mask)
                    _store(b, piece, _at(b, target, column, out_row, 4 * r))

    return turn


def _copy(width: int) -> Any:
    @emits(types.void)
    def copy(b, out, x, x_row, rows):
        """`rows` rows of `width` floats, x_row bytes apart, to one block without gaps."""
        lanes = min(LANES, width)
        kind = _vector(lanes)
        with cgutils.for_range(b, rows, intp=I64) as row:
            source = b.add(x, b.mul(row.index, x_row))
            target = b.add(out, b.mul(row.index, I64(4 * width)))
            for j in range(0, width, lanes):
                value = _load(b, b.add(source, I64(4 * j)), kind)
                _store(b, value, b.add(target, I64(4 * j)))

    return copy


turn_a, turn_b, copy_a, copy_b = _turn(MR), _turn(LANES), _copy(MR), _copy(NR)


@emits(types.float32)
def get_float(b, address):
    return _load(b, address, F32)


@emits(types.void, value=types.float32)
def put_float(b, address, value):
    _store(b, value, address)


@emits(types.void)
def put_int(b, address, value):
    """The int64 at an address."""
    b.store(value, b.inttoptr(address, I64.as_pointer()))
