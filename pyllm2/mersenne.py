"""Random numbers of llm.c's training: the Mersenne Twister, used the way PyTorch uses it.

The recurrence is NumPy's `MT19937` with the classical seeding; this module turns its words into
floats, normal variates and permutations. Words, floats and permutations equal the original's.
Normal variates are evaluated in float64 and rounded where the original calls float32 library
functions: most are equal, the rest differ in the last bits.
"""

from __future__ import annotations

import math
import operator

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import UsageError, shown

Array = NDArray[np.float32]

N_WORDS = 624
BLOCK = 16  # normal variates per block: eight radii, eight angles
CHUNK = 2**16  # blocks per chunk: float64 temporaries of a few megabytes


class MersenneTwister:
    """MT19937 with a 32-bit seed. Every draw advances the same stream of 32-bit words."""

    def __init__(self, seed: int) -> None:
        try:
            number = operator.index(seed)
        except TypeError:
            number = -1
        if not 0 <= number < 2**32:
            raise UsageError(f"seed {shown(seed)}: expected a whole number from 0 to 2^32 - 1")
        self._stream = np.random.MT19937()
        seeded = np.random.RandomState(number).get_state(legacy=False)["state"]
        self.set_state(seeded["key"], seeded["pos"])

    def state(self) -> tuple[NDArray[np.uint32], int]:
        """The 624 words, and how many of them have been used (624 after seeding)."""
        inner = self._stream.state["state"]
        return inner["key"].copy(), int(inner["pos"])

    def set_state(self, words: NDArray[np.uint32], position: int) -> None:
        """Continue where `state` was called."""
        if words.shape != (N_WORDS,) or not 0 <= position <= N_WORDS:
            raise ValueError(f"words of shape {words.shape}, position {position}")
        self._stream.state = {
            "bit_generator": "MT19937",
            "state": {"key": words.astype(np.uint32), "pos": position},
        }

    def words(self, n: int) -> NDArray[np.uint64]:
        """The next n words of 32 bits, (n,)."""
        return self._stream.random_raw(n)

    def u32(self) -> int:
        """One word."""
        return int(self.words(1)[0])

    def u64(self) -> int:
        """Two words; the first is the upper half."""
        upper, lower = self.words(2)
        return int(upper) << 32 | int(lower)

    def f32(self) -> float:
        """A number in [0, 1) from the lower 24 bits of a word, exact in float32."""
        return float(self.uniforms(1)[0])

    def f64(self) -> float:
        """A number in [0, 1) from 53 bits of two words."""
        return (self.u64() & (2**53 - 1)) * 2.0**-53

    def uniforms(self, n: int) -> Array:
        """n numbers like `f32`, (n,)."""
        return (self.words(n) & np.uint64(2**24 - 1)).astype(np.float32) * np.float32(2**-24)

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high), in float32."""
        low_, high_ = np.float32(low), np.float32(high)
        return float(self.uniforms(1)[0] * (high_ - low_) + low_)

    def permute(self, values: NDArray[np.int32]) -> None:
        """Shuffle in place (Fisher & Yates): for i = n-1 … 1, swap i with j = word mod (i + 1).

        Not exactly uniform, and not PyTorch's `randperm`.
        """
        n = len(values)
        if n < 2:
            return
        partners = (self.words(n - 1) % np.arange(n, 1, -1, dtype=np.uint64)).tolist()
        order = values.tolist()
        for i, j in zip(range(n - 1, 0, -1), partners, strict=True):
            order[i], order[j] = order[j], order[i]
        values[:] = order

    def normal(self, n: int, mean: float = 0.0, std: float = 1.0) -> Array:
        """n normal variates (Box & Muller), (n,) float32.

        n < 16 and n ≥ 16 draw differently, so two calls differ from one call of the total. From
        16 on, n uniforms are transformed in blocks of 16; unless 16 divides n, the last 16 are
        drawn again.
        """
        if n < BLOCK:
            return self._few_normals(n, mean, std)
        out = self.uniforms(n)
        whole = out[: n - n % BLOCK].reshape(-1, BLOCK)
        for start in range(0, len(whole), CHUNK):
            _box_muller(whole[start : start + CHUNK], mean, std)
        if n % BLOCK:
            out[-BLOCK:] = self.uniforms(BLOCK)
            _box_muller(out[-BLOCK:].reshape(1, BLOCK), mean, std)
        return out

    def _few_normals(self, n: int, mean: float, std: float) -> Array:
        """Pairs of two float64 draws; if n is odd, the second of the last pair is discarded."""
        pairs = np.array([self.f64() for _ in range(n + n % 2)], np.float32).reshape(-1, 2)
        radius, cosine, sine = _polar(np.float32(1) - pairs[:, 1], pairs[:, 0])
        mean_, std_ = np.float32(mean), np.float32(std)
        pairs[:, 0] = radius * cosine * std_ + mean_
        # The original keeps the second in a double: one rounding where the first has two.
        pairs[:, 1] = (radius * sine).astype(np.float64) * np.float64(std_) + np.float64(mean_)
        return pairs.reshape(-1)[:n]


def _box_muller(blocks: Array, mean: float, std: float) -> None:
    """Eight uniforms a, eight b -> r(a) cos θ(b), then r(a) sin θ(b). blocks: (n, 16), in place"""
    radius, cosine, sine = _polar(np.float32(1) - blocks[:, :8], blocks[:, 8:])
    blocks[:, :8] = radius * cosine * np.float32(std) + np.float32(mean)
    blocks[:, 8:] = radius * sine * np.float32(std) + np.float32(mean)


def _polar(u: Array, turn: Array) -> tuple[Array, Array, Array]:
    """r = √(-2 ln(u + 1e-12)), cos θ and sin θ of θ = 2π · turn, rounded to float32 each time."""
    logarithm = np.log(_rounded(np.asarray(u, np.float64) + 1e-12)).astype(np.float32)
    theta = _rounded(2 * math.pi * np.asarray(turn, np.float64))
    cosine, sine = np.cos(theta).astype(np.float32), np.sin(theta).astype(np.float32)
    return np.sqrt(np.float32(-2) * logarithm), cosine, sine


def _rounded(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rounded to float32's precision, stored as float64."""
    return np.asarray(x, np.float32).astype(np.float64)
