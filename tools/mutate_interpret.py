"""Kernels as plain Python: what their intrinsics do to memory, in NumPy.

Compiling the kernels that one changed line reaches takes up to a minute; to run them as Python on
a tiny model takes a second. `interpret` must come before pyllm2 is imported. It says nothing about
the intrinsics themselves, which are LLVM IR: bugs in those are compiled.
"""

from __future__ import annotations

import ctypes
import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np

F32 = np.float32


def at(address: int, n: int, kind: Any = ctypes.c_float) -> Any:
    """n numbers in memory, as an array."""
    return np.ctypeslib.as_array((kind * int(n)).from_address(int(address)))


def int8(address: int, n: int) -> Any:
    return at(address, n, ctypes.c_int8).astype(np.int64)


# ---- the intrinsics of pyllm2.fast, by name; `own` has what the emitting function closes over ----


def get_float(own: Any, address: int) -> Any:
    return at(address, 1)[0]


def put_float(own: Any, address: int, value: Any) -> None:
    at(address, 1)[0] = value


def get_int(own: Any, address: int) -> int:
    return int(at(address, 1, ctypes.c_int64)[0])


def put_int(own: Any, address: int, value: int) -> None:
    at(address, 1, ctypes.c_int64)[0] = value


def atomic_get(own: Any, address: int) -> int:
    return get_int(own, address)


def atomic_add(own: Any, address: int, value: int) -> int:
    before = atomic_get(own, address)
    put_int(own, address, before + value)
    return before


def tile(
    own: Any, a: int, panel: int, steps: int, out: int, out_row: int, start: int, start_row: int
) -> None:
    from pyllm2.fast.tile import MR, NR

    sums = at(a, steps * MR).reshape(steps, MR).T @ at(panel, steps * NR).reshape(steps, NR)
    for r in range(MR):
        at(out + r * out_row, NR)[:] = at(start + r * start_row, NR) + sums[r]


def transpose(own: Any, out: int, out_row: int, x: int, x_row: int, columns: int) -> None:
    for r in range(own["R"]):
        for c, value in enumerate(at(x + r * x_row, columns)):
            at(out + c * out_row + 4 * r, 1)[0] = value


def copy(own: Any, out: int, x: int, x_row: int, rows: int) -> None:
    width = own["width"]
    for r in range(rows):
        at(out + 4 * width * r, width)[:] = at(x + r * x_row, width)


def dots(own: Any, out: int, out_stride: int, w: int, w_stride: int, x: int, n: int) -> None:
    for r in range(own["rows"]):
        at(out + r * out_stride, 1)[0] = at(w + r * w_stride, n) @ at(x, n)


def products(own: Any, out: int, out_stride: int, out_column: int, *rest: int) -> None:
    w, w_stride, x, n, columns = rest
    for k in range(columns):
        dots(own, out + k * out_column, out_stride, w, w_stride, x + 4 * k * n, n)


def expand(own: Any, out: int, w: int, blocks: int) -> None:
    from pyllm2.formats.gguf_blocks import TYPES

    kind = TYPES[own["kind"]]
    kind.expand(at(w, blocks * kind.nbytes, ctypes.c_uint8), at(out, blocks * kind.numbers))


def dot4(own: Any, out: int, out_stride: int, w: int, w_stride: int, x: int, blocks: int) -> None:
    from pyllm2.formats.gguf_blocks import TYPES

    n = blocks * TYPES[own["kind"]].numbers
    row = np.empty(n, F32)
    for r in range(4):
        expand(own, row.ctypes.data, w + r * w_stride, blocks)
        at(out + r * out_stride, 1)[0] = row @ at(x, n)


def dot16(own: Any, out: int, keys: int, q: int, hs: int, blocks: int) -> None:
    found = at(q, hs) @ at(keys, blocks * hs * 16).reshape(blocks, hs, 16)
    at(out, blocks * 16)[:] = found.ravel()


