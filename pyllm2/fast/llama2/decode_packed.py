"""`decode` for matrices in blocks of GGUF: each layer's of a kind of its own, or float32.

One column is multiplied from the blocks. For several, four rows at a time are expanded and then
multiplied as float32, which gives the same bits: those of `decode.step` with the dequantised model.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from pyllm2.compiling.numba_build import device, kernel
from pyllm2.fast.ir import get_int
from pyllm2.fast.llama2.decode import Slot, add_bias, make_worker
from pyllm2.fast.meeting import gather
from pyllm2.fast.packed import expand_row, four_quarters, row_bytes
from pyllm2.fast.products import products1, products4
from pyllm2.fast.vectors import copy


@device()
def _operand(at, x, columns, n, tid):
    """The operand of `_product`: a copy of x behind the thread's room for expanded rows."""
    own = at[Slot.EXPANDED] + tid * at[Slot.EXPANDED_STRIDE] + at[Slot.EXPANDED_INPUTS]
    copy(own, x, columns * n)
    return own


@device()
def _product(at, out, width, matrix, layer, x, columns, n, begin, end):
    """`decode._product` for an operand of `_operand`; a matrix's table has addresses and kinds."""
    w, kind = get_int(at[matrix] + 16 * layer), get_int(at[matrix] + 16 * layer + 8)
    quarter, rows = (end - begin) // 4, x - at[Slot.EXPANDED_INPUTS]
    row = row_bytes(kind, n) if kind else 4 * n
    if kind and columns == 1:
        four_quarters(kind, out, quarter, w, x, n, begin, begin + quarter)
    else:
        for i in range(begin, begin + quarter):
            four, apart = w + i * row, quarter * row
            if kind:
                for r in range(4):
                    expand_row(kind, rows + 4 * r * n, four + r * apart, n)
                four, apart = rows, 4 * n
            products4(out + 4 * i, 4 * quarter, 4 * width, four, apart, x, n, columns)
    for i in range(begin + 4 * quarter, end):
        one = w + i * row
        if kind:
            expand_row(kind, rows, one, n)
            one = rows
        products1(out + 4 * i, 0, 4 * width, one, 0, x, n, columns)
    add_bias(at, out, width, matrix, layer, columns, begin, end)


_worker = make_worker(_operand, _product)


@kernel(parallel=True)
def step_packed(at, columns, first, nt):
    """`decode.step` for matrices in blocks."""
    if nt == 1:
        _worker(at, columns, first, np.int64(0), np.int64(1))
        return True
    together = np.zeros(nt, np.int64)
    for t in prange(nt):
        tid = np.int64(t)
        if gather(at[Slot.COUNTERS], tid, nt):
            _worker(at, columns, first, tid, nt)
            together[tid] = 1
        elif tid == 0:
            _worker(at, columns, first, tid, np.int64(1))
    return together[0] == 1


@kernel(parallel=True)
def prompt_dequantize_packed(out, w, kind):
    """Write the numbers of rows of blocks. out: (OC, C)   w: (OC, bytes of a row)"""
    OC, C = out.shape
    for row in prange(OC):
        o = np.int64(row)
        expand_row(kind, out[o].ctypes.data, w[o].ctypes.data, C)
