"""Ranges of the sampling parameters, for Python and the command line. Imports nothing heavy."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from pyllm2.errors import shown

# name -> whether a number is in range, and the range in words
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda t: 0 <= t < math.inf, "a number ≥ 0"),
    "top_p": (lambda p: 0 < p <= 1, "0 < p ≤ 1"),
    "seed": (lambda s: 0 <= s < 2**64, "a whole number from 0 to 2^64 - 1"),
}


def out_of_range(name: str, value: float) -> str | None:
    """The range of `temperature`, `top_p` or `seed`, in words, if value is outside; else None.

    Example: out_of_range("top_p", 2.0) -> "0 < p ≤ 1"
    """
    is_in_range, words = _RANGES[name]
    return None if is_in_range(value) else words


def check_sampling(temperature: Any, top_p: Any, seed: Any) -> tuple[float, float, int]:
    """The three parameters, of any type of number, as float, float and int.

    Raises ValueError naming the first that is no number or out of its range. In Python a top_p of 0
    switches top-p off, as 1 does.
    """
    numbers = {
        "temperature": _float("temperature", temperature),
        "top_p": _float("top_p", top_p),
        "seed": whole("seed", seed, _RANGES["seed"][1]),
    }
    given = {"temperature": temperature, "top_p": top_p, "seed": seed}
    for name, value in numbers.items():
        expected = out_of_range(name, value)
        if expected is not None and (name, value) != ("top_p", 0):
            raise ValueError(f"{name} = {shown(given[name])}: expected {expected}")
    return numbers["temperature"], numbers["top_p"], int(numbers["seed"])


def whole(name: str, value: Any, expected: str = "a whole number") -> int:
    """A value of any integer type as an int. Raises ValueError for another type."""
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} = {shown(value)}: expected {expected}") from None


def _float(name: str, value: Any) -> float:
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} = {shown(value)}: expected {_RANGES[name][1]}") from None
