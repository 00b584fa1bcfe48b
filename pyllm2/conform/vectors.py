"""Golden inputs and outputs of every op, for a port that has no command line."""

from __future__ import annotations

import io
import json
import signal
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import HypothesisWarning

from pyllm2.formats.new_folder import new_folder
from pyllm2.formats.safetensors_file import write_safetensors
from pyllm2.testing import tables
from pyllm2.testing.bounds import Bounded
from pyllm2.testing.op import Op
from pyllm2.training.signals import stop_requests

MOST_ELEMENTS = 4096  # of all inputs of an example: larger draws are left out
README = """Golden vectors of pyllm2: inputs and outputs of every op, forward and backward.

One file per op, MODEL.OP. Example i has the arrays
    i.in.NAME     an input, in the order of ops.py; numbers are arrays without dimensions
    i.out.K       the K-th result, evaluated in float64
    i.error.K     the largest error that a correct float32 implementation may show, per element
A result passes if abs(result - out) <= error everywhere; NaN where out is NaN. The bounds and their
derivations are in pyllm2/testing, the formulas and shapes in the ops.py of each model. Inputs that
the original has not got (the epsilon of a norm, a bias ...) are left out: they are the original's.
"""


def examples(op: Op, n: int, first: int) -> list[tuple[Any, ...]]:
    """n drawn inputs of an op, the same for the same seed."""
    found: list[tuple[Any, ...]] = []

    @seed(first)
    @settings(
        max_examples=8 * n,
        database=None,
        report_multiple_bugs=False,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(op.inputs)
    def draw(inputs: tuple[Any, ...]) -> None:
        size = sum(np.size(a) for a in inputs if a is not None)
        if len(found) < n and size <= MOST_ELEMENTS:
            found.append(tuple(a.copy() if isinstance(a, np.ndarray) else a for a in inputs))
        if len(found) == n:
            raise _EnoughError

    with stop_requests() as stop, suppress(_EnoughError), warnings.catch_warnings():
        warnings.simplefilter("ignore", HypothesisWarning)  # of a large repr: the end is no failure
        draw()
    if stop.number is not None:  # inside, hypothesis may hide it or call the draws inconsistent
        signal.raise_signal(stop.number)
    return found


class _EnoughError(Exception):
    """Ends the drawing: hypothesis has no other way to stop early."""


def arrays_of(op: Op, n: int, first: int = 0) -> dict[str, Any]:
    """The arrays of an op by name."""
    arrays: dict[str, Any] = {}
    for i, inputs in enumerate(examples(op, n, first)):
        bounded = op.bound(*inputs)
        for name, value in zip(op.arguments, inputs, strict=False):
            if value is not None:
                arrays[f"{i}.in.{name}"] = np.asarray(value)
        for k, one in enumerate((bounded,) if isinstance(bounded, Bounded) else bounded):
            out, error = np.broadcast_arrays(*one)
            arrays[f"{i}.out.{k}"] = np.asarray(out)
            arrays[f"{i}.error.{k}"] = np.asarray(error)
    return arrays


def write_vectors(
    folder: str, kind: str = "npz", n: int = 8, first: int = 0, replace: bool = False
) -> int:
    """Write a new folder with one file per op and a README; returns the number of ops.

    kind: "npz", "safetensors" or "json"   replace: older vectors may be there, and are replaced
    Raises FileError.
    """
    count = 0
    old = ["README.md", *(f"{model}.*" for model in tables)] if replace else ()
    with new_folder(folder, old) as made:
        (made / "README.md").write_text(README, encoding="utf-8")
        for model, table in tables.items():
            for name, op in table.items():
                arrays = arrays_of(op.without(op.optional), n, first)
                path = Path(made) / f"{model}.{name}.{kind}"
                if kind == "safetensors":
                    write_safetensors(path, arrays, {"op": f"{model}.{name}"})
                else:
                    path.write_bytes(_npz(arrays) if kind == "npz" else _json(arrays))
                count += 1
    return count


def _npz(arrays: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def _json(arrays: dict[str, Any]) -> bytes:
    """dtype, shape and flat numbers of each array; NaN and infinities as JavaScript writes them."""
    rows = {
        name: {"dtype": str(a.dtype), "shape": list(a.shape), "data": a.reshape(-1).tolist()}
        for name, a in arrays.items()
    }
    return json.dumps(rows).encode()
