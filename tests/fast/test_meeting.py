"""Threads of a kernel that meet: those who wait long sleep, and are woken."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pyllm2 import backends

pytestmark = pytest.mark.skipif(
    backends.why_not("numba") is not None, reason=f"backend 'numba' {backends.why_not('numba')}"
)

PHASES = 20


def test_whoever_sleeps_at_a_barrier_is_woken() -> None:
    """By turns, one thread comes a millisecond late: the other sleeps, and both go on together."""
    from tests.fast.meeting_kernel import play

    for _ in range(100):  # one of them works alone if the other does not arrive in time
        counters, seen = np.zeros(64, np.int64), np.zeros((2, PHASES), np.int64)
        with ThreadPoolExecutor(2) as pool:
            together = list(pool.map(play, [counters] * 2, seen, range(2), [PHASES] * 2))
        assert together[0] == together[1]
        if together[0]:
            break
    np.testing.assert_array_equal(seen, np.tile(2 * np.arange(1, PHASES + 1), (2, 1)))
    assert counters[1] == 0  # nobody is counted as asleep
