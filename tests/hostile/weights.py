"""Row 17: one non-finite weight in each kind of array."""

from __future__ import annotations

import math

from tests.hostile.case import GENERATE, Case
from tests.support.llama2_files import poisoned

PLACES = {
    "token_embedding": "embedding",
    "attention_norm": "layer 1, attention",
    "wq": "layer 1, attention",
    "wk": "layer 1, attention",
    "wv": "layer 1, attention",
    "wo": "layer 1, attention",
    "ffn_norm": "layer 1, feed-forward",
    "w1": "layer 1, feed-forward",
    "w2": "layer 1, feed-forward",
    "w3": "layer 1, feed-forward",
    "final_norm": "final norm and classifier",
    "classifier": "final norm and classifier",
}
VALUES = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}

NOT_FINITE = [
    Case(
        17,
        f"{value}-in-{tensor}",
        f"m.bin: non-finite logits at position 0 ({place}), backend numpy",
        {"m.bin": poisoned(tensor, VALUES[value], layer=1)},
        GENERATE,
    )
    for tensor, place in PLACES.items()
    for value in VALUES
]
