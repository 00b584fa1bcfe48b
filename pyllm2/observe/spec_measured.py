"""How much of its bound an op uses: the worst of many drawn inputs, for every backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pyllm2 import backends
from pyllm2.observe.judge import NOTHING, Measure, measure, require_bounds
from pyllm2.observe.spec import PACKAGES

EXAMPLES = 50


def measured_shares(
    model: str, op: str, names: Sequence[str], examples: int = EXAMPLES
) -> dict[str, Measure]:
    """By backend, the largest error in units of the bound over inputs that hypothesis draws.

    The same inputs at every call. {} for an op without a bound. Raises BackendError.
    """
    require_bounds()
    from hypothesis import HealthCheck, Phase, given, settings

    from pyllm2.testing import Bounded, tables

    row = tables[model].get(op)
    if row is None:
        return {}
    functions = {n: getattr(backends.ops(n, package=PACKAGES[model]), op) for n in names}
    worst = dict.fromkeys(functions, NOTHING)

    @settings(
        max_examples=examples,
        phases=[Phase.generate],
        database=None,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(row.inputs)
    def look(inputs: tuple[Any, ...]) -> None:
        with np.errstate(all="ignore"):
            bounded = row.bound(*inputs)
            expected = [bounded] if isinstance(bounded, Bounded) else list(bounded)
            for name, function in functions.items():
                found = row.call(function, *inputs)
                several = found if isinstance(found, tuple) else (found,)
                for one, (value, error) in zip(several, expected, strict=True):
                    worst[name] = worst[name].worse(measure(one, value, error))

    look()
    return worst
