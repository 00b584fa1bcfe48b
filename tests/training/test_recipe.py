"""Recipes: refusal of impossible settings, micro-batches, identity of a run."""

from __future__ import annotations

from typing import Any

import pytest

from pyllm2.errors import UsageError
from pyllm2.training.recipe import Recipe

GOOD: dict[str, Any] = {"batch": 2, "context": 4, "total_batch": 16, "steps": 10}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total_batch": 12}, r"total batch of 12 tokens: expected a multiple of batch 2 .* = 8"),
        ({"total_batch": 0}, "total batch of 0 tokens"),
        ({"learning_rate": float("nan")}, "learning_rate = nan: expected a number from 0"),
        ({"learning_rate": float("inf")}, "learning_rate = inf: expected"),
        ({"final_fraction": 1.5}, r"final_fraction = 1\.5: expected a number from 0 to 1"),
        ({"weight_decay": -0.1}, r"weight_decay = -0\.1: expected"),
        ({"clip": -1.0}, r"clip = -1\.0: expected"),
        ({"beta1": 1.0}, r"beta1 = 1\.0: expected 0 ≤ x < 1"),
        ({"beta2": -0.5}, r"beta2 = -0\.5: expected"),
        ({"decay": "some"}, "decay 'some': choose from matrices, all"),
        ({"schedule": "none"}, "schedule 'none' does not exist"),
        ({"warmup": 10}, "warm-up of 10 steps: expected fewer"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_impossible_setting_is_refused(changes: dict[str, Any], message: str) -> None:
    """The message names the setting, its value and what is allowed."""
    with pytest.raises(UsageError, match=message):
        Recipe(**{**GOOD, **changes})


def test_micro_steps_make_up_the_total_batch() -> None:
    """An update of 16 tokens takes two micro-batches of 2 rows of 4 tokens."""
    assert Recipe(**GOOD).micro_steps == 2


def test_identity_leaves_out_settings_without_effect() -> None:
    """With a constant rate the number of steps is not part of the identity; otherwise it is."""
    assert "steps" in Recipe(**GOOD).identity()
    shorter, longer = (
        Recipe(**{**GOOD, "steps": n, "schedule": "constant"}).identity() for n in (5, 9)
    )
    assert shorter == longer
    assert Recipe(**GOOD, seed=1).identity() != Recipe(**GOOD).identity()
