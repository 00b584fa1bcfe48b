"""How many threads the next call uses, on machines that are made up."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.compiling import pace
from pyllm2.compiling.pace import Pace
from tests.support.profiles import few

Seconds = Callable[[int], float]  # of a call with that many threads

IDLE: Seconds = {1: 0.02, 2: 0.011}.__getitem__
BUSY: Seconds = {1: 0.04, 2: 0.4}.__getitem__


def work(p: Pace, seconds: Seconds, duration: float) -> tuple[float, int]:
    """Work for some time; returns the time that it took, and the number of calls."""
    total, calls = 0.0, 0
    while total < duration:
        taken = seconds(p.threads)
        p.record(taken)
        total, calls = total + taken, calls + 1
    return total, calls


def test_it_begins_with_all_threads() -> None:
    """The first call of an idle machine is as quick as can be."""
    assert Pace(7).threads == 7


@pytest.mark.parametrize(
    ("most", "others"), [(1, set()), (2, {1}), (3, {1, 2}), (8, {1, 4, 7}), (64, {1, 32, 63})]
)
def test_it_tries_one_half_and_all_but_one(most: int, others: set[int]) -> None:
    """Where nothing is better than anything else, every number has its turn."""
    p, tried = Pace(most), set()
    for _ in range(5000):
        tried.add(p.threads)
        p.record(0.01)
    assert tried == {most} | others


def test_without_others_the_number_stays() -> None:
    """As a test needs it that compares numbers of threads."""
    p = Pace(4, ())
    for i in range(2000):
        assert p.threads == 4
        p.record(0.001 * (1 + i % 7))


SLOWEST = 0.01


@few()
@given(
    most=st.integers(2, 16),
    times=st.lists(st.floats(SLOWEST / 20, SLOWEST), min_size=16, max_size=16),
)
def test_little_time_is_lost_against_the_best_number(most: int, times: list[float]) -> None:
    """Of a machine that stays as it is: the best of the numbers that are tried is soon found."""
    p, total, calls = Pace(most), 0.0, 0
    numbers = {1, most // 2, most - 1, most} - {0}
    for _ in range(2000):  # every number is tried, and a better one takes over
        p.record(times[p.threads - 1])
    while total < 10:
        total, calls = total + times[p.threads - 1], calls + 1
        p.record(times[p.threads - 1])
    lost = total - calls * min(times[n - 1] for n in numbers)
    # A trial has at most two calls. It waits for its share of the time, or for PATIENCE.
    assert lost <= (pace.BUDGET + 2 * SLOWEST / pace.PATIENCE) * total + 4 * 2 * SLOWEST


def test_a_machine_that_becomes_busy_gets_one_thread() -> None:
    """A few stalled calls are enough, and when the stalls end the threads come back."""
    p = Pace(2)
    work(p, IDLE, 2.0)
    assert p.current == 2
    work(p, BUSY, 2.0)
    assert p.current == 1
    total, calls = work(p, BUSY, 10.0)
    assert calls >= 0.9 * total / 0.04
    work(p, IDLE, 2 * pace.PATIENCE + pace.MOST * 0.02)
    assert p.current == 2


def test_one_slow_call_in_many_changes_nothing() -> None:
    """Other processes take a few milliseconds now and then on every machine."""
    p = Pace(2)
    for i in range(20_000):
        assert p.current == 2
        p.record((0.0001 if p.threads == 2 else 0.0002) + (0.004 if i % 1000 == 999 else 0))
