"""Matrix products in float32.

    c[m, n] = start + Σ_k a[m, k] · b[k, n]          start: 0, a bias row, or what c held

After Goto & van de Geijn (Anatomy of High-Performance Matrix Multiplication, 2008). K is cut into
blocks so short that panels stay in the second-level cache. The operand with fewer rows or columns
is packed into panels once, for all threads; of the other, each thread takes a few panels at a
time, packs them for itself and multiplies. Strides make the variants: a transposed matrix is
packed by rows where the other is packed by columns.

Which thread takes which panels is left to chance, but every element is the sum of its K blocks in
order, each one chain in ascending k. So the bits do not depend on the number of threads, nor on
where an element lies.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from pyllm2.compiling.numba_build import device, kernel
from pyllm2.fast import tile as tiles
from pyllm2.fast.ir import atomic_add, get_float, put_float, put_int
from pyllm2.fast.tile import copy_a, copy_b, tile, transpose_a, transpose_b

Array = NDArray[np.float32]

# Constants are int64 because Numba compiles a function again for every literal it is called with.
NONE, ONE = np.int64(0), np.int64(1)
LANES, MR, NR = (np.int64(size) for size in (tiles.LANES, tiles.MR, tiles.NR))
KC = np.int64(384)  # steps of a block: a panel of b takes 72 KiB
K_BLOCKS = np.int64(4)  # packed at a time, or more where rows or columns are few
SHARED = np.int64(768)  # rows or columns of the shared operand packed at a time
OWN_WIDTH = np.int64(96)  # rows or columns of the other that a thread takes at a time, at most

# Layout of a workspace, in bytes: the counter of units, a row of zeros, the shared operand, and
# for each thread its packed panels and one tile.
COUNTER, ZEROS, PACKED = 0, 64, 64 + 4 * 48
SHARED_BYTES = 4 * SHARED * KC * K_BLOCKS  # SHARED is a multiple of MR and NR
OWN = 4 * (KC * OWN_WIDTH + MR * NR)


class Matrix(NamedTuple):
    """Element (i, j) is at address + 4 · (i · down + j · right)."""

    address: int
    down: int
    right: int


NOTHING = Matrix(0, 0, 0)  # as a start: zero


class Product(NamedTuple):
    """c = start + a · b, or a part of it: addresses and strides as in `Matrix`, sizes, a plan.

    It is flat, and a plain tuple where prange passes it to threads: it can pass no other tuples.
    """

    a: int  # (M, K)
    a_down: int
    a_right: int
    b: int  # (K, N)
    b_down: int
    b_right: int
    c: int  # (M, N), contiguous rows
    c_down: int
    start: int  # (M, N), contiguous rows; 0: zero
    start_down: int  # 0: one row for all
    M: int
    N: int
    K: int
    shares_a: int  # 1: a is the shared operand, 0: b
    depth: int  # steps of K whose panels are packed at a time: whole blocks
    block: int  # steps of a block
    width: int  # rows or columns of the other operand that a thread takes at a time


def workspace(threads: int) -> NDArray[np.uint8]:
    """Memory for products on `threads` threads. Unused parts stay untouched."""
    return aligned_zeros(int(PACKED + SHARED_BYTES + OWN * threads), np.uint8)


def aligned_zeros(size: int, dtype: Any) -> NDArray[Any]:
    """A zeroed array that begins on a cache line."""
    nbytes = size * np.dtype(dtype).itemsize
    memory = np.zeros(nbytes + 64, np.uint8)
    start = -address(memory) % 64
    return memory[start : start + nbytes].view(dtype)


def address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])


class Products:
    """Calls `gemm` with arrays, on `threads` threads, in a workspace of its own."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._workspace = workspace(threads)
        self._address = address(self._workspace)

    def __call__(self, a: Array, b: Array, out: Array, start: Array | None = None) -> None:
        """out[m, n] = start + Σ_k a[m, k] · b[k, n]

        a: (M, K)   b: (K, N)   out: (M, N), contiguous rows   all float32, other strides are free
        start: (N,), or (M, N), which may be `out` itself; None for 0
        """
        (M, K), N = a.shape, b.shape[1]
        numbers = (*_matrix(a), *_matrix(b), *_matrix(out)[:2], *_matrix(start)[:2], M, N, K)
        gemm(self._address, self.threads, *numbers)


def _matrix(array: Array | None) -> tuple[int, int, int]:
    """The fields of a `Matrix`."""
    if array is None:
        return 0, 0, 0
    down, right = array.strides if array.ndim == 2 else (0, 4)
    return address(array), down // 4, right // 4


@device("contract")
def address_of(array):
    """The address of an array in a kernel: signed, like the numbers that are added to it."""
    return np.int64(array.ctypes.data)


