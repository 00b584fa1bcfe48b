"""A run of a model that stops after every op: look, change a value, go on, go back.

    from pyllm2.observe.step_runs import PromptRun
    from pyllm2.observe.stepper import Stepper

    with Stepper(PromptRun(pyllm2.load(), "Once upon a time")) as s:
        s.next()                         the next op; s.into() and s.out() change the stride
        s.record                         <1 layer 0 attention_norm rmsnorm: ...>
        s.run_to("layer=2 op=attention")
        s.run_to("|out| > 10")           a condition on the values, in NumPy
        s.evaluate("x.mean(axis=-1)")
        s.assign("x[0] = 0")             the op is computed again with this input
        s.compare()                      every backend on the same inputs, against the bound
        s.back()

The model runs in a thread and waits there after each op, until the results are asked for. A stop
is *after* an op and before its results are used: inputs and outputs can both be seen and changed.
Every op that has run is kept, so that going back is only looking back. A change in the past starts
the run again: the ops before it give the results that they gave, the ones after it are computed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pyllm2 import backends
from pyllm2.errors import UsageError
from pyllm2.observe.comparison import Comparison, compared
from pyllm2.observe.record import Record, Trace
from pyllm2.observe.sources import package_of
from pyllm2.observe.step_lines import Line, lines_of
from pyllm2.observe.step_values import Condition, assigned, evaluated
from pyllm2.observe.trace import Recorder, traced_model

Array = NDArray[Any]

# From large to small; `into` goes to the right, `out` to the left.
STRIDES = ("pass", "layer", "op", "line")
IN_PLACE = {"adamw_update": ("w", "m", "v")}  # inputs that an op writes instead of returning them
# Inputs that the model overwrites after the op: kept as copies.
OVERWRITTEN = {"embedding_backward": 2, "encoder_backward": 2}
SIGNALS_EVERY = 0.1  # seconds: one that comes just before a wait does not end it
Stop = Callable[[Record], bool]
Planned = tuple[str, int | None, str]  # phase, layer, name of an op that has not run yet


class Run(Protocol):
    """What is stepped through: a prompt, or training (`step_runs`)."""

    family: str
    title: str  # Example: "prompt of 4, one by one; tokens after it: 2"
    ids: list[int]  # of the prompt
    calls: int  # passes, or updates
    trains: bool

    @property
    def model(self) -> Any:
        """The model whose weights have names."""

    def __call__(self, stepper: Stepper) -> None:
        """Run from the beginning, on `stepper.traced(model)` and `stepper.call`."""

    def plan(self) -> list[Planned]:
        """The ops of a pass, or of an update; [] if finding out would take long."""

    def text_of(self, token: int, before: int | None = None) -> str:
        """The text of a token after another; "" without a tokenizer."""


class _Cancelled(BaseException):
    """Ends the thread of a run that nobody waits for."""


class _Stopping(Recorder):
    """A recorder whose ops are run by a stepper."""

    stepper: Stepper

    def call(self, op: str, function: Any, arguments: Sequence[Any], keywords: Any) -> Any:
        return self.stepper.call(op, function, arguments, keywords)


class Stepper:
    """A run that stops after every op.

    backend: whose op gives the result, until `use` changes it
    compare_with: backends that `compare` looks at (None: all that can run here)

    Raises BackendError, and what the model raises.
    """

    def __init__(
        self, run: Run, backend: str = "numpy", compare_with: Sequence[str] | None = None
    ) -> None:
        self.run, self.family, self.backend = run, run.family, backend
        able = [name for name in backends.NAMES if backends.why_not(name) is None]
        self.compare_with = able if compare_with is None else list(compare_with)
        for name in (backend, *self.compare_with):
            backends.require(name)
        self.at = -1  # number of the record that is looked at
        self.stride = "op"
        self.line = 0  # of the lines of the op, if the stride is a line
        self.ended = False
        self.error: Exception | None = None  # what the model raised
        self.interrupted = False  # whether Ctrl-C ended the last move
        self.tokens: list[int] = []  # of the run, so far
        self.computed_by: list[str] = []  # backend of each record
        self.changed: set[int] = set()  # records with a value that was set
        self._stop: Stop = lambda record: True
        self._memory: list[Record] = []  # of a run before: what the first ops give
        self._lines: tuple[tuple[int, int], list[Line]] = (-1, 0), []  # of which op
        self._begin()

    def __enter__(self) -> Stepper:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the run's thread."""
        if self._thread.is_alive():
            self.interrupt()
            self._go.put(False)
            self._thread.join(timeout=60)

    # ---- where we are --------------------------------------------------------------------------

    @property
    def records(self) -> list[Record]:
        """Every op so far, also those after the one that is looked at."""
        return self.recorder.records

    @property
    def record(self) -> Record:
        """The op that is looked at."""
        return self.records[self.at]

    @property
    def trace(self) -> Trace:
        """All ops so far."""
        ids = self.tokens
        texts = [self.run.text_of(i, ids[t - 1] if t else None) for t, i in enumerate(ids)]
        return Trace(self.records, self.family, self.tokens, texts, self.backend)

    @cached_property
    def plan(self) -> list[Planned]:
        """The ops of every pass, those that have not run too; [] for a large model."""
        return self.run.plan()

    @property
    def trains(self) -> bool:
        return self.run.trains

    @property
    def at_end(self) -> bool:
        """Whether the run is over and its last op is looked at."""
        return self.ended and self.at == len(self.records) - 1

    @property
    def lines(self) -> list[Line]:
        """The lines of the specification that compute this op, with their variables."""
        key = self.at, id(self.record.outputs)
        if self._lines[0] != key:
            self._lines = key, lines_of(self.family, self.record)
        return self._lines[1]

    # ---- moving --------------------------------------------------------------------------------

    def next(self) -> bool:
        """One stride further. False at the end of the run, where nothing moves."""
        if self.stride == "line":
            if self.line + 1 < len(self.lines):
                self.line += 1
                return True
            self.stride = "op"
        if self.stride == "op":
            return self.go(lambda record: True)
        here = self._group(self.record)
        return self.go(lambda record: self._group(record) != here)

    def back(self) -> bool:
        """One stride back. False at the beginning."""
        if self.stride == "line":
            if self.line > 0:
                self.line -= 1
                return True
            self.stride = "op"
            return True
        if self.at == 0:
            return False
        n = self.at - 1
        if self.stride != "op":  # to the first op of the group
            group = self._group(self.records[n])
            while n > 0 and self._group(self.records[n - 1]) == group:
                n -= 1
        self.at = n
        return True

    def into(self) -> bool:
        """Smaller strides: of passes, layers, ops, lines of an op. False at the smallest."""
        return self._change_stride(1)

    def out(self) -> bool:
        """Finish the line's op, the op's layer, or the layer's pass, and take larger strides."""
        if self.stride == "line":
            return self._change_stride(-1)
        if self.stride == "pass":
            return self.next()
        self._change_stride(-1)
        return self.next()

    def _change_stride(self, by: int) -> bool:
        n = STRIDES.index(self.stride) + by
        if not 0 <= n < len(STRIDES) or (STRIDES[n] == "line" and not self.lines):
            return False
        self.stride, self.line = STRIDES[n], 0
        return True

    def _group(self, record: Record) -> tuple[Any, ...]:
        """What a stride goes through: a pass, or the ops of a layer in it."""
        whole = record.call, record.phase
        return whole if self.stride == "pass" else (*whole, record.layer)

    def finish_token(self) -> bool:
        """To the first op of the next pass: the next token, or the next update."""
        here = self.record.call
        return self.go(lambda record: record.call != here)

    def run_to(self, condition: str) -> bool:
        """To the next op of which a condition is true; see `Condition`. Raises UsageError.

        Example: "layer=2 op=attention", "not finite", "op=matmul |out| > 10"
        """
        wanted = Condition.parse(condition)
        found = self.go(wanted)
        if wanted.error is not None:
            raise UsageError(wanted.error)
        return found

    def go(self, stop: Stop) -> bool:
        """To the next op that `stop` accepts, at most to the last. False if none was accepted."""
        self.line = 0
        self.stride = "op" if self.stride == "line" else self.stride
        for n in range(self.at + 1, len(self.records)):
            if stop(self.records[n]):
                self.at = n
                return True
        if not self.ended:
            self._resume(stop)
            self.at = len(self.records) - 1
            return not self.ended
        self.at = len(self.records) - 1
        return False

    def look_at(self, index: int) -> None:
        """Look at an op that has run."""
        if not 0 <= index < len(self.records):
            raise UsageError(f"op {index}: there are ops 0 to {len(self.records) - 1} so far")
        self.at, self.line = index, 0
        self.stride = "op" if self.stride == "line" else self.stride

    def interrupt(self) -> None:
        """Stop after the op that is running; for another thread than the one that waits."""
        self._stop = lambda record: True

    # ---- looking and changing ------------------------------------------------------------------

    def evaluate(self, expression: str) -> Any:
        """A Python expression of the op's values, `np`, and `t`, the trace. Raises UsageError."""
        extra = self.lines[self.line].variables if self.stride == "line" else {}
        return evaluated(expression, self.record, {"t": self.trace, **extra})

    def assign(self, statement: str) -> str:
        """Change a value of this op, as in "x[0] = 0" or "out *= 2"; the name that was changed.

        A new input is for this op only: it is computed again. A new output goes on to the ops that
        follow. Raises UsageError.
        """
        name, kind, value = assigned(statement, self.record, {"t": self.trace})
        if kind == "input":
            self._check_input(statement, name, value)
        self._rewind()
        if kind == "output":
            names = list(self.record.outputs)
            results = [value if n == name else self.record.outputs[n] for n in names]
            self._replace(tuple(results))
        else:
            self.record.inputs[name] = value
            self.record.origins.pop(name, None)
            self._replace(self._computed(self.record))
        self.changed.add(self.at)
        return name

    def _check_input(self, statement: str, name: str, value: Any) -> None:
        """Refuse what an op of C could not bear: ids that are none, sizes; and what NumPy refuses.

        Raises UsageError.
        """
        whole = isinstance(value, int) or (
            isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.itemsize > 1
        )
        if whole and not isinstance(value, np.ndarray):
            raise UsageError(f"{statement.strip()}: a size is part of the op and cannot be set")
        V = self.run.model.config.vocab_size
        if whole and not ((value >= 0) & (value < V)).all():
            raise UsageError(f"{statement.strip()}: expected ids from 0 to {V - 1}")
        ops = backends.ops("numpy", package=package_of(self.family, self.record.op))
        inputs = {**self.record.inputs, name: value}
        inputs |= {n: inputs[n].copy() for n in IN_PLACE.get(self.record.op, ())}
        try:
            with np.errstate(all="ignore"):
                getattr(ops, self.record.op)(*inputs.values())
        except Exception as error:  # whatever a value makes of an op
            words = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UsageError(f"{statement.strip()}: {self.record.op} raises {words}") from None

    def use(self, backend: str) -> None:
        """Compute this op and those after it with another backend. Raises BackendError."""
        backends.require(backend)
        self._rewind()
        self.backend = backend
        self.computed_by[self.at] = backend
        self._replace(self._computed(self.record))

    def compare(self) -> Comparison:
        """This op by every backend on the same inputs. Raises BackendError without hypothesis."""
        return self.compare_record(self.record)

    def compare_record(self, record: Record) -> Comparison:
        """The same for any op that has run."""
        return compared(self.family, record, self.compare_with)

    def _replace(self, results: Any) -> None:
        self.record.outputs = {}
        self.recorder.name_results(self.record, results)
        self._lines = (-1, 0), []

    def _rewind(self) -> None:
        """If there are ops after this one, run to this one again: later ones may change."""
        if self.at == len(self.records) - 1 and not self.ended:
            return
        at, self._memory = self.at, self.records[: self.at + 1]
        self.close()
        self.changed = {n for n in self.changed if n <= at}
        kept = self.computed_by[: at + 1]
        self._begin(lambda record: record.index == at)
        self.computed_by[:] = kept
        self._memory, self.at = [], at

    # ---- the thread of the run -----------------------------------------------------------------

    def _begin(self, stop: Stop = lambda record: True) -> None:
        """Start the run and wait for the first op that `stop` accepts."""
        self._go: SimpleQueue[bool] = SimpleQueue()
        self._stopped = threading.Event()
        packages = ("training", self.family)  # the optimizer's arguments have names too
        parts = [vars(backends.ops("numpy", package=package)) for package in packages]
        specification = SimpleNamespace(**{n: f for part in parts for n, f in part.items()})
        self.recorder = _Stopping(self.run.model, self.family, None, specification)
        self.recorder.stepper = self
        self.ended, self.error, self._stop = False, None, stop
        self.computed_by.clear()
        self._thread = threading.Thread(target=self._work, name="step", daemon=True)
        self._thread.start()
        self._wait()
        self.at = len(self.records) - 1
        if not self.records:
            raise self.error or UsageError("the run has no ops")

    def _resume(self, stop: Stop) -> None:
        self._stop, self.interrupted = stop, False
        self._stopped.clear()
        self._go.put(True)
        self._wait()

    def _wait(self) -> None:
        """Wait until the run stops or ends; Ctrl-C makes it stop after the op that is running."""
        while True:
            try:
                if self._stopped.wait(SIGNALS_EVERY):
                    return
            except KeyboardInterrupt:
                self.interrupted = True
                self.interrupt()

    def _work(self) -> None:
        try:
            with np.errstate(all="ignore"):
                self.tokens.clear()
                self.run(self)
        except _Cancelled:
            return
        except Exception as error:
            self.error = error
        self.ended = True
        self._stopped.set()

    def traced(self, model: Any) -> Any:
        """The model, composed of ops that stop here."""
        return traced_model(model, self.recorder, self.ops())

    def ops(self, package: str | None = None) -> Any:
        """The plain ops of the current backend, which do not stop."""
        return backends.ops(self.backend, package=package or self.family)

    def call(self, op: str, function: Any, arguments: Sequence[Any], keywords: Any) -> Any:
        """Run an op, record it, and wait until its results are wanted: in the run's thread."""
        record = self.recorder.begin(op, function, arguments, keywords)
        live = {name: record.inputs[name] for name in IN_PLACE.get(op, ())}
        kept = (*live, *list(record.inputs)[OVERWRITTEN.get(op, 99) :])
        record.inputs |= {name: record.inputs[name].copy() for name in kept}
        n = record.index
        if n < len(self._memory):
            record.inputs, record.origins = self._memory[n].inputs, self._memory[n].origins
            values = tuple(self._memory[n].outputs.values())
            self.recorder.end(record, values)
        else:
            before = time.perf_counter()
            results = self._computed(record)
            record.seconds = time.perf_counter() - before
            self.recorder.end(record, results)
        self.computed_by.append(self.backend)
        if self._stop(record):
            self._stopped.set()
            if not self._go.get():
                raise _Cancelled
        values = tuple(record.outputs.values())
        for name, array in live.items():
            array[...] = record.outputs[name]
        return None if live else values if len(values) > 1 else values[0]

    def _computed(self, record: Record) -> Any:
        """The results of an op with the inputs of its record."""
        ops = self.ops(package_of(self.family, record.op))
        inputs = dict(record.inputs)
        inputs |= {name: inputs[name].copy() for name in IN_PLACE.get(record.op, ())}
        with np.errstate(all="ignore"):
            results = getattr(ops, record.op)(*inputs.values())
        written = tuple(inputs[name] for name in IN_PLACE.get(record.op, ()))
        return written or results
