"""Is a value far from the recent ones? Its z-score within a sliding window."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

WINDOW = 128


class OutlierDetector:
    """Mean and standard deviation of the last 128 values, kept as running sums in float64.

        detector.update(loss)   ->   how many standard deviations the loss is above the mean

    The first 128 values only fill the window: their z is NaN. The new value is part of the window,
    so z stays below √127 ≈ 11.3. `state` is the whole of it, for a checkpoint.
    """

    def __init__(self) -> None:
        self.values = np.zeros(WINDOW)
        self.count = 0  # how many values have come, ever
        self.sum = 0.0
        self.sum_of_squares = 0.0

    def update(self, value: float) -> float:
        """Takes a finite value in, the oldest out; returns its z-score.

        0 where the standard deviation is 0; NaN while the window fills, or where rounding has made
        the variance negative.
        """
        place = self.count % WINDOW
        if self.count >= WINDOW:
            oldest = float(self.values[place])
            self.sum -= oldest
            self.sum_of_squares -= oldest * oldest
        self.values[place] = value
        self.sum += value
        self.sum_of_squares += value * value
        self.count += 1
        return self._z(value) if self.count > WINDOW else math.nan

    def _z(self, value: float) -> float:
        mean = self.sum / WINDOW
        variance = self.sum_of_squares / WINDOW - mean * mean
        if variance < 0:
            return math.nan
        deviation = math.sqrt(variance)
        return 0.0 if deviation == 0 else (value - mean) / deviation

    @property
    def state(self) -> NDArray[np.float64]:
        """(131,): count, both sums, the window."""
        return np.array([self.count, self.sum, self.sum_of_squares, *self.values])

    @state.setter
    def state(self, state: NDArray[np.float64]) -> None:
        self.count, self.sum, self.sum_of_squares = int(state[0]), float(state[1]), float(state[2])
        self.values[:] = state[3:]


def is_outlier(z: float, threshold: float) -> bool:
    """Whether z is beyond the threshold; 0 switches the test off, and NaN is never beyond."""
    return threshold != 0 and math.isfinite(z) and z > threshold
