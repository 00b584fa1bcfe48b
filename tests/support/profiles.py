"""Hypothesis profiles, and settings for properties that need another number of examples.

$HYPOTHESIS_PROFILE is `quick` (the default, 25 examples), `ci` (100) or `soak` (5,000).
quick and ci are derandomized: they try the same examples every time, so a failure is repeatable.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings

QUICK = 25
_common: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=QUICK, derandomize=True, **_common)
settings.register_profile("ci", max_examples=100, derandomize=True, **_common)
settings.register_profile("soak", max_examples=5000, **_common)

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "quick")
settings.load_profile(PROFILE)


def few(examples: int = QUICK, **options: Any) -> settings:
    """Settings with `examples` examples in profiles quick and ci, and 200 times as many in soak.

    For properties of whole models, training runs and processes: an example costs a hundred times
    as much as one of an op, and it is the sizes that select kernels, not the numbers.
    """
    scale = settings().max_examples // QUICK if PROFILE == "soak" else 1
    return settings(max_examples=examples * scale, **options)


def at_least(examples: int) -> settings:
    """Settings with at least `examples` examples: for properties whose examples are cheap."""
    return settings(max_examples=max(examples, settings().max_examples))


# For a property that writes into its test's tmp_path, which is the same for all examples.
writes_files = few(15, suppress_health_check=[HealthCheck.function_scoped_fixture])
