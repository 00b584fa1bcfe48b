"""What a run of a model should give: each op of the specification, and how far others may be off.

Made once, it serves any number of backends, dumps and programs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2 import backends
from pyllm2.observe.ensemble import Ensemble
from pyllm2.observe.judge import Judge
from pyllm2.observe.record import Record, Trace
from pyllm2.observe.trace import family_of, new_recorder, traced_model

Array = NDArray[Any]
Bounds = list[tuple[Array, Array]]


class WrongSpecificationError(Exception):
    """The specification raises an exception.

    records: what ran before   running: the op that raised; None: it was not inside an op
    """

    def __init__(self, records: list[Record], running: Record | None, error: Exception) -> None:
        self.records, self.running, self.error = records, running, error
        super().__init__(f"raises {type(error).__name__}: {error}"[:200])


class Standard:
    """The reference of a run (`runs.Prompt` or `runs.Step`) of a model, and its bounds."""

    def __init__(self, model: Any, run: Any) -> None:
        self.model, self.run, self.family = model, run, family_of(model)
        self.judge = Judge(self.family)
        self._bounded: dict[int, Bounds | None] = {}
        self._smaller: dict[Hashable, tuple[Any, Ensemble]] = {}

    @functools.cached_property
    def reference(self) -> Trace:
        """The run on the specification, op by op. Raises WrongSpecificationError."""
        recorder = new_recorder(self.model, self.family)
        ops = backends.ops("numpy", package=self.family)
        try:
            self.run(traced_model(self.model, recorder, ops), recorder)
        except Exception as error:
            raise WrongSpecificationError(recorder.records, recorder.running, error) from error
        return Trace(recorder.records, self.family, backend="numpy")

    @functools.cached_property
    def ensemble(self) -> Ensemble:
        """The run in float64, and the propagated bound of everything in it."""
        return Ensemble(self.model, self.family, self.run)

    def bounded(self, record: Record) -> Bounds | None:
        """`Judge.bounded` of a record of the reference."""
        if record.index not in self._bounded:
            self._bounded[record.index] = self.judge.bounded(record)
        return self._bounded[record.index]

    def smaller(self, key: Hashable, make: Callable[[], Any], run: Any) -> tuple[Any, Ensemble]:
        """A smaller model that looks inside a whole pass, and the bounds of its run."""
        if key not in self._smaller:
            model = make()
            with np.errstate(all="ignore"):
                self._smaller[key] = model, Ensemble(model, self.family, run)
        return self._smaller[key]
