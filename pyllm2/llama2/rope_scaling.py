"""RoPE frequencies other than llama2.c's: another base, and the ways to stretch a context.

Formulas as in transformers, evaluated in float64; hs head size, i = 0, 2, …, hs - 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pyllm2.errors import ConfigError

KINDS = ("linear", "dynamic", "llama3", "yarn", "divisors")


@dataclass(frozen=True)
class RopeScaling:
    """What is done to the frequencies base^(-i/hs), by `kind`; fields of other kinds are ignored.

    linear     divided by factor
    dynamic    base grows with the length of the text beyond `original`; keys that are cached by
               then keep the angles that they have (the context is usually factor · original)
    llama3     long waves divided by factor, short ones unchanged, a ramp between
    yarn       the same with other limits; cos and sin are multiplied by attention_factor
    divisors   divided one by one, as GGUF's tensor rope_freqs.weight does it

    Raises ConfigError (name, value, rule) for values that no formula can use.
    """

    kind: str
    factor: float = 1.0
    original: int = 0  # context of the original training; of dynamic: max_position_embeddings
    low: float = 1.0  # llama3: low_freq_factor
    high: float = 4.0  # llama3: high_freq_factor
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float = 1.0  # yarn, see `yarn_attention_factor`
    truncate: bool = True  # yarn: limits of the ramp are rounded to whole pairs
    divisors: tuple[float, ...] = field(default=(), repr=False)  # (hs/2,)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError("rope_type", self.kind, f"must be one of {', '.join(KINDS)}")
        for name in "factor low high beta_fast beta_slow attention_factor".split():
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(name, value, "must be a number above 0")
        if not all(math.isfinite(divisor) and divisor > 0 for divisor in self.divisors):
            raise ConfigError("divisors", self.divisors, "must be numbers above 0")
        if self.kind in ("dynamic", "llama3", "yarn") and self.original < 1:
            raise ConfigError("original", self.original, "must be at least 1")
        if self.kind == "dynamic" and self.factor < 1:
            raise ConfigError("factor", self.factor, "must be at least 1")
        if self.kind == "llama3" and self.low >= self.high:
            raise ConfigError("low", self.low, f"must be below high = {self.high}")


def frequencies(hs: int, base: float, scaling: RopeScaling | None, length: int = 0) -> list[float]:
    """Angle per position of each pair of a head: hs/2 numbers.

    length: tokens of the text so far; only dynamic scaling depends on it.
    """
    if scaling is None:
        return _powers(hs, base)
    if scaling.kind == "dynamic":
        return _powers(hs, _stretched_base(hs, base, scaling, length))
    scale = {"linear": _linear, "llama3": _llama3, "yarn": _yarn, "divisors": _divided}
    return scale[scaling.kind](_powers(hs, base), base, scaling)


def table_arguments(
    hs: int, base: float, scaling: RopeScaling | None, length: int = 0
) -> tuple[float, list[float] | None, float]:
    """What `ops.rope_tables` takes: base, a divisor per pair or None, and the scale of the tables.

    length: see `frequencies`.
    """
    if scaling is None:
        return base, None, 1.0
    if scaling.kind == "dynamic":
        return _stretched_base(hs, base, scaling, length), None, 1.0
    scaled = frequencies(hs, base, scaling)
    divisors = [f / g for f, g in zip(_powers(hs, base), scaled, strict=True)]
    return base, divisors, scaling.attention_factor if scaling.kind == "yarn" else 1.0


def yarn_attention_factor(factor: float, mscale: float = 0.0, mscale_all_dim: float = 0.0) -> float:
    """The attention factor of a file that does not give it: g(factor, 1), where

        g(s, m) = 0.1 · m · ln s + 1, or 1 if s ≤ 1

    or g(factor, mscale) / g(factor, mscale_all_dim) if both are given and not 0.
    """

    def g(m: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * m * math.log(factor) + 1

    return g(mscale) / g(mscale_all_dim) if mscale and mscale_all_dim else g(1.0)


def _powers(hs: int, base: float) -> list[float]:
    """base^(-i/hs)"""
    return [base ** (-i / hs) for i in range(0, hs, 2)]


def _stretched_base(hs: int, base: float, scaling: RopeScaling, length: int) -> float:
    """base · ((factor · s/M) - (factor - 1))^(hs / (hs - 2)) with s = max(length, M).

    Head size 2 has one pair, of frequency 1 whatever the base.
    """
    s, factor, M = max(length, scaling.original), scaling.factor, scaling.original
    return base if hs == 2 else base * (factor * s / M - (factor - 1)) ** (hs / (hs - 2))


def _linear(inverse: list[float], base: float, scaling: RopeScaling) -> list[float]:
    return [f / scaling.factor for f in inverse]


def _divided(inverse: list[float], base: float, scaling: RopeScaling) -> list[float]:
    return [f / divisor for f, divisor in zip(inverse, scaling.divisors, strict=True)]


def _llama3(inverse: list[float], base: float, scaling: RopeScaling) -> list[float]:
    """By wavelength 2π/f: below original/high unchanged, above original/low divided by factor.

    Between, with s = (original/wavelength - low) / (high - low): (1 - s) · f/factor + s · f.
    """
    original, low, high = scaling.original, scaling.low, scaling.high
    scaled = []
    for f in inverse:
        waves = original * f / (2 * math.pi)  # original / wavelength
        s = min(max((waves - low) / (high - low), 0.0), 1.0)
        scaled.append((1 - s) * f / scaling.factor + s * f)
    return scaled


def _yarn(inverse: list[float], base: float, scaling: RopeScaling) -> list[float]:
    """Pairs that turn often keep their frequency, those that turn rarely have it divided by factor.

    find(turns) = hs · ln(original / (2π · turns)) / (2 · ln base)
    lo, hi = ⌊find(beta_fast)⌋, ⌈find(beta_slow)⌉, at least 0 and at most hs - 1
    ramp[k] = (k - lo) / (hi - lo), within 0 … 1      f/factor · ramp + f · (1 - ramp)
    """
    hs = 2 * len(inverse)

    def find(turns: float) -> float:
        waves = scaling.original / (2 * math.pi * turns)
        return hs * math.log(waves) / (2 * math.log(base))

    lo, hi = find(scaling.beta_fast), find(scaling.beta_slow)
    if scaling.truncate:
        lo, hi = math.floor(lo), math.ceil(hi)
    lo, hi = max(lo, 0), min(hi, hs - 1)
    if lo == hi:
        hi += 0.001
    scaled = []
    for k, f in enumerate(inverse):
        ramp = min(max((k - lo) / (hi - lo), 0.0), 1.0)
        scaled.append(f / scaling.factor * ramp + f * (1 - ramp))
    return scaled