def scale_and_largest(own: Any, a: int, n: int, divisor: Any) -> Any:
    scores = at(a, n)
    scores /= divisor
    return np.fmax.reduce(scores)


def exp_and_sum(own: Any, a: int, n: int, largest: Any) -> Any:
    scores = at(a, n)
    scores[:] = np.exp(scores - largest)
    return scores.sum()


def mix(
    own: Any, out: int, v: int, v_stride: int, a: int, positions: int, n: int, total: Any
) -> None:
    values = [at(v + p * v_stride, n) * at(a + 4 * p, 1) for p in range(positions)]
    at(out, n)[:] = np.sum(values, axis=0) / total


def swiglu_row(own: Any, out: int, gate: int, up: int, n: int) -> None:
    g = at(gate, n)
    at(out, n)[:] = g / (F32(1) + np.exp(-g)) * at(up, n)


def rmsnorm_row(own: Any, out: int, x: int, weight: int, n: int, eps: Any) -> None:
    row = at(x, n)
    scale = F32(1) / np.sqrt(row @ row / F32(n) + eps)
    at(out, n)[:] = at(weight, n) * (scale * row)


def add(own: Any, out: int, x: int, y: int, n: int) -> None:
    at(out, n)[:] = at(x, n) + at(y, n)


def dot_any_q8(
    own: Any, out: int, w: int, scales: int, x: int, xs: int, groups: int, size: int
) -> None:
    total = F32(0)
    for g in range(groups):
        integers = int8(w + g * size, size) @ int8(x + g * size, size)
        total += F32(integers) * at(scales + 4 * g, 1)[0] * at(xs + 4 * g, 1)[0]
    at(out, 1)[0] = total


dot1_q8 = dot_any_q8


def dot4_q8(own: Any, out: int, stride: int, w: int, w_stride: int, *rest: int) -> None:
    *scales, x, xs, groups, size = rest
    for k in range(4):
        dot_any_q8(own, out + k * stride, w + k * w_stride, scales[k], x, xs, groups, size)


def quantize_group(own: Any, values: int, x: int, n: int) -> Any:
    row = at(x, n)
    scale = np.max(np.abs(row)) / F32(127)
    quotient = (row / scale if scale > 0 else np.zeros_like(row)).astype(np.float64)
    rounded = np.copysign(np.floor(np.abs(np.nan_to_num(quotient)) + 0.5), quotient)
    at(values, n, ctypes.c_int8)[:] = np.clip(rounded, -127, 127)
    return scale


# ---- instead of Numba ---------------------------------------------------------------------------


def _intrinsic(typing: Any) -> Callable[..., Any]:
    """The function above that has the intrinsic's name."""
    emit = inspect.getclosurevars(typing).nonlocals.get("emit", typing)
    own = inspect.getclosurevars(emit).nonlocals
    named = globals()[typing.__name__.strip("_")]
    return lambda *arguments: named(own, *arguments)


def _njit(*functions: Any, **_: Any) -> Any:
    def decorate(function: Any) -> Any:
        function.py_func = function
        return function

    return decorate(*functions) if functions else decorate


def _lenient(function: Callable[[float], float]) -> Callable[[float], float]:
    """An overflow is infinite, as in C."""

    def call(x: float) -> float:
        try:
            return function(x)
        except OverflowError:
            return math.inf

    return call


def interpret() -> None:
    """From now on Numba compiles nothing, and a parallel loop is a loop."""
    import numba
    import numba.extending

    np.seterr(all="ignore")
    numba.njit, numba.prange, numba.extending.intrinsic = _njit, range, _intrinsic
    numba.get_num_threads = lambda: 1
    numba.set_num_threads = lambda n: None
    numba.types.ExternalFunction = lambda *_: lambda *_: 0
    for name in ("exp", "cosh", "sinh"):
        setattr(math, name, _lenient(getattr(math, name)))
