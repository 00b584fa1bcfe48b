"""The outlier detector: z-scores within a sliding window, and llm.c's recorded sequences."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from pyllm2.training.outlier import WINDOW, OutlierDetector, is_outlier


def scores(values: np.ndarray | list[float]) -> list[float]:
    detector = OutlierDetector()
    return [detector.update(float(x)) for x in values]


def test_scores_are_nan_until_the_window_is_full() -> None:
    """The first 128 values have no z-score, the next one has."""
    z = scores(np.random.default_rng(0).standard_normal(WINDOW + 1))
    assert all(map(math.isnan, z[:WINDOW]))
    assert math.isfinite(z[WINDOW])


def test_the_score_is_within_the_last_128_values() -> None:
    """The window contains the new value; the deviation is that of the population.

    All values are small multiples of 1/64, so the running sums are exact and only the last three
    operations round.
    """
    values = np.random.default_rng(1).integers(-640, 640, 500) / 64
    for i, z in enumerate(scores(values)):
        if i >= WINDOW:
            window = values[i - WINDOW + 1 : i + 1]
            expected = (values[i] - window.mean()) / window.std()
            assert z == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_equal_values_have_score_zero() -> None:
    """A standard deviation of 0 gives a score of 0, not a division by 0."""
    assert scores([2.0] * 200)[WINDOW:] == [0.0] * 72


def test_a_variance_rounded_below_zero_gives_nan() -> None:
    """The score is NaN, which is never an outlier."""
    detector = OutlierDetector()
    detector.state = np.array([WINDOW + 5, 0.0, -128.0, *np.zeros(WINDOW)])
    assert math.isnan(detector.update(0.0))


def test_a_restored_detector_continues_exactly() -> None:
    """A detector with a copied state gives the same scores, from any point on."""
    values = np.random.default_rng(2).standard_normal(300)
    for stop in (0, 1, 100, 127, 128, 129, 200):
        first, second = OutlierDetector(), OutlierDetector()
        for x in values[:stop]:
            first.update(x)
        second.state = first.state.copy()
        for x in values[stop:]:
            np.testing.assert_array_equal(first.update(x), second.update(x))


@pytest.mark.parametrize(
    ("z", "threshold", "expected"),
    [
        (3.0, 2.0, True),
        (2.0, 2.0, False),
        (-9.0, 2.0, False),
        (9.0, 0.0, False),
        (math.nan, 2.0, False),
        (math.inf, 2.0, False),
    ],
)
def test_only_a_finite_score_above_the_threshold_counts(
    z: float, threshold: float, expected: bool
) -> None:
    """Low values are no outliers; a threshold of 0 disables the test."""
    assert is_outlier(z, threshold) is expected


def test_scores_equal_the_recorded_ones_to_the_last_bit(shared: Path) -> None:
    """The sequences contain spikes, constants, cancellation, infinity and NaN."""
    path = shared / "golden" / "llmc" / "outlier.json"
    for name, sequence in json.loads(path.read_text())["sequences"].items():
        expected = [math.nan if z is None else z for z in sequence["z"]]
        np.testing.assert_array_equal(scores(sequence["values"]), expected, err_msg=name)
