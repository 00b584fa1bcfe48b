"""Text from a model in training: the whole context forward, one token; and again."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyllm2.sampling import Sampler

SEED = 1337


def sample(
    model: Any, start: int, count: int, vocab_size: int, context: int, seed: int = SEED
) -> list[int]:
    """`count` tokens after `start`, drawn at temperature 1, the same coins every time.

    model: has `forward(tokens).logits`, (B, T) -> (B, T, ≥ V)   context: tokens looked back at
    """
    sampler = Sampler(temperature=1.0, top_p=1.0, seed=seed)
    tokens = [start]
    for _ in range(count):
        window = np.array([tokens[-context:]], np.int32)
        with np.errstate(all="ignore"):
            logits = model.forward(window).logits[0, -1, :vocab_size]
            tokens.append(sampler(logits))
    return tokens[1:]
