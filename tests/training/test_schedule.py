"""Learning-rate schedules: shape, definition in float64, and llm.c's recorded tables."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.errors import UsageError
from pyllm2.training.schedule import NAMES, check, learning_rate

DECAYING = tuple(name for name in NAMES if name != "constant")

peaks = st.floats(2.0**-20, 1.0, width=32)
fractions = st.floats(0, 1, width=32)
runs = st.integers(1, 200).flatmap(
    lambda steps: st.tuples(st.integers(0, steps - 1), st.just(steps))
)


@pytest.mark.parametrize("name", NAMES)
@given(peak=peaks, fraction=fractions, run=runs)
def test_a_schedule_rises_to_the_peak_and_falls_to_its_final_rate(
    name: str, peak: float, fraction: float, run: tuple[int, int]
) -> None:
    """The rate rises during warm-up, never exceeds the peak, and ends at the final fraction."""
    warmup, steps = run
    rates = [learning_rate(name, s, peak, warmup, steps, fraction) for s in range(steps + 1)]
    lowest = float(np.float32(peak) * np.float32(fraction))
    slack = 4 * float(np.spacing(np.float32(peak)))  # a few roundings, each at most of the peak
    if name == "constant":
        assert rates == [peak] * (steps + 1)
        return
    assert rates[:warmup] == sorted(rates[:warmup])
    assert max(rates) <= peak + slack
    assert min(rates[warmup:]) >= lowest - slack
    assert all(later <= before + slack for before, later in pairwise(rates[warmup:]))
    assert abs(rates[-1] - lowest) <= slack


@pytest.mark.parametrize("name", DECAYING)
@given(peak=peaks, fraction=fractions, run=runs)
def test_every_rate_is_that_of_the_formula(
    name: str, peak: float, fraction: float, run: tuple[int, int]
) -> None:
    """Every rate equals its definition in float64 up to a few roundings of the peak."""
    warmup, steps = run
    start = int(np.float32(0.8) * np.float32(steps)) if name == "wsd" else warmup
    low, slack = peak * fraction, 8 * float(np.spacing(np.float32(peak)))
    for step in range(steps + 1):
        if step < warmup:
            expected = peak * (step + (name != "llama2")) / warmup
        elif step < start:
            expected = peak
        else:
            r = (step - start) / (steps - start)
            shape = {"linear": 1 - r, "cosine": (1 + np.cos(np.pi * r)) / 2, "wsd": 1 - r**0.5}
            shape["llama2"] = shape["cosine"]
            expected = low + (peak - low) * shape[name]
        assert abs(learning_rate(name, step, peak, warmup, steps, fraction) - expected) <= slack


@pytest.mark.parametrize("name", NAMES)
def test_the_first_rate_of_a_warm_up(name: str) -> None:
    """A warm-up of 4 steps starts at a quarter of the peak; llama2.c's starts at 0."""
    expected = {"constant": 0.5, "llama2": 0.0}.get(name, 0.125)
    assert learning_rate(name, 0, 0.5, 4, 10, 0.0) == expected


@pytest.mark.parametrize("name", DECAYING)
@pytest.mark.parametrize("warmup", [10, 11])
def test_a_warm_up_as_long_as_the_run_is_refused(name: str, warmup: int) -> None:
    """The decay would have no steps, and its progress would be a division by zero."""
    with pytest.raises(UsageError, match=f"warm-up of {warmup} steps: expected fewer than the 10"):
        check(name, warmup, 10)
    check(name, 9, 10)
    check("constant", warmup, 10)


def test_an_unknown_schedule_is_refused() -> None:
    """The message lists the names of all schedules."""
    with pytest.raises(UsageError, match="choose from constant, linear, cosine, wsd"):
        check("sine", 0, 10)


def test_rates_equal_the_recorded_ones_to_the_last_bit(shared: Path) -> None:
    """The tables contain every step of every schedule that llm.c has."""
    path = shared / "golden" / "llmc" / "schedulers.json"
    tables = json.loads(path.read_text())
    assert {table["type"] for table in tables} == set(NAMES) - {"llama2"}
    for table in tables:
        for step, expected in enumerate(table["lr"]):
            found = learning_rate(
                table["type"],
                step,
                table["learning_rate"],
                table["warmup_iterations"],
                table["train_num_batches"],
                table["final_learning_rate_frac"],
            )
            assert found == expected, (table["type"], step)
