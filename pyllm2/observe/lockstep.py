"""Training in lockstep: backends take the same steps from the same weights, batch by batch.

    report = lockstep(model, ["numba", "c"], batches)
    print(report)

Before every step all have the weights and moments of the specification; each then computes losses
and gradients, which are compared with the propagated bound, and updates the weights from the
specification's gradient, compared with the bound of AdamW. Beside that each backend trains on its
own: how far it drifts is reported, for which there is no bound.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyllm2 import backends
from pyllm2.errors import UsageError
from pyllm2.inference.language_model import LanguageModel
from pyllm2.observe import repro
from pyllm2.observe.diff import compare
from pyllm2.observe.judge import NOTHING, Measure, measure, wrong
from pyllm2.observe.report import Entry, Fault, Report
from pyllm2.observe.runs import Step, on_engine
from pyllm2.observe.sources import sources_of
from pyllm2.observe.standard import Standard
from pyllm2.observe.whole import taps
from pyllm2.parameters import Parameters
from pyllm2.testing.adamw.bounds import adamw_update

Array = NDArray[Any]
Batch = tuple[NDArray[np.integer], NDArray[np.integer]]


class Hyper(NamedTuple):
    """Of AdamW."""

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1


class State(NamedTuple):
    """Weights and moments."""

    params: Parameters
    m: Array
    v: Array

    def copy(self) -> State:
        params = Parameters(self.params.shapes, self.params.flat.copy())
        return State(params, self.m.copy(), self.v.copy())

    def update(self, backend: str, gradient: Array, t: int, hyper: Hyper) -> None:
        """One step of a backend's AdamW. t: 1, 2, ..."""
        ops = backends.ops(backend, package="training")
        ops.adamw_update(self.params.flat, gradient, self.m, self.v, t, *hyper)


