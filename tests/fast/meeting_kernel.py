"""A kernel of two threads that wait for each other."""

from __future__ import annotations

import numpy as np
from numba import prange, types

from pyllm2.compiling.numba_build import kernel
from pyllm2.fast.ir import atomic_add, atomic_get
from pyllm2.fast.meeting import ARRIVED, barrier, gather

SHARED = 8 * 40  # bytes from the meeting place to a sum that both add to

_usleep = types.ExternalFunction("usleep", types.int32(types.uint32))


@kernel(parallel=True)
def play(counters, seen, phases):
    """seen[t, i]: the shared sum, as thread t sees it between two barriers of phase i."""
    together = np.zeros(2, np.int64)
    for t in prange(2):
        tid = np.int64(t)
        meeting = np.int64(counters.ctypes.data) + ARRIVED
        if gather(meeting, tid, np.int64(2)):
            together[tid] = 1
            for i in range(phases):
                if i % 2 == tid:
                    _usleep(np.uint32(1000))
                atomic_add(meeting + SHARED, 1)
                barrier(meeting, np.int64(2), 2 * i + 1)
                seen[tid, i] = atomic_get(meeting + SHARED)
                barrier(meeting, np.int64(2), 2 * i + 2)
    return together.sum() == 2
