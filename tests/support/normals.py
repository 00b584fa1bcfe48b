"""How far two evaluations of a normal number of the Mersenne Twister can lie apart."""

from __future__ import annotations

ULP = 2.0**-23  # largest relative distance of neighbouring float32 numbers
# Relative difference of two evaluations of r · cos θ · std whose library functions are within one
# ulp of the true value: one ulp of the logarithm (half an ulp of r), one of the cosine, and half
# an ulp for each of the three roundings, on both sides. It is relative even where the cosine is
# small, because both evaluations have the same float32 θ.
NORMAL_BOUND = (0.5 + 1 + 2 * 3 * 0.5) * ULP