def lockstep(
    model: LanguageModel,
    names: Sequence[str],
    batches: Iterable[Batch],
    hyper: Hyper | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Report:
    """Train until the batches or the first fault of every backend; at most one fault for each.

    out: folder for the smallest repetition of each fault, `repro.py` and its arrays

    Raises BackendError, UsageError, and what `LanguageModel.loss` raises.
    """
    for name in names:
        backends.require(name)
    report = Report("", list(names))
    rounds = _Rounds(model.trainable, names, hyper or Hyper(), report)
    for t, (x, y) in enumerate(batches, 1):
        rounds.step(t, *model.check_batch(x, y), None if out is None else Path(out))
        if not rounds.names:
            break
    if not rounds.steps:
        raise UsageError("training: no batches")
    shape = f"{rounds.steps} steps of {x.shape[0]} x {x.shape[1]} tokens"
    report.title = f"{shape}, in lockstep, {', '.join(names)}"
    report.notes += rounds.drifts()
    return report


class _Rounds:
    """Backends that have had no fault yet, and the state that all begin a step with."""

    def __init__(self, model: Any, names: Sequence[str], hyper: Hyper, report: Report) -> None:
        self.model, self.names, self.hyper, self.report = model, list(names), hyper, report
        flat = model.params.flat
        params = Parameters(model.params.shapes, flat.copy())
        self.state = State(params, np.zeros_like(flat), np.zeros_like(flat))
        self.own = {name: self.state.copy() for name in ("numpy", *names)}
        self.losses: dict[str, float] = {}
        self.steps = 0

    def on(self, name: str, params: Parameters) -> Any:
        """The model with these weights on a backend."""
        engine = backends.engine(name, family=self.report_family)
        fresh = on_engine(self.model, engine)
        fresh.params = params
        return fresh

    @property
    def report_family(self) -> str:
        return "gpt2" if hasattr(self.model.config, "channels") else "llama2"

    def step(self, t: int, x: Array, y: Array, out: Path | None) -> None:
        """One step of every backend."""
        self.steps, run = t, Step(x, y)
        standard = Standard(self.on("numpy", self.state.params), run)
        for name in list(self.names):
            place, off, fault = self._gradients(name, standard)
            if fault is None:
                place, off, fault = self._update(name, standard, t, place, off)
            entry = Entry("step", run.name, name, t, f"step {t}", "", None, off)
            self.report.entries.append(entry)
            if fault is not None:
                self._fault(t, name, standard, place, off, out)
                self.names.remove(name)
        with np.errstate(all="ignore"):
            gradient = run(standard.model)
            flat = self._flat(gradient)
            self.state.update("numpy", flat, t, self.hyper)
            for name in {"numpy", *self.names}:
                found = run(self.on(name, self.own[name].params))
                self.losses[name] = float(np.mean(found["losses"], dtype=np.float64))
                self.own[name].update(name, self._flat(found), t, self.hyper)

    def _flat(self, gradients: dict[str, Array]) -> Array:
        return np.concatenate([gradients[name].ravel() for name in self.state.params])

    def _gradients(self, name: str, standard: Standard) -> tuple[str, Measure, str | None]:
        """The worst place of losses and gradients, and the first outside."""
        try:
            with np.errstate(all="ignore"):
                found = standard.run(self.on(name, self.state.params))
        except Exception as error:  # whatever a wrong kernel raises is a finding
            return "losses", wrong(f"raises {type(error).__name__}: {error}"[:120]), "losses"
        worst, at = NOTHING, ""
        for place, _, off in taps(standard.run, found, standard.ensemble):
            if not off.inside:
                return place, off, place
            if off.share >= worst.share:
                worst, at = off, place
        return at, worst, None

    def _update(
        self, name: str, standard: Standard, t: int, at: str, worst: Measure
    ) -> tuple[str, Measure, str | None]:
        """AdamW from the specification's gradient."""
        with np.errstate(all="ignore"):
            flat = self._flat(standard.run(standard.model))
            after = self.state.copy()
            after.update(name, flat, t, self.hyper)
            before = self.state
            bounded = adamw_update(before.params.flat, flat, before.m, before.v, t, *self.hyper)
        for what, found, (value, error) in zip(
            ("weights", "first moment", "second moment"),
            (after.params.flat, after.m, after.v),
            bounded,
            strict=True,
        ):
            off = measure(found, value, error)
            if not off.inside:
                place = self._parameter_at(off.at[0]) if off.at else "all"
                return f"update of {place}, {what}", off, place
            if off.share > worst.share:
                worst, at = off, f"update, {what}"
        return at, worst, None

    def _parameter_at(self, index: int) -> str:
        """The parameter with an element of the vector."""
        for name, array in self.state.params.items():
            if index < array.size:
                return name
            index -= array.size
        return ""

    def _fault(
        self, t: int, name: str, standard: Standard, place: str, off: Measure, out: Path | None
    ) -> None:
        """Say which op it is, and write the repetition."""
        ops: tuple[str, ...] = ("adamw_update",)
        source: tuple[str, ...] = tuple(sources_of(standard.family, "adamw_update"))
        text = f"{name}: step {t}: {place} is {off.share:.3g} times its bound away"
        if not place.startswith("update"):
            inner = Report("", [name])
            compare(inner, standard, [name])
            first = next(iter(inner.faults), None)
            ops, source = (first.ops, first.sources) if first else ((), ())
            text += f"; {first.text}" if first else "; no op and no stretch is outside"
        if out is not None:
            saved = repro.Case(
                name, standard.model, standard.run, place, self.state, t, tuple(self.hyper)
            )
            text += f"; repeat it: {repro.write(saved, out)}"
        self.report.faults.append(Fault("step", "training", name, ops, place, off, text, source))

    def drifts(self) -> list[str]:
        """How far each backend is from the specification after training on its own."""
        reference = self.own["numpy"]
        lines = [f"numpy, on its own: loss {self.losses['numpy']:.6f} after {self.steps} steps"]
        for name in self.names:
            if name == "numpy":
                continue
            loss = self.losses[name] - self.losses["numpy"]
            off = float(np.max(np.abs(self.own[name].params.flat - reference.params.flat)))
            lines.append(
                f"{name}, on its own: loss {loss:+.2g}, weights {off:.2g} apart (no bound)"
            )
        return lines
