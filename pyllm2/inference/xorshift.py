"""The random numbers of llama2.c's sampler: xorshift64* (Marsaglia; Vigna).

Python integers, masked to 64 bits where C's unsigned integers wrap around.
"""

from __future__ import annotations

MASK = 2**64 - 1
MULTIPLIER = 0x2545F4914F6CDD1D

# The generator never leaves state 0, so seed 0 stands for this state (2**64 / golden ratio).
STATE_OF_SEED_0 = 0x9E3779B97F4A7C15


class XorShift:
    """xorshift64* with a 64-bit state, at first the seed.

    Example: XorShift(42).next_u32() -> 0x56CE4AB7
    """

    def __init__(self, state: int) -> None:
        self.state = state & MASK

    def next_u32(self) -> int:
        """The next 32 random bits: the upper half of (state · MULTIPLIER) mod 2⁶⁴."""
        x = self.state
        x ^= x >> 12
        x ^= (x << 25) & MASK
        x ^= x >> 27
        self.state = x
        return ((x * MULTIPLIER) & MASK) >> 32

    def next_float(self) -> float:
        """A number in [0, 1): the upper 24 bits, so exact in float32."""
        return (self.next_u32() >> 8) / 2**24
