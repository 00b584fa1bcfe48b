"""Bounds of ops that overlap agree: the same formula in float64, written twice."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given

from pyllm2.testing.llama2 import bounds, strategies

SAME = {"rtol": 1e-12, "atol": 1e-12}


@given(strategies.attention_forward_inputs())
def test_attention_of_training_is_that_of_inference(inputs: Any) -> None:
    """Sequence by sequence, without dropout."""
    q, k, v, _ = inputs
    out, _ = bounds.attention_forward(q, k, v)
    for b in range(len(q)):
        found = bounds.attention(q[b], k[b], v[b]).value
        scale = float(np.abs(v).max()) + 1
        np.testing.assert_allclose(found / scale, out.value[b] / scale, **SAME)


@given(strategies.crossentropy_forward_inputs())
def test_probs_of_the_loss_are_the_softmax(inputs: Any) -> None:
    """For any targets."""
    logits, targets = inputs
    _, probs = bounds.crossentropy_forward(logits, targets)
    np.testing.assert_allclose(probs.value, bounds.softmax(logits).value, **SAME)