# ---- a product and its parts ------------------------------------------------------------------


@device("contract")
def _planned(numbers, threads):
    """A whole `Product`. numbers: its first 13 fields"""
    M, N, K = numbers[10:]
    shares_a = M <= N
    shared, other, panel = (M, N, NR) if shares_a else (N, M, MR)
    # As few rounds of units as OWN_WIDTH allows, and as many units as all threads need for them.
    rounds = _panels(other, OWN_WIDTH * threads)
    width = min(OWN_WIDTH, _rounded_up(_panels(other, rounds * threads), panel))
    block = _panels(K, _panels(K, KC))  # K in equal parts of at most KC
    depth = SHARED * KC * K_BLOCKS // _rounded_up(min(shared, SHARED), MR if shares_a else NR)
    depth = K if depth >= K else depth // block * block
    return Product(*numbers, np.int64(shares_a), depth, block, width)


@device("contract")
def _passes(p):
    """How many times the shared operand is packed."""
    return _panels(p.K, p.depth) * _panels(p.M if p.shares_a else p.N, SHARED)


@device("contract")
def _pass(p, i):
    """The part of a product that pass i computes, as a plain tuple."""
    pieces = _panels(p.M if p.shares_a else p.N, SHARED)
    k, s = i // pieces * p.depth, i % pieces * SHARED
    depth = min(p.depth, p.K - k)
    if p.shares_a:
        part = _part(p, s, NONE, k, min(SHARED, p.M - s), p.N, depth)
    else:
        part = _part(p, NONE, s, k, p.M, min(SHARED, p.N - s), depth)
    return part[:]


@device("contract")
def _part(p, i, j, k, M, N, K):
    """The product from row i, column j and step k on; after the first steps c is added to."""
    a = _at(p.a, p.a_down, p.a_right, i, k), p.a_down, p.a_right
    b = _at(p.b, p.b_down, p.b_right, k, j), p.b_down, p.b_right
    c = p.c + 4 * (i * p.c_down + j), p.c_down
    start, start_down = (p.c, p.c_down) if k > 0 else (p.start, p.start_down)
    if start != 0:
        start += 4 * (i * start_down + j)
    plan = p.shares_a, p.depth, p.block, p.width
    return Product(*a, *b, *c, start, start_down, M, N, K, *plan)


@device("contract")
def _at(x, down, right, i, j):
    """The address of element (i, j)."""
    return x + 4 * (i * down + j * right)


@device("contract")
def _panels(n, width):
    return (n + width - 1) // width


@device("contract")
def _rounded_up(n, width):
    return _panels(n, width) * width


# ---- packing ----------------------------------------------------------------------------------


@device("contract")
def _pack_slowly(out, width, x, x_row, x_k, rows, steps):
    """Any strides, and panels with fewer rows than their width: the missing rows are zeros."""
    for k in range(steps):
        for r in range(width):
            value = np.float32(0)
            if r < rows:
                value = get_float(x + 4 * (r * x_row + k * x_k))
            put_float(out + 4 * (k * width + r), value)


@device("contract")
def pack_a(out, a, a_row, a_k, rows, steps):
    """One panel of a: out[k][r] = a[r, k], r < rows <= MR."""
    if rows < MR or (a_row != 1 and a_k != 1):
        _pack_slowly(out, MR, a, a_row, a_k, rows, steps)
    elif a_row == 1:
        copy_a(out, a, 4 * a_k, steps)
    else:
        whole = steps // LANES * LANES
        transpose_a(out, 4 * MR, a, 4 * a_row, whole)
        _pack_slowly(out + 4 * whole * MR, MR, a + 4 * whole, a_row, a_k, MR, steps - whole)


@device("contract")
def pack_b(out, b, b_k, b_col, columns, steps):
    """One panel of b: out[k][j] = b[k, j], j < columns <= NR."""
    if columns < NR or (b_k != 1 and b_col != 1):
        _pack_slowly(out, NR, b, b_col, b_k, columns, steps)
    elif b_col == 1:
        copy_b(out, b, 4 * b_k, steps)
    else:
        whole = steps // LANES * LANES
        for j in range(0, NR, LANES):
            transpose_b(out + 4 * j, 4 * NR, b + 4 * j * b_col, 4 * b_col, whole)
        _pack_slowly(out + 4 * whole * NR, NR, b + 4 * whole, b_col, b_k, NR, steps - whole)


@device("contract")
def _pack_panel_of_a(p, out, i, k, steps):
    a = _at(p.a, p.a_down, p.a_right, i, k)
    pack_a(out, a, p.a_down, p.a_right, min(MR, p.M - i), steps)


