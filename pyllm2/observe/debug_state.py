"""A GPT-2 against a debug state in llm.c's format: a batch, its logits, mean loss and gradients."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import ConfigError, FormatError
from pyllm2.formats.llmc import DEBUG_MAGIC, DebugState, read_debug_state
from pyllm2.formats.reader import open_source
from pyllm2.gpt2.model import GPT2
from pyllm2.inference.language_model import LanguageModel
from pyllm2.observe.causes import Cause, find_cause
from pyllm2.observe.judge import Measure, measure
from pyllm2.observe.record import Record
from pyllm2.observe.report import Entry, Fault, Report
from pyllm2.observe.runs import Prompt, Step
from pyllm2.observe.sources import sources_of
from pyllm2.observe.standard import Standard
from pyllm2.observe.whole import CLEARLY, stretch_of_gradient, taps
from pyllm2.testing.bounds import gamma

Array = NDArray[Any]


def is_debug_state(path: str | os.PathLike[str]) -> bool:
    """By the magic number. Raises FileError."""
    with open_source(path) as source:
        return source.head[:4] == DEBUG_MAGIC.to_bytes(4, "little")


def against_debug_state(model: LanguageModel, path: str | os.PathLike[str]) -> Report:
    """Compare a training step of the state's batch with what the state says.

    Raises FileError, FormatError, ConfigError (a model of another family), BackendError.
    """
    if not isinstance(model.model, GPT2):
        raise ConfigError("model", type(model.model).__name__, "a debug state belongs to a GPT-2")
    trainable = model.trainable
    config = trainable.config
    state = read_debug_state(path, config.vocab_size, trainable.params.shapes)
    V, S = config.vocab_size, config.max_seq_len
    if state.tokens.shape[1] > S:
        raise FormatError(path, f"T = {state.tokens.shape[1]}: the model has {S} positions")
    for name, ids in (("tokens", state.tokens), ("targets", state.targets)):
        if ids.min() < 0 or ids.max() >= V:
            wrong = ids.min() if ids.min() < 0 else ids.max()
            raise FormatError(path, f"{name}: id {wrong}, the model has ids 0 to {V - 1}")
    standard = Standard(trainable, Step(state.tokens, state.targets))
    B, T = state.tokens.shape
    report = Report(f"{B} x {T} tokens, {os.fspath(path)}", [os.path.basename(path)])
    compare_state(report, standard, state)
    return report


def compare_state(report: Report, standard: Standard, state: DebugState) -> None:
    """Add entries for everything in a state, and the stretch that is wrong, if one is."""
    (label,) = report.backends
    first, clear = None, ""
    for index, (place, layer, off) in enumerate(_taps(standard, state)):
        report.entries.append(Entry("against", "training", label, index, place, "", layer, off))
        if first is None and not off.inside:
            first = place, off
        elif first is None and off.share <= CLEARLY:
            clear = place
    if first is None:
        return
    place, off = first
    records = _stretch(place, clear, standard)
    ops = tuple(dict.fromkeys(r.op for r in records))
    text = f"{place}: {off.share:.3g} times its bound away; the fault is in: "
    text += ", ".join(dict.fromkeys(r.name for r in records))
    where = place
    cause = _cause(standard, state) if place == "logits" else None
    if cause is not None:
        layer, found = cause
        ops, where = (found.op,), found.where(layer)
        text = f"{place}: {off.share:.3g} times its bound away"
        text += f"; it is inside with {found.words}: {where}"
    sources = tuple(sources_of(standard.family, ops[0])) if len(ops) == 1 else ()
    report.faults.append(Fault("against", "training", label, ops, where, off, text, sources))


def _taps(standard: Standard, state: DebugState) -> Iterator[tuple[str, int | None, Measure]]:
    """Logits, mean loss, and each gradient in the order of the backward pass."""
    ensemble = standard.ensemble
    value, error = ensemble.bound(_logits(standard).index, "out")
    V = state.logits.shape[-1]
    value, error = (np.broadcast_to(a, value.shape)[..., :V] for a in (value, error))
    yield "logits", None, measure(state.logits, value, error)
    losses, allowed = ensemble.named["losses"].bound(2)
    most = float(np.mean(np.abs(losses)) + np.mean(allowed))
    off_by = np.array(np.mean(allowed) + gamma(losses.size + 1) * most)
    yield "mean loss", None, measure(np.float32(state.loss), np.array(np.mean(losses)), off_by)
    found: dict[str, Any] = {"losses": losses, **state.gradients}
    yield from itertools.islice(taps(standard.run, found, ensemble), 1, None)


def _cause(standard: Standard, state: DebugState) -> tuple[int, Cause] | None:
    """A usual cause with which the logits of the first sequence are the state's."""
    trainable = standard.model
    model = GPT2(trainable.config, trainable.params, trainable.engine)
    run = Prompt(state.tokens[0], singles=0)
    _, error = standard.ensemble.bound(_logits(standard).index, "out")
    allowed = np.broadcast_to(error[0], (*state.logits.shape[1:2], 1))
    layers = range(trainable.config.num_layers)
    return find_cause(model, "gpt2", run, layers, "logits", [(state.logits[0], allowed)])


def _logits(standard: Standard) -> Record:
    forward = standard.reference.where(phase="forward", weight="wte")
    return forward[-1]


def _stretch(place: str, clear: str, standard: Standard) -> list[Record]:
    reference = standard.reference
    forward = list(reference.where(phase="forward"))
    if place == "logits":
        return forward[: forward.index(_logits(standard)) + 1]
    if place == "mean loss":
        return forward[forward.index(_logits(standard)) + 1 :]
    if clear == "mean loss":
        clear = "losses"
    return stretch_of_gradient(place, clear, reference)[1]
