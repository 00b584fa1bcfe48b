"""Where the threads of a kernel meet: barriers that spin for a moment and then sleep.

A thread that waits spins for some microseconds: on idle processors the others are there by then.
If they are not, a processor is busy with something else, and spinning would take time from just
those that are waited for. So the thread sleeps, and the last to arrive wakes it (Drepper, Futexes
Are Tricky, 2011). `sched_yield`, for systems without futexes, may give the processor away for
milliseconds.
"""

from __future__ import annotations

import platform
import sys

import numpy as np
from numba import types

from pyllm2.compiling.numba_build import device
from pyllm2.fast.ir import atomic_add, atomic_get

SPINS = 100_000  # iterations of a waiting thread before it sleeps: some 50 microseconds
NAP, NAPS = 100, 2000  # microseconds per nap; naps until thread 0 stops waiting for the others

WAITING, TOGETHER, ALONE = 0, 1, 2

# Layout of a meeting place, in bytes: counters, each on a cache line with its number of sleepers.
ARRIVED, STARTED, DECISION = 0, 64, 128
SLEEPERS = 8  # from a counter to its number of sleepers
MEETING_BYTES = 192

FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine(), 0) * (sys.platform == "linux")
WAIT, WAKE = 128, 129  # FUTEX_WAIT and FUTEX_WAKE, with FUTEX_PRIVATE_FLAG
EVERYONE = 2**31 - 1

_sched_yield = types.ExternalFunction("sched_yield", types.int32())
_usleep = types.ExternalFunction("usleep", types.int32(types.uint32))
_syscall = types.ExternalFunction("syscall", types.int64(*[types.int64] * 7))


@device()
def _futex(address, operation, value):
    """Wait while the 32 bits at an address are `value`, or wake at most so many who wait."""
    zero = np.int64(0)
    _syscall(np.int64(FUTEX), address, np.int64(operation), np.int64(value), zero, zero, zero)


@device()
def _wait(counter, target):
    """Wait until the counter has reached the target."""
    for _ in range(SPINS):
        if atomic_get(counter) >= target:
            return
    if FUTEX == 0:
        while atomic_get(counter) < target:
            _sched_yield()
        return
    atomic_add(counter + SLEEPERS, 1)
    found = atomic_get(counter)
    while found < target:
        _futex(counter, WAIT, found)  # returns at once if the counter is no longer what was found
        found = atomic_get(counter)
    atomic_add(counter + SLEEPERS, -1)


@device()
def _advance(counter, n, target):
    """Add to a counter. Whoever reaches the target wakes those who sleep; others get False."""
    if atomic_add(counter, n) + n < target:
        return False
    if FUTEX != 0 and atomic_get(counter + SLEEPERS) > 0:
        _futex(counter, WAKE, EVERYONE)
    return True


@device()
def barrier(meeting, nt, phase):
    """Wait until all nt threads have arrived for the phase-th time."""
    if nt > 1 and not _advance(meeting + ARRIVED, 1, nt * phase):
        _wait(meeting + ARRIVED, nt * phase)


@device()
def gather(meeting, tid, nt):
    """Whether all nt threads have started. If some do not arrive in time, thread 0 works alone.

    Inside another parallel region, or with fewer threads than requested, iterations run one after
    the other: waiting without a limit would be a deadlock.
    """
    atomic_add(meeting + STARTED, 1)
    if tid == 0:
        spins = 0
        while atomic_get(meeting + STARTED) < nt and spins < SPINS + NAPS:
            spins += 1
            if spins > SPINS:
                _usleep(np.uint32(NAP))
        decision = TOGETHER if atomic_get(meeting + STARTED) >= nt else ALONE
        _advance(meeting + DECISION, decision, 1)
    else:
        _wait(meeting + DECISION, 1)
    return atomic_get(meeting + DECISION) == TOGETHER
