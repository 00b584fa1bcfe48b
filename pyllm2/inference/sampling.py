"""From logits to the next token: temperature, then argmax, multinomial or top-p sampling.

All sums are float32 in llama2.c's order of additions, because a random number is compared with a
running sum: another rounding would sometimes choose another token. Ties go to the lower id.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import NotFiniteError
from pyllm2.inference.ranges import whole
from pyllm2.inference.xorshift import STATE_OF_SEED_0, XorShift

Array = NDArray[np.float32]


def argmax(logits: Array) -> int:
    """The id of the largest logit, the lowest id of equals."""
    return int(np.argmax(logits))


def probabilities(logits: Array, temperature: float) -> Array:
    """softmax(logits / temperature): exp in float64, rounded, and the sum in order of ids.

    logits: (V,)   ->   (V,)   temperature > 0; a very small one gives NaN.
    """
    with np.errstate(all="ignore"):
        scaled = logits / np.float32(temperature)
        shifted = scaled - np.max(scaled)
        e = np.exp(shifted.astype(np.float64)).astype(np.float32)
        return e / np.cumsum(e)[-1]  # cumsum adds in order; sum adds pairwise


def multinomial(p: Array, coin: float) -> int:
    """The first id at which the running sum of p exceeds coin; V - 1 if rounding prevents that."""
    running = np.cumsum(p)
    chosen = int(np.searchsorted(running, np.float32(coin), side="right"))
    return min(chosen, len(p) - 1)


def nucleus(p: Array, top_p: float) -> tuple[NDArray[np.integer], Array]:
    """The ids of top-p sampling, most probable first, and the running sums of their p.

    They are the smallest set of most probable ids whose p add up to more than top_p (Holtzman et
    al. 2020). Ids with p below (1 - top_p) / (V - 1) cannot be among them and are not sorted, as in
    llama2.c. If no id is left (V = 1, or top_p < 1/V and all p equal), the most probable is kept.
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
    """Draw from the nucleus; coin is multiplied by the sum of its probabilities."""
    ids, running = nucleus(p, top_p)
    r = np.float32(coin) * running[-1]
    chosen = int(np.searchsorted(running, r, side="right"))
    return int(ids[min(chosen, len(ids) - 1)])


class Sampler:
    """Chooses tokens: temperature 0 is greedy, top_p outside (0, 1) is plain multinomial.

    seed: an integer in [0, 2⁶⁴), the first state of the generator; 0, a state that the generator
    never leaves, stands for 0x9E3779B97F4A7C15.
    Each token takes one random number; greedy choice takes none.
    """

    def __init__(self, temperature: float = 1.0, top_p: float = 0.9, seed: int = 0) -> None:
        # float32 as in the original: a temperature of 1e-50 becomes 0, which is greedy.
        with np.errstate(over="ignore"):
            self.temperature, self.top_p = np.float32(temperature), np.float32(top_p)
        self.rng = XorShift(whole("seed", seed) or STATE_OF_SEED_0)

    def __call__(self, logits: Array) -> int:
        """The next token, never one of probability 0. logits: (V,), finite, not changed.

        Raises NotFiniteError if logits / temperature overflows.
        """
        if self.temperature == 0:
            return argmax(logits)
        p = probabilities(logits, float(self.temperature))
        coin = self.rng.next_float()
        if not np.isfinite(p[0]):  # one NaN makes the sum NaN, and so every p
            raise NotFiniteError(
                f"temperature {self.temperature:g} gives probabilities that are not finite"
            )
        if 0 < self.top_p < 1:
            return sample_top_p(p, float(self.top_p), coin)
        token = multinomial(p, coin)
        if p[token] == 0:  # V - 1 was chosen because of rounding
            token = int(np.flatnonzero(p)[-1])
        return token
