"""The smallest repetition of a fault of training: one step, its arrays, and a script.

A folder with `step.npz` (weights, moments, a batch with as few rows and positions as still show
the fault, the float64 result and the error allowed) and `repro.py`, which runs it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyllm2 import backends
from pyllm2.errors import FormatError, os_errors, shown
from pyllm2.formats.writer import atomic_write
from pyllm2.gpt2.config import GPT2Config
from pyllm2.gpt2.training import TrainableGPT2
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.training import TrainableLlama2
from pyllm2.observe.arrays import read_arrays, write_arrays
from pyllm2.observe.judge import Measure, measure
from pyllm2.observe.runs import Step, on_engine
from pyllm2.observe.standard import Standard
from pyllm2.parameters import Parameters
from pyllm2.testing.adamw.bounds import adamw_update

Array = NDArray[Any]
SCRIPT = """\
from pyllm2.observe.repro import load
step = load("step.npz")  # weights, one batch, and what float64 gives for {place}
found = step.run("{name}")  # replace this by the code that is wrong
print(step.compare(found))
raise SystemExit(0 if step.compare(found).inside else 1)
"""
MODELS: dict[str, tuple[Any, Any]] = {
    "llama2": (Llama2Config, TrainableLlama2),
    "gpt2": (GPT2Config, TrainableGPT2),
}


class Case(NamedTuple):
    """A step on which a backend is outside."""

    name: str  # of the backend
    model: Any
    run: Step
    place: str  # of `whole.taps`, or "update of NAME, ..."
    state: Any
    t: int
    hyper: tuple[float, ...]


class Loaded(NamedTuple):
    """A step that was written."""

    place: str
    model: Any
    step: Step
    arrays: dict[str, Array]
    t: int
    hyper: tuple[float, ...]

    @property
    def is_update(self) -> bool:
        return self.place.startswith("update")

    def run(self, backend: str) -> dict[str, Array]:
        """Losses and gradients; of an update the new weights and moments."""
        if self.is_update:
            a = {n: self.arrays[n].copy() for n in ("w", "m", "v")}
            ops = backends.ops(backend, package="training")
            ops.adamw_update(a["w"], self.arrays["dw"], a["m"], a["v"], self.t, *self.hyper)
            return a
        engine = backends.engine(backend, family=_family(self.model))
        with np.errstate(all="ignore"):
            return self.step(on_engine(self.model, engine))

    def compare(self, found: dict[str, Array]) -> Measure:
        """How far the place is from its float64 value."""
        value, error = self.arrays["value"], self.arrays["error"]
        return measure(_at(self.place, found), value, error)


def write(case: Case, under: Path) -> str:
    """Write `step-N-BACKEND`, or with the next free number at its end, below a folder.

    Returns the shell line that repeats the fault. Raises FileError.
    """
    name = f"step-{case.t}-{case.name}"
    with os_errors(under / name):
        under.mkdir(parents=True, exist_ok=True)
        folder = _new(under, name)
    arrays: dict[str, Array] = {}
    if case.place.startswith("update"):
        gradient = case.run(case.model)
        dw = np.concatenate([gradient[name].ravel() for name in case.model.params])
        arrays |= {"w": case.model.params.flat, "dw": dw, "m": case.state.m, "v": case.state.v}
        results = adamw_update(arrays["w"], dw, case.state.m, case.state.v, case.t, *case.hyper)
        value, error = results[_result(case.place)]
        run = case.run
    else:
        run, value, error = _smallest(case)
    arrays |= {f"params/{name}": array for name, array in case.model.params.items()}
    arrays |= {"x": run.x.astype(np.int64), "y": run.y.astype(np.int64)}
    arrays |= {"value": value, "error": np.broadcast_to(error, value.shape)}
    head: dict[str, Any] = {"family": _family(case.model), "config": asdict(case.model.config)}
    head |= {"place": case.place, "t": case.t, "hyper": case.hyper}
    write_arrays(folder / "step.npz", arrays, json.dumps(head))
    with atomic_write(folder / "repro.py") as file:
        file.write(SCRIPT.format(place=case.place, name=case.name).encode())
    return f"cd {folder} && python repro.py"


def load(path: str | os.PathLike[str]) -> Loaded:
    """Read a step that `write` wrote. Raises FileError, FormatError."""
    arrays, text = read_arrays(path)
    try:
        head = json.loads(text)
        config_class, model_class = MODELS[head["family"]]
        config = config_class(**head["config"])
        params = Parameters(config.shapes())
        for name in params:
            params[name][...] = arrays[f"params/{name}"]
        engine = backends.engine("numpy", family=head["family"])
        model = model_class(config, params, engine)
        run = Step(arrays["x"], arrays["y"])
        return Loaded(head["place"], model, run, arrays, int(head["t"]), tuple(head["hyper"]))
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(path, f"not a step of a training: {shown(str(error))}") from None


def _new(under: Path, name: str) -> Path:
    """A new folder of this name, or NAME-2 and so on. Raises OSError."""
    for number in count(1):
        folder = under / (name if number == 1 else f"{name}-{number}")
        with suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError


def _family(model: Any) -> str:
    return "gpt2" if isinstance(model, TrainableGPT2) else "llama2"


def _result(place: str) -> int:
    return ("weights", "first moment", "second moment").index(place.rpartition(", ")[2])


def _at(place: str, found: dict[str, Array]) -> Array:
    """The array of a place. Example: "gradient of layer 1 wq" """
    if place.startswith("update"):
        return found["wmv"[_result(place)]]
    words = place.removeprefix("gradient of ").split()
    return found[words[2]][int(words[1])] if words[0] == "layer" else found[words[0]]


def _smallest(case: Case) -> tuple[Step, Array, Array]:
    """The smallest batch that still shows the fault, its value and the error allowed there."""
    run, bound = case.run, None
    smaller = list(_parts(run))
    while smaller:
        candidate = smaller.pop(0)
        found = _outside(case, candidate)
        if found is not None:
            run, bound = candidate, found
            smaller = list(_parts(run))
    if bound is None:
        bound = _outside(case, run) or _bound(case, run)
    return run, *bound


def _parts(run: Step) -> Iterator[Step]:
    """Each row alone, then the first half of the positions."""
    B, T = run.x.shape
    if B > 1:
        for b in range(min(B, 8)):
            yield Step(run.x[b : b + 1], run.y[b : b + 1])
    elif T > 1:
        yield Step(run.x[:, : T // 2], run.y[:, : T // 2])


def _bound(case: Case, run: Step) -> tuple[Array, Array]:
    ensemble = Standard(case.model, run).ensemble
    name = case.place.removeprefix("gradient of ").split()[-1]
    stacked = " layer " in f" {case.place}"
    axes = ensemble.named[name].value.ndim - stacked
    value, error = ensemble.named[name].bound(axes)
    found = {name: value}, {name: np.broadcast_to(error, value.shape)}
    return _at(case.place, found[0]), _at(case.place, found[1])


def _outside(case: Case, run: Step) -> tuple[Array, Array] | None:
    """Value and error of the place, if the backend is outside there."""
    engine = backends.engine(case.name, family=_family(case.model))
    try:
        with np.errstate(all="ignore"):
            found = run(on_engine(case.model, engine))
    except Exception:
        return _bound(case, run)
    value, error = _bound(case, run)
    return None if measure(_at(case.place, found), value, error).inside else (value, error)
