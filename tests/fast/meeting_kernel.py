"""What each of two threads does that wait for each other."""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from pyllm2.fast.ir import atomic_add, atomic_get
from pyllm2.fast.meeting import ARRIVED, barrier, gather

SHARED = 8 * 40  # bytes from the meeting place to a sum that both add to

_usleep = types.ExternalFunction("usleep", types.int32(types.uint32))


# Without `prange`, whose compiling takes four times as long: the threads are Python's.
@numba.njit("boolean(int64[::1], int64[::1], int64, int64)", nogil=True, error_model="numpy")
def play(counters, seen, tid, phases):
    """seen[i]: the shared sum, as thread tid sees it between two barriers of phase i."""
    meeting = np.int64(counters.ctypes.data) + ARRIVED
    if not gather(meeting, tid, np.int64(2)):
        return False
    for i in range(phases):
        if i % 2 == tid:
            _usleep(np.uint32(1000))
        atomic_add(meeting + SHARED, 1)
        barrier(meeting, np.int64(2), 2 * i + 1)
        seen[i] = atomic_get(meeting + SHARED)
        barrier(meeting, np.int64(2), 2 * i + 2)
    return True
