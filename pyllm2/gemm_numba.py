"""Matrix products in float32 by Numba.

    c[m, n] = start + Σ_k a[m, k] · b[k, n]          start: 0, a bias row, or what c held

After Goto & van de Geijn (Anatomy of High-Performance Matrix Multiplication, 2008). K is cut into
blocks so short that panels stay in the second-level cache. The operand with fewer rows or columns
is packed into panels once, for all threads; of the other, each thread takes a few panels at a
time, packs them for itself and multiplies. Strides make the variants: a transposed matrix is
packed by rows where the other is packed by columns.

Which thread takes what is left to chance, what a sum is made of is not: every element is the sum
of its K blocks in order, each one chain in ascending k. The bits do not depend on the number of
threads, nor on where an element lies.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from pyllm2 import tile_numba

from pyllm2.tile_numba import (  # isort: skip
    LANES, MR, NR, atomic_add, copy_a, copy_b, get_float, kernel, put_float, put_int, tile,
    turn_a, turn_b,
)  # fmt: skip

FINGERPRINT = hashlib.sha256(
    Path(__file__).read_bytes() + tile_numba.FINGERPRINT.encode()
).hexdigest()[:12]

Array = NDArray[np.float32]

KC = 384  # steps of a block: a panel of b takes 72 KiB
K_BLOCKS = 4  # of them are packed at a time, or more where rows or columns are few
SHARED = 768  # rows or columns of the shared operand packed at a time
OWN_WIDTH = 96  # rows or columns of the other that a thread takes at a time, at most

COUNTER, ZEROS, PACKED = 0, 64, 64 + 4 * 48  # bytes from the start of a workspace
OWN = 4 * (KC * OWN_WIDTH + MR * NR)  # bytes a thread: packed panels, one tile
SHARED_BYTES = 4 * SHARED * KC * K_BLOCKS  # SHARED is a multiple of MR and NR


def workspace(threads: int) -> NDArray[np.uint8]:
    """Memory for `gemm`, zero at first; begins on a cache line. Unused parts stay untouched."""
    nbytes = PACKED + SHARED_BYTES + OWN * threads
    room = np.zeros(nbytes + 64, np.uint8)
    start = -address(room) % 64
    return room[start : start + nbytes]


def address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])


class Products:
    """a @ b into an array, by so many threads, in room of their own."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._room = workspace(threads)

    def __call__(self, a: Array, b: Array, out: Array, start: Array | None = None) -> None:
        """out[m, n] = start + Σ_k a[m, k] · b[k, n]

        a: (M, K)   b: (K, N)   out: (M, N), rows without gaps   all float32, strides are free
        start: (N,), or (M, N), which may be `out` itself, or none for 0
        """
        (M, K), N = a.shape, b.shape[1]
        (a_row, a_k), (b_k, b_col), (out_row, _) = map(_strides, (a, b, out))
        start_row = 0 if start is None or start.ndim == 1 else _strides(start)[0]
        gemm(
            address(a), a_row, a_k, address(b), b_k, b_col, address(out), out_row,
            0 if start is None else address(start), start_row, M, N, K,
            address(self._room), self.threads,
        )  # fmt: skip


def _strides(matrix: Array) -> tuple[int, int]:
    """In floats."""
    down, right = matrix.strides
    return down // 4, right // 4


@njit
def _pack_slowly(out, width, x, x_row, x_k, rows, steps):
    """Any strides, and panels with fewer rows than they are wide: zeros for those that lack."""
    for k in range(steps):
        for r in range(width):
            value = np.float32(0)
            if r < rows:
                value = get_float(x + 4 * (r * x_row + k * x_k))
            put_float(out + 4 * (k * width + r), value)