@device("contract")
def _pack_panel_of_b(p, out, j, k, steps):
    b = _at(p.b, p.b_down, p.b_right, k, j)
    pack_b(out, b, p.b_down, p.b_right, min(NR, p.N - j), steps)


@device("contract")
def _shared_panels(part):
    p = Product(*part)
    return _panels(p.M, MR) if p.shares_a else _panels(p.N, NR)


@device("contract")
def _pack_shared(part, panel, work):
    """One panel of the shared operand, every block of K: [block][panel][k][width]."""
    p, shared = Product(*part), work + PACKED
    for k in range(0, p.K, p.block):
        steps = min(p.block, p.K - k)
        if p.shares_a:
            i = panel * MR
            _pack_panel_of_a(p, shared + 4 * (k * _rounded_up(p.M, MR) + i * steps), i, k, steps)
        else:
            j = panel * NR
            _pack_panel_of_b(p, shared + 4 * (k * _rounded_up(p.N, NR) + j * steps), j, k, steps)


# ---- multiplying ------------------------------------------------------------------------------


@device("contract")
def _tile(a, b, p, work, own):
    """One tile of c from packed a and b. At the edges of c only M x N of it exist."""
    zeros, spare = work + ZEROS, own + 4 * KC * OWN_WIDTH
    if p.M == MR and p.N == NR:
        if p.start == 0:
            tile(a, b, p.K, p.c, 4 * p.c_down, zeros, 0)
        else:
            tile(a, b, p.K, p.c, 4 * p.c_down, p.start, 4 * p.start_down)
        return
    tile(a, b, p.K, spare, 4 * NR, zeros, 0)
    for i in range(p.M):
        for j in range(p.N):
            total = get_float(spare + 4 * (i * NR + j))
            if p.start != 0:
                total += get_float(p.start + 4 * (i * p.start_down + j))
            put_float(p.c + 4 * (i * p.c_down + j), total)


@device("contract")
def _unit(p, own, work):
    """A few panels, packed here, times all of the shared operand."""
    for k in range(0, p.K, p.block):
        steps, shared = min(p.block, p.K - k), work + PACKED
        if p.shares_a:
            left, right = shared + 4 * k * _rounded_up(p.M, MR), own
            for j in range(0, p.N, NR):
                _pack_panel_of_b(p, own + 4 * j * steps, j, k, steps)
        else:
            left, right = own, shared + 4 * k * _rounded_up(p.N, NR)
            for i in range(0, p.M, MR):
                _pack_panel_of_a(p, own + 4 * i * steps, i, k, steps)
        down, across = _panels(p.M, MR), _panels(p.N, NR)
        for t in range(down * across):  # panels packed here vary faster: they stay in the caches
            if p.shares_a:
                i, j = t // across * MR, t % across * NR
            else:
                i, j = t % down * MR, t // down * NR
            part = _part(p, i, j, k, min(MR, p.M - i), min(NR, p.N - j), steps)
            _tile(left + 4 * i * steps, right + 4 * j * steps, part, work, own)


@device("contract")
def _multiply(part, thread, work):
    """Compute units, which all threads take from one counter, until none is left."""
    p, own = Product(*part), work + PACKED + SHARED_BYTES + OWN * thread
    while True:
        at = atomic_add(work + COUNTER, 1) * p.width
        if at >= (p.N if p.shares_a else p.M):
            return
        if p.shares_a:
            unit = _part(p, NONE, at, NONE, p.M, min(p.width, p.N - at), p.K)
        else:
            unit = _part(p, at, NONE, NONE, min(p.width, p.M - at), p.N, p.K)
        _unit(unit, own, work)


@device("contract")
def gemm_alone(a, b, c, start, M, N, K, work):
    """A product by the thread that calls it, inside a parallel region.

    a, b, c, start: `Matrix` of int64, see `Product`   work: address of a `workspace(1)`
    """
    p = _planned((*a[:], *b[:], *c[:2], *start[:2], M, N, K), ONE)
    for i in range(_passes(p)):
        part = _pass(p, i)
        for panel in range(_shared_panels(part)):
            _pack_shared(part, panel, work)
        put_int(work + COUNTER, 0)
        _multiply(part, NONE, work)


@kernel("contract", parallel=True)
def gemm(work, threads, *numbers):
    """work: address of a workspace for that many threads   numbers: see `_planned`

    Numbers one by one: Numba takes longer to look into a tuple than a small product takes.
    """
    p = _planned(numbers, threads)
    for i in range(_passes(p)):
        part = _pass(p, i)
        for panel in prange(_shared_panels(part)):
            _pack_shared(part, np.int64(panel), work)
        put_int(work + COUNTER, 0)
        for thread in prange(threads):
            _multiply(part, np.int64(thread), work)
