"""The random numbers of llama2.c's sampler: xorshift* (Marsaglia; Vigna), 64 bits of state.

Python integers, masked to 64 bits: the wrap-around that C has by nature is spelled out.
"""

from __future__ import annotations

MASK = 2**64 - 1
MULTIPLIER = 0x2545F4914F6CDD1D

# A state of 0 would stay 0 for ever, so seed 0 is given this one (2**64 / golden ratio).
STATE_OF_SEED_0 = 0x9E3779B97F4A7C15


class XorShift:
    """xorshift64*: `next_u32` and `next_float`, from a 64-bit state that begins as the seed.

    Example: XorShift(42).next_u32() -> 0x56CE4AB7
    """

    def __init__(self, state: int) -> None:
        self.state = state & MASK

    def next_u32(self) -> int:
        """The next 32 random bits: the high half of state · MULTIPLIER, which is not kept."""
        x = self.state
        x ^= x >> 12
        x ^= (x << 25) & MASK
        x ^= x >> 27
        self.state = x
        return ((x * MULTIPLIER) & MASK) >> 32

    def next_float(self) -> float:
        """A coin in [0, 1): the top 24 bits, so exact in float32."""
        return (self.next_u32() >> 8) / 2**24
