"""How far each backend is from float64, op by op: fraction of the bound used, and worst ulp.

    python tools/accuracy.py --examples 300

Inputs come from the tables of the property tests (`pyllm2.testing.tables`). A fraction above 1
would be a failing test. Units in the last place grow without limit where terms cancel (matmul,
attention), which is why the tests do not count them.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from tabulate import tabulate

from pyllm2 import backends
from pyllm2.testing import Bounded, Op, tables

PACKAGES = {"llama2": "llama2", "gpt2": "gpt2", "adamw": "training"}


def worst(op: Op, functions: dict[str, Any], examples: int) -> dict[str, list[float]]:
    """For each backend the largest fraction of the bound and the largest error in ulp."""
    found = {backend: [0.0, 0.0] for backend in functions}
    quiet = settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))

    @settings(quiet, max_examples=examples, derandomize=True)
    @given(op.inputs)
    def measure(inputs: tuple[Any, ...]) -> None:
        expected = op.bound(*inputs)
        expected = (expected,) if isinstance(expected, Bounded) else expected
        for backend, function in functions.items():
            results = op.call(function, *inputs)
            results = results if isinstance(results, tuple) else (results,)
            for result, (value, error) in zip(results, expected, strict=True):
                judged = np.isfinite(value) & np.isfinite(error)
                result, value, error = result[judged], value[judged], error[judged]
                off = np.abs(result.astype(np.float64) - value)
                share = np.where(off == 0, 0.0, off / np.maximum(error, 2.0**-1074))
                ulp = off / np.spacing(np.abs(value).astype(np.float32)).astype(np.float64)
                found[backend][0] = max(found[backend][0], float(share.max(initial=0)))
                found[backend][1] = max(found[backend][1], float(ulp.max(initial=0)))

    measure()
    return found


def rows(names: list[str], examples: int) -> list[list[str]]:
    """A row per op of every table: its name, and two figures per backend."""
    table = []
    for model, package in PACKAGES.items():
        modules = {name: backends.ops(name, package=package) for name in names}
        for op in tables[model].values():
            functions = {name: getattr(module, op.name) for name, module in modules.items()}
            found = worst(op, functions, examples)
            table.append([f"{model}.{op.name}", *(f"{s:.3f}  {u:.3g}" for s, u in found.values())])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--examples", type=int, default=300, help="drawn inputs per op")
    options = parser.parse_args()
    names = [name for name in backends.NAMES if backends.why_not(name) is None]
    headers = ["op", *(f"{name}: fraction, ulp" for name in names)]
    print(tabulate(rows(names, options.examples), headers, tablefmt="github"))


if __name__ == "__main__":
    main()
