"""A model against a dump of its hidden states that any program made.

    report = against(model, "dump.npz")
    print(report)

*against*: every array of the dump, and the same place of a run in float64, with the error that
float32 (or what the program computed in) may add up to. *layer*: each layer again, with the dump's
own stream as its input, so that every layer that is wrong is named, not only the first. Where one
is, `causes` are tried: the one whose result is the dump's names the op.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import FormatError, UsageError
from pyllm2.inference.language_model import LanguageModel
from pyllm2.llama2.rotary_order import interleaved
from pyllm2.observe.causes import find_cause
from pyllm2.observe.dump import UNITS, Dump, read_dump
from pyllm2.observe.judge import Measure, measure
from pyllm2.observe.record import Record, Trace
from pyllm2.observe.report import Entry, Fault, Report
from pyllm2.observe.runs import Layer, Prompt
from pyllm2.observe.sources import sources_of
from pyllm2.observe.standard import Standard
from pyllm2.observe.trace import family_of, prompt_ids
from pyllm2.observe.whole import CLEARLY

Array = NDArray[Any]
# Where the arrays of a list of hidden states stand: 0 is the embedding, l the stream after layer l,
# -1 the stream after the final norm.
LAYOUTS: dict[str, Callable[[int], list[int]]] = {
    "streams": lambda L: [*range(L + 1)],
    "transformers": lambda L: [*range(L), -1],
    "streams+norm": lambda L: [*range(L + 1), -1],
    "layers": lambda L: [*range(1, L + 1)],
    "layers+norm": lambda L: [*range(1, L + 1), -1],
    "inputs": lambda L: [*range(L)],
}
ROPE_ORDERS = ("interleaved", "half-split")
ROTATED = ("wq", "wk", "query", "key")


class Given(NamedTuple):
    """What is not to be found out."""

    precision: str | None = None  # of UNITS: what the program computed in
    layout: str | None = None  # of LAYOUTS
    rope_order: str | None = None  # of ROPE_ORDERS: rows of queries and keys in the dump


def against(
    model: LanguageModel,
    path: str | os.PathLike[str],
    prompt: str | bytes | Sequence[int] | None = None,
    given: Given | None = None,
) -> Report:
    """Compare a model with a dump of the same weights and the same ids.

    prompt: for a dump without ids

    Raises FileError, FormatError, UsageError, ContextError, TokenizerError, BackendError.
    """
    decoder = model.model
    standard_of_prompt, dump = _standard(model, path, prompt)
    comparison = _Comparison(standard_of_prompt, dump, given or Given())
    T = len(standard_of_prompt.run.ids)
    report = Report(f"{T} tokens, {os.fspath(path)}", [comparison.label])
    first = comparison.compare(report)
    if dump.hidden:
        comparison.compare_layers(report, decoder)
    if not report.faults and first is not None:
        report.faults.append(comparison.fault_of(*first))
    return report


def _standard(
    model: LanguageModel, path: str | os.PathLike[str], prompt: Any
) -> tuple[Standard, Dump]:
    dump = read_dump(path, family_of(model.model))
    if dump.ids and prompt is not None and prompt_ids(model, prompt) != dump.ids:
        raise UsageError(f"{dump.path} has ids of its own: leave the prompt out")
    if not dump.ids and prompt is None:
        raise UsageError(f"{dump.path} has no ids: give them with --ids or --prompt")
    ids = prompt_ids(model, dump.ids or prompt)
    C = model.model.config.dim if hasattr(model.config, "dim") else model.config.channels
    rows = [(dump.hidden_name, a, C) for a in dump.hidden]
    rows += [(key, a, model.config.vocab_size) for key, a in dump.logits.items()]
    for key, array, width in rows:
        if array.shape != (len(ids), width):
            expected = (len(ids), width)
            raise FormatError(dump.path, f"{key}: shape {array.shape}, expected {expected}")
    return Standard(model.model, Prompt(ids, singles=0)), dump


class _Comparison:
    """A dump, and the places of a run that its arrays belong to."""

    def __init__(self, standard: Standard, dump: Dump, given: Given) -> None:
        self.standard, self.dump = standard, dump
        self.label = os.path.basename(dump.path)
        self.T = len(standard.run.ids)
        self.precision = given.precision or dump.precision
        self.scale = UNITS[self.precision] / UNITS["float32"]
        self.places = self._layout(given.layout) if dump.hidden else []
        self.rope_order = given.rope_order or self._rope_order()

    # ---- where the arrays belong ---------------------------------------------------------------

    @property
    def L(self) -> int:  # noqa: N802
        config = self.standard.model.config
        return int(getattr(config, "n_layers", 0) or config.num_layers)

    def _layout(self, given: str | None) -> list[int]:
        """The place of each array of the list: that which its numbers are nearest to."""
        n = len(self.dump.hidden)
        fitting = {k: make(self.L) for k, make in LAYOUTS.items() if len(make(self.L)) == n}
        if given is not None:
            fitting = {k: v for k, v in fitting.items() if k == given}
        if not fitting:
            what = f"{self.dump.hidden_name}: {n} arrays, the model has {self.L} layers"
            raise FormatError(self.dump.path, f"{what}: {given or 'no layout'} does not fit")

        def distance(places: list[int]) -> float:
            pairs = zip(places, self.dump.hidden, strict=True)
            return sum(_distance(a, self._stream(place)[0]) for place, a in pairs)

        return min(fitting.values(), key=distance)

    def _stream(self, place: int) -> tuple[Array, Array]:
        """Value and error of a stream, (T, C)."""
        return self._bound(self.standard, self._stream_record(place))

    def _stream_record(self, place: int) -> Record:
        records = self.standard.reference.where(phase="forward")
        if place == 0:
            return next(r for r in records if r.op in ("embedding", "encoder_forward"))
        if place < 0:
            return next(r for r in records if r.weight in ("final_norm", "lnfw"))
        return records.where(layer=place - 1)[-1]

    def _bound(self, standard: Standard, record: Record) -> tuple[Array, Array]:
        """Value and error of a record's first result, in rows; the error as large as allowed."""
        value, error = standard.ensemble.bound(record.index, next(iter(record.outputs)))
        return value.reshape(self.T, -1), self._allowed(value, error).reshape(self.T, -1)

    def _allowed(self, value: Array, error: Array) -> Array:
        """The error of a program that computes in `precision`, and rounds once more to store."""
        unit = UNITS[self.precision]
        smallest = 2.0**-25 if self.precision == "float16" else 0.0
        return self.scale * np.broadcast_to(error, value.shape) + unit * np.abs(value) + smallest

    def _rope_order(self) -> str:
        """The order that the queries and keys of the dump are nearest to."""
        totals = dict.fromkeys(ROPE_ORDERS, 0.0)
        for (layer, part), (name, array) in self.dump.parts.items():
            if part in ROTATED:
                value, _ = self._bound(
                    self.standard, self._record_of(self.standard.reference, layer, part, name)
                )
                for order in totals:
                    found = self._rows(name, array, part, value, order)
                    totals[order] += _distance(found, value)
        return min(totals, key=lambda order: totals[order])

    def _record_of(self, trace: Trace, layer: int, part: str, name: str) -> Record:
        """The record whose result a part of a layer is."""
        records = trace.where(layer=layer, phase="forward")
        if not len(records):
            raise FormatError(self.dump.path, f"{name}: the model has {self.L} layers")
        if part in ("query", "key"):
            return records.where(op="rope")[("query", "key").index(part)]
        biased = {part, f"b{part[1:]}"} if part[0] == "w" else {part}
        return [r for r in records if r.weight in biased][-1]

    def _rows(self, name: str, array: Array, part: str, value: Array, order: str) -> Array:
        """An array of the dump as (T, width), queries and keys in our order."""
        T, width = value.shape
        array = array[0] if array.ndim > 2 and len(array) == 1 else array
        shapes = [array.reshape(T, -1)] if array.size == T * width else []
        if array.ndim == 3 and array.shape[1] == T:  # (heads, T, hs)
            shapes.append(array.swapaxes(0, 1).reshape(T, -1))
        if not shapes:
            raise FormatError(self.dump.path, f"{name}: shape {array.shape}, expected {(T, width)}")
        if part in ROTATED and order == "half-split":
            config = self.standard.model.config
            heads = config.n_heads if part in ("wq", "query") else config.n_kv_heads
            shapes = [interleaved(a.T, heads).T for a in shapes]
        return min(shapes, key=lambda a: _distance(a, value))

    # ---- comparing -----------------------------------------------------------------------------

    def compare(self, report: Report) -> tuple[Record, Measure, Record | None] | None:
        """Every array; the first outside, and the last before it that is clearly inside."""
        reference = self.standard.reference
        taps: list[tuple[Record, str, Array]] = []
        for (layer, part), (name, array) in self.dump.parts.items():
            record = self._record_of(reference, layer, part, name)
            value, _ = self._bound(self.standard, record)
            taps.append((record, name, self._rows(name, array, part, value, self.rope_order)))
        for place, array in zip(self.places, self.dump.hidden, strict=True):
            taps.append((self._stream_record(place), _words(place), array))
        taps += [(reference[-1], name, array) for name, array in self.dump.logits.items()]
        first: tuple[Record, Measure, Record | None] | None = None
        clear: Record | None = None
        for record, name, array in sorted(taps, key=lambda tap: tap[0].index):
            value, error = self._bound(self.standard, record)
            off = measure(array, value, error)
            report.entries.append(self._entry("against", record, name, off))
            if first is None and not off.inside:
                first = record, off, clear
            clear = record if off.share <= CLEARLY else clear
        report.notes += self._found_out(report)
        return first

    def _found_out(self, report: Report) -> Iterator[str]:
        yield f"computed in {self.precision}, it seems: bounds are {self.scale:g} times float32's"
        if self.places:
            layout = next(k for k, make in LAYOUTS.items() if make(self.L) == self.places)
            yield f"{self.dump.hidden_name}: layout {layout}, from {_words(self.places[0])} to " + (
                _words(self.places[-1])
            )
        if any(part in ROTATED for _, part in self.dump.parts):
            yield f"queries and keys of the dump are in {self.rope_order} order"
        if self.dump.unused:
            yield f"not compared: {', '.join(self.dump.unused[:8])}"

    def _entry(self, kind: str, record: Record, name: str, off: Measure) -> Entry:
        return Entry(
            kind, "inference", self.label, record.index, name, record.op, record.layer, off
        )

    def compare_layers(self, report: Report, model: Any) -> None:
        """Each layer whose input and output are in the dump."""
        streams = dict(zip(self.places, self.dump.hidden, strict=True))
        for layer in range(self.L):
            last = layer == self.L - 1 and layer + 1 not in streams
            if layer not in streams or not ((last and -1 in streams) or layer + 1 in streams):
                continue
            run = Layer(layer, streams[layer].astype(np.float32), norm=last)
            standard = Standard(model, run)
            outcome = streams[-1 if last else layer + 1]
            value, error = standard.ensemble.named["stream"].bound(1)
            off = measure(outcome, value, self._allowed(value, error))
            record = standard.reference[-1]
            words = f"layer {layer}" + (" and the final norm" if last else "")
            entry = self._entry("layer", record, words, off)
            report.entries.append(replace(entry, index=layer))
            if not off.inside:
                self._explain_layer(report, standard, words, off, outcome)

    def _explain_layer(
        self, report: Report, standard: Standard, words: str, off: Measure, outcome: Array
    ) -> None:
        """Add the fault of a layer: a result inside of it that is outside, or a cause."""
        layer = standard.run.layer
        value, error = standard.ensemble.named["stream"].bound(1)
        error = self._allowed(value, error)
        text = f"{words}: {off.share:.3g} times its bound away, with the dump's own input"
        parts = [(p, *found) for (at, p), found in self.dump.parts.items() if at == layer]
        outside = []
        for part, name, array in parts:
            record = self._record_of(standard.reference, layer, part, name)
            bound = self._bound(standard, record)
            rows = self._rows(name, array, part, bound[0], self.rope_order)
            if not measure(rows, *bound).inside:
                outside.append(record)
        family = self.standard.family
        found = find_cause(
            standard.model, family, standard.run, [layer], "stream", [(outcome, error)]
        )
        ops = tuple(dict.fromkeys(r.op for r in standard.reference))
        where = words
        if outside:
            first = min(outside, key=lambda r: r.index)
            ops, where = (first.op,), first.name
            text += f"; the first result outside is that of {first.name}"
        if found is not None:
            ops, where = (found[1].op,), found[1].where(layer)
            text += f"; it is inside with {found[1].words}: {where}"
        elif not outside:
            text += "; no usual cause explains it"
        sources = tuple(sources_of(family, ops[0])) if len(ops) == 1 else ()
        report.faults.append(
            Fault("layer", "inference", self.label, ops, where, off, text, sources)
        )

    def fault_of(self, record: Record, off: Measure, clear: Record | None) -> Fault:
        """No layer by itself is outside: the place where the run as a whole is."""
        family, reference = self.standard.family, self.standard.reference
        text = f"{record.name}: {off.share:.3g} times its bound away"
        start = 0 if clear is None else clear.index + 1
        ops = tuple(dict.fromkeys(r.op for r in reference[start : record.index + 1]))
        where = record.name
        if not self.dump.hidden and self.dump.logits:
            _, error = self._bound(self.standard, reference[-1])
            wanted = [(a, error) for a in self.dump.logits.values()]
            run, model = self.standard.run, self.standard.model
            found = find_cause(model, family, run, range(self.L), "logits", wanted)
            if found is not None:
                ops, where = (found[1].op,), found[1].where(found[0])
                text += f"; it is inside with {found[1].words}: {where}"
        elif clear is not None:
            text += f"; {clear.name} is clearly inside"
        sources = tuple(sources_of(family, ops[0])) if len(ops) == 1 else ()
        return Fault("against", "inference", self.label, ops, where, off, text, sources)


def _words(place: int) -> str:
    if place <= 0:
        return "final norm" if place else "embedding"
    return f"layer {place - 1}"


def _distance(a: Array, b: Array) -> float:
    """Of two arrays, in units of their length, at most 1."""
    if a.shape != b.shape:
        return 1.0
    with np.errstate(all="ignore"):
        found = float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(b)), 1e-30)
    return min(found, 1.0) if np.isfinite(found) else 1.0
