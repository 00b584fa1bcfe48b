"""Random weights whose greedy ids depend on the parts of a model that a case is about.

A part that is switched off has a zero matrix at its end (wo, w2), so it adds nothing to the stream
whatever the rest of it computes. Matrices have deviation 1/sqrt(inputs), so every part changes
the stream by about its own size, and ids depend on each of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.conform import bundled

Array = NDArray[np.float32]

BLOCKS = {
    "none": "embedding, final norm and classifier",
    "feed-forward": "and the feed-forward network",
    "values": "and attention with equal weights: queries and keys are 0",
    "attention": "and attention",
    "all": "everything",
}
DAMPED = 0.2  # embeddings of pieces that are not tracers: their logits never win
TIED = (7, 5)  # two ids with the same classifier row in style "ties"; the lower one wins


def weights_of(case: Any) -> dict[str, Array]:
    """The arrays of the model of a `case.Case` by name, from the seed `case.weights`."""
    if case.style == "stories":
        return bundled.arrays()[1]
    random = np.random.default_rng(case.weights)
    shapes = case.config.shapes(case.shared)
    found: dict[str, Array] = {}
    for name, shape in shapes.items():
        if name.endswith("norm"):
            array = random.uniform(0.5, 1.5, shape)
            if name == "final_norm":  # signs: or an id would mostly follow itself
                array = array * random.choice((-1.0, 1.0), shape)
        elif name in ("token_embedding", "classifier"):
            array = random.normal(size=shape)
        else:
            array = random.normal(size=shape) * 1.6 / np.sqrt(shape[-1])
        found[name] = array.astype(np.float32)
    _switch_off(found, case.blocks)
    last = found["classifier" if "classifier" in found else "token_embedding"]
    for text in case.texts:
        last[text.id] *= np.float32(DAMPED)
    for i, factor in case.boost:
        last[i] *= np.float32(factor)
    if case.style == "ties":
        _tie(found)
    if case.style == "tiny":  # what the blocks add is as small as the embedding: epsilon counts
        found["wo"] *= np.float32(case.scale)
        found["w2"] *= np.float32(case.scale)
    if case.style == "loud attention":  # scores of some hundreds: exp overflows without the maximum
        found["wq"] *= np.float32(16)
        found["wk"] *= np.float32(16)
    if case.scale != 1:
        found["token_embedding"] *= np.float32(case.scale)
    if case.loudness != 1:
        found["final_norm"] *= np.float32(case.loudness)
    return found


def _switch_off(weights: dict[str, Array], blocks: str) -> None:
    if blocks in ("none", "values", "attention"):
        weights["w2"][...] = 0
    if blocks in ("none", "feed-forward"):
        weights["wo"][...] = 0
    if blocks == "values":
        weights["wq"][...] = 0
        weights["wk"][...] = 0


def _tie(weights: dict[str, Array]) -> None:
    """Exact ties: the same two ids have the largest logit after every id.

    Their rows have one entry that is not 0, so that every order of additions gives the same bits.
    The stream after every id has the sign of that entry, because the embedding is positive there.
    """
    table = weights["token_embedding"]
    table[:, 0] = np.abs(table[:, 0]) + 1
    weights["final_norm"][0] = 1
    classifier = weights["classifier"]
    classifier *= np.float32(0.01)
    for i in TIED:
        classifier[i] = 0
        classifier[i, 0] = 16