@njit
def pack_a(out, a, a_row, a_k, rows, steps):
    """One panel of a: out[k][r] = a[r, k], r < rows <= MR."""
    if rows < MR or (a_row != 1 and a_k != 1):
        _pack_slowly(out, MR, a, a_row, a_k, rows, steps)
    elif a_row == 1:
        copy_a(out, a, 4 * a_k, steps)
    else:
        whole = steps // LANES * LANES
        turn_a(out, 4 * MR, a, 4 * a_row, whole)
        _pack_slowly(out + 4 * whole * MR, MR, a + 4 * whole, a_row, a_k, MR, steps - whole)


@njit
def pack_b(out, b, b_k, b_col, columns, steps):
    """One panel of b: out[k][j] = b[k, j], j < columns <= NR."""
    if columns < NR or (b_k != 1 and b_col != 1):
        _pack_slowly(out, NR, b, b_col, b_k, columns, steps)
    elif b_col == 1:
        copy_b(out, b, 4 * b_k, steps)
    else:
        whole = steps // LANES * LANES
        for j in range(0, NR, LANES):
            turn_b(out + 4 * j, 4 * NR, b + 4 * j * b_col, 4 * b_col, whole)
        _pack_slowly(out + 4 * whole * NR, NR, b + 4 * whole, b_col, b_k, NR, steps - whole)


@njit
def _tile(a, b, steps, c, c_row, start, start_row, rows, columns, zeros, spare):
    """One tile of c; start = 0 is zero. At the edges of c only rows x columns of it exist."""
    if rows == MR and columns == NR:
        if start == 0:
            tile(a, b, steps, c, 4 * c_row, zeros, 0)
        else:
            tile(a, b, steps, c, 4 * c_row, start, 4 * start_row)
        return
    tile(a, b, steps, spare, 4 * NR, zeros, 0)
    for r in range(rows):
        for j in range(columns):
            total = get_float(spare + 4 * (r * NR + j))
            if start != 0:
                total += get_float(start + 4 * (r * start_row + j))
            put_float(c + 4 * (r * c_row + j), total)


@njit
def _pack_shared(p, share_a, shared, block, a, a_row, a_k, b, b_k, b_col, M, N, K):
    """Panel p of the shared operand, every block of K: [block][panel][k][width]."""
    for k in range(0, K, block):
        steps = min(block, K - k)
        if share_a:
            i = p * MR
            out = shared + 4 * (k * _whole(M, MR) + i * steps)
            pack_a(out, a + 4 * (i * a_row + k * a_k), a_row, a_k, min(MR, M - i), steps)
        else:
            j = p * NR
            out = shared + 4 * (k * _whole(N, NR) + j * steps)
            pack_b(out, b + 4 * (j * b_col + k * b_k), b_k, b_col, min(NR, N - j), steps)


@njit
def _unit(share_a, shared, own, zeros, block, a, a_row, a_k, b, b_k, b_col,
          c, c_row, start, start_row, M, N, K):  # fmt: skip
    """A few panels, packed here, times all of the shared operand."""
    spare = own + 4 * KC * OWN_WIDTH
    for k in range(0, K, block):
        steps = min(block, K - k)
        if k > 0:
            start, start_row = c, c_row
        if share_a:
            left, right = shared + 4 * k * _whole(M, MR), own
            for j in range(0, N, NR):
                out, x = own + 4 * j * steps, b + 4 * (j * b_col + k * b_k)
                pack_b(out, x, b_k, b_col, min(NR, N - j), steps)
        else:
            left, right = own, shared + 4 * k * _whole(N, NR)
            for i in range(0, M, MR):
                out, x = own + 4 * i * steps, a + 4 * (i * a_row + k * a_k)
                pack_a(out, x, a_row, a_k, min(MR, M - i), steps)
        tiles_down, tiles = _panels(M, MR), _panels(M, MR) * _panels(N, NR)
        for t in range(tiles):  # what was packed here varies faster: it stays in the caches
            if share_a:
                i, j = t // _panels(N, NR) * MR, t % _panels(N, NR) * NR
            else:
                i, j = t % tiles_down * MR, t // tiles_down * NR
            first = 0 if start == 0 else start + 4 * (i * start_row + j)
            rows, columns = min(MR, M - i), min(NR, N - j)
            _tile(left + 4 * i * steps, right + 4 * j * steps, steps, c + 4 * (i * c_row + j),
                  c_row, first, start_row, rows, columns, zeros, spare)  # fmt: skip


