"""Outlier detection: the z-score of a value within a sliding window."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

WINDOW = 128


class OutlierDetector:
    """Mean and standard deviation of the last 128 values, from running sums in float64.

        detector.update(loss)   ->   z: standard deviations that the loss lies above the mean

    The first 128 values fill the window: their z is NaN. The window includes the new value, so
    |z| is below √127 ≈ 11.3. `state` is the complete state, for a checkpoint.
    """

    def __init__(self) -> None:
        self.values = np.zeros(WINDOW)
        self.count = 0  # values so far
        self.sum = 0.0
        self.sum_of_squares = 0.0

    def update(self, value: float) -> float:
        """Add a finite value, drop the oldest, return the z-score of the new one.

        0 if the standard deviation is 0; NaN while the window fills, or if rounding makes the
        variance negative.
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
        """(131,): count, sum, sum of squares, window."""
        return np.array([self.count, self.sum, self.sum_of_squares, *self.values])

    @state.setter
    def state(self, state: NDArray[np.float64]) -> None:
        self.count, self.sum, self.sum_of_squares = int(state[0]), float(state[1]), float(state[2])
        self.values[:] = state[3:]


def is_outlier(z: float, threshold: float) -> bool:
    """Whether z exceeds the threshold. A threshold of 0 disables the test; NaN never exceeds it."""
    return threshold != 0 and math.isfinite(z) and z > threshold
