"""argparse types: numbers within a range. An error names the text found and the range expected."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial

from pyllm2.backends import MOST_THREADS
from pyllm2.inference.ranges import out_of_range

# The range in words if a number is outside it, else None.
Range = Callable[[float], str | None]


def _real(outside: Range) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan  # outside every range
        expected = outside(value)
        if expected is not None:
            raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}")
        return value

    return parse


def _integer(outside: Range) -> Callable[[str], int]:
    """ASCII digits only: int() also takes `1_000` and Arabic digits."""

    def parse(text: str) -> int:
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 30):
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number")
        expected = outside(int(text))
        if expected is not None:
            raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}")
        return int(text)

    return parse


def _range(words: str, contains: Callable[[float], bool]) -> Range:
    return lambda value: None if contains(value) else words


temperature = _real(partial(out_of_range, "temperature"))
top_p = _real(partial(out_of_range, "top_p"))
at_least_0 = _real(_range("a number ≥ 0", lambda x: 0 <= x < math.inf))
above_0 = _real(_range("a number > 0", lambda x: 0 < x < math.inf))
fraction = _real(_range("a number from 0 to 1", lambda x: 0 <= x <= 1))
beta = _real(_range("0 ≤ β < 1", lambda x: 0 <= x < 1))
dropout = _real(_range("0 ≤ p < 1", lambda x: 0 <= x < 1))

seed = _integer(partial(out_of_range, "seed"))
seed32 = _integer(_range("a whole number from 0 to 2^32 - 1", lambda n: 0 <= n < 2**32))
count = _integer(_range("a whole number ≥ 0", lambda n: n >= 0))
positive = _integer(_range("a whole number ≥ 1", lambda n: n >= 1))
threads = _integer(
    _range(f"a whole number from 1 to {MOST_THREADS}", lambda n: 1 <= n <= MOST_THREADS)
)