@njit
def _units(work, own, width, share_a, shared, block, a, a_row, a_k, b, b_k, b_col,
           c, c_row, start, start_row, M, N, K):  # fmt: skip
    """Units until none is left; others take theirs from the same counter."""
    while True:
        at = atomic_add(work + COUNTER, 1) * width
        if at >= (N if share_a else M):
            return
        m, n, down, right = M, N, 0, 0
        if share_a:
            n, right = min(width, N - at), at
        else:
            m, down = min(width, M - at), at
        first = 0 if start == 0 else start + 4 * (down * start_row + right)
        _unit(share_a, shared, own, work + ZEROS, block,
              a + 4 * down * a_row, a_row, a_k, b + 4 * right * b_col, b_k, b_col,
              c + 4 * (down * c_row + right), c_row, first, start_row, m, n, K)  # fmt: skip


@njit
def _panels(n, width):
    return (n + width - 1) // width


@njit
def _whole(n, width):
    return (n + width - 1) // width * width


@njit
def _width(n, panel, threads):
    """What a thread takes at a time of n, in whole panels: as many pieces as all threads need."""
    rounds = _panels(n, OWN_WIDTH * threads)
    return min(OWN_WIDTH, _whole(_panels(n, rounds * threads), panel))


@njit
def _block(K):
    """Steps of a block: K in equal parts of at most KC."""
    return _panels(K, _panels(K, KC))


@njit
def _depth(K, block, wide):
    """Steps of K whose panels, `wide` rows or columns, fit into the shared room: whole blocks."""
    fit = SHARED * KC * K_BLOCKS // wide
    return K if fit >= K else fit // block * block


def _gemm(a, a_row, a_k, b, b_k, b_col, c, c_row, start, start_row, M, N, K, work, threads):
    """c = start + a · b. Addresses, and strides in floats.

    start: 0 for zero, or an address, start_row floats from row to row (0: the same row always)
    work: of `workspace(threads)`
    """
    share_a, block = M <= N, _block(K)
    width = _width(N, NR, threads) if share_a else _width(M, MR, threads)
    shared = work + PACKED
    most = _depth(K, block, _whole(min(M, SHARED), MR) if share_a else _whole(min(N, SHARED), NR))
    for k in range(0, K, most):
        depth = min(most, K - k)
        if k > 0:
            start, start_row = c, c_row
        for s in range(0, M if share_a else N, SHARED):
            m, n, down, right = M, N, 0, 0
            if share_a:
                m, down = min(SHARED, M - s), s
            else:
                n, right = min(SHARED, N - s), s
            a_at = a + 4 * (down * a_row + k * a_k)
            b_at = b + 4 * (right * b_col + k * b_k)
            c_at = c + 4 * (down * c_row + right)
            first = 0 if start == 0 else start + 4 * (down * start_row + right)
            for p in prange(_panels(m, MR) if share_a else _panels(n, NR)):
                _pack_shared(np.int64(p), share_a, shared, block,
                             a_at, a_row, a_k, b_at, b_k, b_col, m, n, depth)  # fmt: skip
            put_int(work + COUNTER, 0)
            for t in prange(threads):
                own = shared + SHARED_BYTES + OWN * np.int64(t)
                _units(work, own, width, share_a, shared, block, a_at, a_row, a_k, b_at, b_k, b_col,
                       c_at, c_row, first, start_row, m, n, depth)  # fmt: skip


gemm = kernel(FINGERPRINT, parallel=True)(_gemm)
gemm_alone = kernel(FINGERPRINT)(_gemm)  # by the thread that calls it, inside a parallel region
