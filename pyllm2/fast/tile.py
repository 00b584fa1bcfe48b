"""Innermost loop of a matrix product, and the packing of its operands, as LLVM IR.

A tile is MR x NR sums held in registers. Step k multiplies MR floats, each spread over a vector,
with NR / LANES vectors: MR·NR multiply-adds for MR + NR loads, so that arithmetic and not memory
sets the pace. Both operands come from panels, in which what step k needs is contiguous:

    panel of a: [k][MR]          panel of b: [k][NR]
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.registry import cpu_target

from pyllm2.fast.ir import F32, I32, I64, emits, fma, load, numbers, prefetch, splat, store

AHEAD = 8  # steps: how far before their use the vectors of b are prefetched


def _shape() -> tuple[int, int, int]:
    """LANES, MR, NR for the processor that Numba compiles for.

    The registers must hold the sums, one step's vectors of b and one float of a: 24 + 3 + 1 of 32
    with AVX-512 and on ARM, 12 + 3 + 1 of 16 with AVX2 and older. Numba's list of features is used
    because it respects NUMBA_CPU_FEATURES and NUMBA_ENABLE_AVX. A wrong guess only costs time:
    LLVM splits vectors that are too wide.
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
VECTOR = ir.VectorType(F32, LANES)


def _at(b: Any, address: Any, row: int, stride: Any, offset: int = 0) -> Any:
    return b.add(b.add(address, b.mul(stride, I64(row))), I64(offset))


@emits(types.void)
def tile(b, a, panel, steps, out, out_row, start, start_row):
    """out[r][j] = start[r][j] + Σ_k a[k][r] · panel[k][j], MR rows of NR; strides in bytes.

    Each sum is one chain in ascending k from 0, so a result does not depend on where in the
    matrix its tile lies.
    """
    width = NR // LANES
    zero = ir.Constant(VECTOR, None)
    sums = [[cgutils.alloca_once_value(b, zero) for _ in range(width)] for _ in range(MR)]
    for row in sums:  # alloca_once_value stores in the entry block: once per call is not enough
        for one in row:
            b.store(zero, one)
    with cgutils.for_range(b, steps, intp=I64) as step:
        left = b.add(a, b.mul(step.index, I64(4 * MR)))
        right = b.add(panel, b.mul(step.index, I64(4 * NR)))
        vectors = []
        for j in range(width):
            at = b.add(right, I64(4 * LANES * j))
            prefetch(b, b.add(at, I64(4 * NR * AHEAD)))
            vectors.append(load(b, at, VECTOR))
        for r in range(MR):
            value = splat(b, load(b, b.add(left, I64(4 * r)), F32), LANES)
            for j in range(width):
                b.store(fma(b, value, vectors[j], b.load(sums[r][j])), sums[r][j])
    for r in range(MR):
        for j in range(width):
            before = load(b, _at(b, start, r, start_row, 4 * LANES * j), VECTOR)
            store(b, b.fadd(before, b.load(sums[r][j])), _at(b, out, r, out_row, 4 * LANES * j))


def _transposed(b: Any, rows: list[Any]) -> list[Any]:
    """R vectors of n floats, a matrix (R, n), to the same floats as (n, R), R a power of 2.

    Seen as one row of R·n floats, a float's index is the bits of r followed by those of its
    column. Interleaving the first half of the row with the second moves the top bit to the bottom;
    after log2 R times the bits of r are at the end.
    """
    lanes, half = rows[0].type.count, len(rows) // 2
    pairs = [number for i in range(lanes) for number in (i, i + lanes)]
    masks = numbers(I32, pairs[:lanes]), numbers(I32, pairs[lanes:])
    for _ in range(len(rows).bit_length() - 1):
        halves = zip(rows[:half], rows[half:], strict=True)
        rows = [b.shuffle_vector(x, y, mask) for x, y in halves for mask in masks]
    return rows


def _transpose(R: int) -> Any:
    @emits(types.void)
    def transpose(b, out, out_row, x, x_row, columns):
        """out[c][r] = x[r][c] for R rows of `columns` floats, a multiple of LANES."""
        with cgutils.for_range_slice(b, I64(0), columns, I64(LANES), intp=I64) as (c, _):
            at = b.add(x, b.mul(c, I64(4)))
            rows = _transposed(b, [load(b, _at(b, at, r, x_row), VECTOR) for r in range(R)])
            target = b.add(out, b.mul(c, out_row))
            size = min(R, LANES)
            for i, row in enumerate(rows):
                for lane in range(0, LANES, size):
                    column, r = divmod(i * LANES + lane, R)
                    mask = numbers(I32, range(lane, lane + size))
                    piece = row if size == LANES else b.shuffle_vector(row, row, mask)
                    store(b, piece, _at(b, target, column, out_row, 4 * r))

    return transpose


def _copy(width: int) -> Any:
    @emits(types.void)
    def copy(b, out, x, x_row, rows):
        """Copy `rows` rows of `width` floats, x_row bytes apart, to one contiguous block."""
        lanes = min(LANES, width)
        with cgutils.for_range(b, rows, intp=I64) as row:
            source = b.add(x, b.mul(row.index, x_row))
            target = b.add(out, b.mul(row.index, I64(4 * width)))
            for j in range(0, width, lanes):
                value = load(b, b.add(source, I64(4 * j)), ir.VectorType(F32, lanes))
                store(b, value, b.add(target, I64(4 * j)))

    return copy


transpose_a, transpose_b, copy_a, copy_b = _transpose(MR), _transpose(LANES), _copy(MR), _copy(NR)
