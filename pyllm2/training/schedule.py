"""Learning-rate schedules: warm-up, then constant, linear, cosine or warmup-stable-decay."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from pyllm2.errors import UsageError

F = np.float32
ONE = F(1)


def learning_rate(
    name: str, step: int, peak: float, warmup: int, steps: int, final_fraction: float
) -> float:
    """Learning rate of an update, float32 throughout, as in llm.c's GPU trainer.

    step: 0, 1, …, steps   peak: reached after `warmup` updates
    final_fraction: final learning rate as a fraction of the peak
    `constant` uses neither warmup nor final_fraction.
    """
    return float(_SHAPES[name](step, F(peak), warmup, steps, F(peak) * F(final_fraction)))


def check(name: str, warmup: int, steps: int) -> None:
    """Raises UsageError for an unknown name, or a warm-up that does not end before the run.

    (wsd divides by the steps after its plateau, the others by the steps after the warm-up.)
    """
    if name not in _SHAPES:
        raise UsageError(f"schedule {name!r} does not exist: choose from {', '.join(NAMES)}")
    if name != "constant" and warmup >= steps:
        raise UsageError(f"warm-up of {warmup} steps: expected fewer than the {steps} of the run")


def _constant(step: int, peak: F, warmup: int, steps: int, lowest: F) -> F:
    return peak


def _linear(step: int, peak: F, warmup: int, steps: int, lowest: F) -> F:
    """Linear from the peak to the final rate."""
    if step < warmup:
        return peak * F(step + 1) / F(warmup)
    return peak - _progress(step, warmup, steps) * (peak - lowest)


def _cosine(step: int, peak: F, warmup: int, steps: int, lowest: F) -> F:
    """Half a period of the cosine, from the peak to the final rate."""
    if step < warmup:
        return peak * F(step + 1) / F(warmup)
    angle = F(math.pi * float(_progress(step, warmup, steps)))
    height = F(0.5) * (ONE + F(math.cos(float(angle))))  # from 1 to 0
    return lowest + height * (peak - lowest)


def _llama2(step: int, peak: F, warmup: int, steps: int, lowest: F) -> F:
    """llama2.c's cosine: the warm-up starts at 0, so the first update changes nothing."""
    if step < warmup:
        return peak * F(step) / F(warmup)
    return _cosine(step, peak, warmup, steps, lowest)


def _warmup_stable_decay(step: int, peak: F, warmup: int, steps: int, lowest: F) -> F:
    """Constant for four fifths of the run, then decay with 1 - √progress."""
    if step < warmup:
        return peak * (F(step + 1) / F(warmup))
    stable = int(F(0.8) * F(steps))
    if step < stable:
        return peak
    return lowest + (ONE - np.sqrt(_progress(step, stable, steps))) * (peak - lowest)


def _progress(step: int, start: int, end: int) -> F:
    """0 at `start`, 1 at `end`."""
    return F(step - start) / F(end - start)


_SHAPES: dict[str, Callable[[int, F, int, int, F], F]] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "wsd": _warmup_stable_decay,
    "llama2": _llama2,
}
NAMES = tuple(_SHAPES)
