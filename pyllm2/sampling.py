"""From logits to the next token: temperature, then argmax, multinomial or top-p.

Everything is float32 in llama2.c's order of additions, because a coin is compared with a running
sum: another rounding would, once in a while, be another story. Ties go to the lower id.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import NotFiniteError
from pyllm2.rng import STATE_OF_SEED_0, XorShift

Array = NDArray[np.float32]


def argmax(logits: Array) -> int:
    """The id of the largest logit, the lowest id of equals."""
    return int(np.argmax(logits))


def probabilities(logits: Array, temperature: float) -> Array:
    """softmax(logits / temperature), with exp rounded from float64 and the sum in ascending order.

    logits: (V,)   ->   (V,)   temperature must be positive; a small one may overflow to NaN.
    """
    with np.errstate(all="ignore"):
        scaled = logits / np.float32(temperature)
        shifted = scaled - np.max(scaled)
        e = np.exp(shifted.astype(np.float64)).astype(np.float32)
        return e / np.cumsum(e)[-1]  # cumsum adds one by one; sum would add in pairs


def multinomial(p: Array, coin: float) -> int:
    """The first id whose running sum of p exceeds the coin; V - 1 if rounding keeps it below."""
    running = np.cumsum(p)
    chosen = int(np.searchsorted(running, np.float32(coin), side="right"))
    return min(chosen, len(p) - 1)


def nucleus(p: Array, top_p: float) -> tuple[NDArray[np.integer], Array]:
    """The kept ids of top-p sampling, most probable first, and the running sums of their p.

    The smallest set of most probable ids whose p exceed top_p in sum (Holtzman et al. 2020).
    Ids below (1 - top_p) / (V - 1) cannot belong to it and are not sorted, as in llama2.c. That
    rule can leave nobody (one id; or top_p below 1/V and all alike): then the best one is kept.
    """
    V = len(p)
    top = np.float32(top_p)
    with np.errstate(divide="ignore"):
        cutoff = (np.float32(1) - top) / np.float32(V - 1)
    candidates = np.flatnonzero(p >= cutoff)
    if len(candidates) == 0:
        candidates = np.array([argmax(p)])
    ids = candidates[np.argsort(-p[candidates], kind="stable")]
    running = np.cumsum(p[ids])
    kept = min(int(np.searchsorted(running, top, side="right")) + 1, len(ids))
    return ids[:kept], running[:kept]


def sample_top_p(p: Array, top_p: float, coin: float) -> int:
    """Draw from the nucleus: the coin is scaled to the sum that was kept."""
    ids, running = nucleus(p, top_p)
    r = np.float32(coin) * running[-1]
    chosen = int(np.searchsorted(running, r, side="right"))
    return int(ids[min(chosen, len(ids) - 1)])


class Sampler:
    """Chooses tokens: temperature 0 is greedy, top_p outside (0, 1) is plain multinomial.

    seed: an integer in [0, 2⁶⁴); it is the generator's first state, but 0, which the generator
    could never leave, stands for the fixed state 0x9E3779B97F4A7C15.
    One coin is drawn a token, none when greedy.
    """

    def __init__(self, temperature: float = 1.0, top_p: float = 0.9, seed: int = 0) -> None:
        # float32 as in the original, where a temperature of 1e-50 is 0 and so greedy.
        with np.errstate(over="ignore"):
            self.temperature, self.top_p = np.float32(temperature), np.float32(top_p)
        self.rng = XorShift(seed or STATE_OF_SEED_0)

    def __call__(self, logits: Array) -> int:
        """The next token. logits: (V,), finite; they are left as they were.

        Never a token of probability zero. Raises NotFiniteError if the temperature is so small
        that the quotients overflow.
        """
        if self.temperature == 0:
            return argmax(logits)
        p = probabilities(logits, float(self.temperature))
        coin = self.rng.next_float()
        if not np.isfinite(p[0]):  # a NaN anywhere makes the sum and so every p NaN
            raise NotFiniteError(
                f"temperature {self.temperature:g} gives probabilities that are not numbers"
            )
        if 0 < self.top_p < 1:
            return sample_top_p(p, float(self.top_p), coin)
        token = multinomial(p, coin)
        if p[token] == 0:  # the running sum stayed below the coin and V - 1 is impossible
            token = int(np.flatnonzero(p)[-1])
        return token
