"""Laws of sampling, for programs that take no seed: what holds whatever the random numbers are.

    nucleus   every id is among the most probable ones that add up to p
    hot       at a temperature of 100 ids are nearly uniform: hardly any is the most probable one,
              hardly any comes twice in a row

The probabilities are those of the original after the program's own ids.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from pyllm2.conform.case import BOS, Case
from pyllm2.conform.reference import COIN_ERROR, LOGIT_ERROR, engine
from pyllm2.inference.sampling import probabilities
from pyllm2.llama2.model import Llama2, Weights

HOT = 100.0


def broken_law(case: Case, ids: list[int]) -> tuple[int, str] | None:
    """The step and the words of a law that a program's ids break; None if all hold."""
    model = Llama2(case.config, Weights(**case.tensors), engine())
    fed = [BOS, *ids][: case.seq_len]
    logits = model.forward(np.array(fed[: len(ids)]), 0, model.new_cache(len(fed)))
    if case.temperature >= HOT:
        best = sum(int(np.argmax(row)) == i for row, i in zip(logits, ids, strict=False))
        again = sum(a == b for a, b in pairwise(ids))
        for count, words in ((best, "are the most probable one"), (again, "are the one before")):
            if 2 * count >= len(ids):
                return 0, f"{count} of {len(ids)} ids {words}, at temperature {case.temperature:g}"
        return None
    for step, (row, i) in enumerate(zip(logits, ids, strict=False)):
        p = probabilities(row, case.temperature).astype(np.float64)
        error = LOGIT_ERROR * float(np.max(np.abs(row))) / case.temperature + COIN_ERROR
        above = float(p[p > p[i] * (1 + error)].sum())
        if above > case.topp + error:
            return step, f"id {i} at step {step + 1}: the ids above it add up to {above:.4f}"
    return None
