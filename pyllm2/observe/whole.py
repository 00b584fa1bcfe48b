"""Passes in one piece: between which two of their traces a fault lies.

A whole pass of inference leaves keys and values per layer in the cache, and logits; one of training
leaves losses and the gradient of each tensor. Where one is outside its propagated bound, smaller
models look inside: a single layer whose input is the reference's and whose output is visible
(`runs.probe`), or the first layers of a model (`runs.shortened`). The stretch is then run again, op
by op, on the backend's plain ops: those were all compared by `diff`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.backends import Engine
from pyllm2.llama2.model import Llama2
from pyllm2.observe import runs
from pyllm2.observe.ensemble import Ensemble, is_int8
from pyllm2.observe.judge import Measure, measure, wrong
from pyllm2.observe.names import UNSTACKED
from pyllm2.observe.record import Record, Trace
from pyllm2.observe.report import Entry, Fault, Report
from pyllm2.observe.runs import Prompt, Step
from pyllm2.observe.sources import whole_sources
from pyllm2.observe.standard import Standard

Array = NDArray[Any]
# Right code uses a few hundredths of a propagated bound. A stretch begins after the last trace
# that is clearly inside: a fault may first be near its bound, and outside of it further on.
CLEARLY = 0.1
Found = dict[str, Array]


def examine_whole_pass(
    report: Report, standard: Standard, engine: Engine, found: Found | Exception
) -> None:
    """Add the traces of a whole pass to a report, and the stretch that is wrong, if one is."""
    run, reference, name = standard.run, standard.reference, engine.name
    whole = f"{name}: the whole pass of {run.name}"
    source = tuple(whole_sources(reference.family, name, run.name))
    if isinstance(found, Exception):
        text = f"{whole} raises {type(found).__name__}: {found}"[:200]
        every = tuple(dict.fromkeys(r.op for r in reference))
        fault = Fault("whole", run.name, name, every, "anywhere", wrong(text), text, source)
        report.faults.append(fault)
        return
    first, clear = None, ""
    for index, (place, layer, off) in enumerate(taps(run, found, standard.ensemble)):
        report.entries.append(Entry("whole", run.name, name, index, place, "", layer, off))
        if first is None and not off.inside:
            first = place, off
        elif first is None and off.share <= CLEARLY:
            clear = place
    if first is None:
        return
    place, off = first
    inside = _inside(standard, engine) or _stretch(run, place, clear, reference)
    where, stretch = inside
    ops = tuple(dict.fromkeys(r.op for r in stretch))
    text = f"{whole}: {place} is {off.share:.3g} times its bound away; the fault is in {where}: "
    text += ", ".join(dict.fromkeys(r.name for r in stretch))
    plain = [f for f in report.faults if f.backend == name and f.kind == "local"]
    if not plain:
        text += "; the plain ops of this stretch are all inside: its own code is wrong"
    report.faults.append(Fault("whole", run.name, name, ops, where, off, text, source))


def taps(run: Any, found: Found, ensemble: Ensemble) -> Iterator[tuple[str, int | None, Measure]]:
    """Every trace of a whole pass in the order in which it is made: name, layer, distance."""
    if isinstance(run, Prompt):
        yield from _taps_of_prompt(run, found, ensemble)
        return
    yield "losses", None, measure(found["losses"], *_bound(ensemble, "losses", 2))
    for name, layer in _gradients_in_order(found):
        value, error = _bound(ensemble, name, found[name].ndim - (layer is not None))
        if layer is None:
            yield f"gradient of {name}", None, measure(found[name], value, error)
        else:
            off = measure(found[name][layer], value[layer], error[layer])
            yield f"gradient of layer {layer} {name}", layer, off


def _taps_of_prompt(
    run: Prompt, found: Found, ensemble: Ensemble
) -> Iterator[tuple[str, int | None, Measure]]:
    passes = {"prompt": slice(0, run.cut), "single tokens": slice(run.cut, len(run.ids))}
    for words, rows in passes.items():
        if rows.start == rows.stop:
            continue
        kept = [name for name in ("keys", "values", "qkv") if name in found]
        for layer in range(len(found[kept[0]])):
            for name in kept:
                value, error = _bound(ensemble, name, found[name].ndim - 2)
                at = layer, rows
                off = measure(found[name][at], value[at], error[at])
                yield f"layer {layer} {name}, {words}", layer, off
        value, error = _bound(ensemble, "logits", 1)
        yield f"logits, {words}", None, measure(found["logits"][rows], value[rows], error[rows])


def _bound(ensemble: Ensemble, name: str, axes: int) -> tuple[Array, Array]:
    spread = ensemble.named[name]
    value, error = spread.bound(axes)
    return value, np.broadcast_to(error, value.shape)


# The order in which a backward pass reaches the tensors, by family.
_BACKWARD = {
    "llama2": (
        "w2 b2 w1 b1 w3 b3 ffn_norm wo bo q_norm k_norm wq bq wk bk wv bv attention_norm".split()
    ),
    "gpt2": "fcprojw fcprojb fcw fcb ln2w ln2b attprojw attprojb qkvw qkvb ln1w ln1b".split(),
}


def _gradients_in_order(found: Found) -> Iterator[tuple[str, int | None]]:
    family = "gpt2" if "wte" in found else "llama2"
    for name in ("final_norm", "lnfw", "lnfb"):
        if name in found:
            yield name, None
    stacked = [name for name in _BACKWARD[family] if name in found]
    stacked += [n for n in found if n not in stacked and n not in UNSTACKED and n != "losses"]
    for layer in reversed(range(len(found[stacked[0]]))):
        for name in stacked:
            yield name, layer
    for name in ("token_embedding", "wte", "wpe"):
        if name in found:
            yield name, None


# ---- looking inside ----------------------------------------------------------------------------

Stretch = tuple[str, list[Record]]


def _inside(standard: Standard, engine: Engine) -> Stretch | None:
    """The stretch by smaller models; None if they show nothing, or there are none."""
    if isinstance(standard.run, Step):
        return _inside_training(standard, engine)
    if isinstance(standard.model, Llama2) and not is_int8(standard.model):
        return _inside_layers(standard, engine)
    return None


def _inside_layers(standard: Standard, engine: Engine) -> Stretch | None:
    """Each layer by itself, with the reference's stream as its input."""
    model, reference = standard.model, standard.reference
    ids = Prompt(range(len(standard.run.ids)))
    streams = _streams(model, reference)
    for layer, part in itertools.product(range(len(streams)), runs.LAST):
        make = functools.partial(runs.probe, model, layer, streams[layer], runs.LAST[part])
        single, ensemble = standard.smaller((layer, part), make, ids)
        try:
            with np.errstate(all="ignore"):
                found = ids(runs.on_engine(single, engine))
        except Exception:
            return None
        ops = reference.where(layer=layer, call=0)
        before = _split(ops, "ffn_norm")
        if layer == 0:
            before = [*reference.where(call=0, op="embedding"), *before]
        for name, weight in (("keys", "wk"), ("values", "wv")):
            value, error = _bound(ensemble, name, 2)
            if not measure(found[name], value, error).inside:
                shared = (weight, "attention_norm", "token_embedding")
                records = [r for r in before if r.weight in shared or r.of == weight]
                return f"layer {layer}, before its {name}", records
        value, error = _bound(ensemble, "logits", 1)
        if not measure(found["logits"], value, error).inside:
            if part == "attention" and not np.isfinite(found["logits"]).all():
                # Weights of zero do not hide NaN: the feed-forward may be its origin.
                after = [r for r in [*before, *_split(ops, "ffn_norm", after=True)] if r.of != "wk"]
                return f"layer {layer}, after its keys and values", after
            if part == "attention":
                inside = ("wk", "wv", "attention_norm")  # (not the embedding's scale)
                records = [r for r in before if r.weight not in inside and r.of not in inside]
                return (
                    f"layer {layer}, between its keys and values and the end of attention",
                    records,
                )
            return f"layer {layer}, feed-forward", _split(ops, "ffn_norm", after=True)
    ends = [r for r in reference.where(layer=None, call=0) if r.op != "rope_tables"]
    return "the ends", ends


def _streams(model: Llama2, reference: Trace) -> list[Array]:
    """The stream that enters each layer: the inputs of its first norm."""
    found = []
    for layer in range(model.config.n_layers):
        norms = reference.where(layer=layer, weight="attention_norm")
        found.append(np.concatenate([r.inputs["x"] for r in norms]))
    return found


def _split(records: Trace, weight: str, after: bool = False) -> list[Record]:
    """The records before the first with a weight, or from there on."""
    at = next((n for n, r in enumerate(records) if r.weight == weight), len(records))
    return list(records[at:] if after else records[:at])


def _inside_training(standard: Standard, engine: Engine) -> Stretch | None:
    """The first layers of the model: the first whose losses are outside. None: the losses are."""
    model, run, reference = standard.model, standard.run, standard.reference
    forward = reference.where(phase="forward")
    norm = "ffn_norm" if reference.family == "llama2" else "ln2w"
    L = len(model.params["w2" if reference.family == "llama2" else "fcprojw"])
    ends = [r for r in forward if r.layer is None]
    ends += [r for r in forward.where(layer=0) if r.op.startswith("residual")]  # of zeros
    steps: list[tuple[int, Sequence[str], str, list[Record]]] = [
        (1, runs.NOTHING_BUT_ENDS, "the ends", ends)
    ]
    for layer in range(L):
        ops = forward.where(layer=layer)
        attention, ffn = _split(ops, norm), _split(ops, norm, after=True)
        words = f"layer {layer}, forward"
        steps.append((layer + 1, runs.LAST["attention"], f"{words}, attention", attention))
        steps.append((layer + 1, (), f"{words}, feed-forward", ffn))
    suspect: list[Record] = []
    for count, zero, words, records in steps:
        make = functools.partial(runs.shortened, model, count, zero)
        small, ensemble = standard.smaller((count, tuple(zero)), make, run)
        rival = runs.on_engine(small, engine)
        with np.errstate(all="ignore"):
            losses = rival.losses(run.x, run.y)
        value, error = _bound(ensemble, "losses", 2)
        off = measure(losses.reshape(run.x.shape), value, error)
        if zero and not np.isfinite(losses).all():  # 0 · NaN is NaN
            return f"layer {count - 1}, forward", [
                *suspect,
                *records,
                *forward.where(layer=count - 1),
            ]
        suspect = [*suspect, *records] if off.share > CLEARLY else records
        if not off.inside:
            return words, suspect
    return None


# ---- by the traces alone -----------------------------------------------------------------------


def _stretch(run: Any, place: str, clear: str, reference: Trace) -> Stretch:
    """The ops between a trace that is outside and the last one before it that is `clear`."""
    if isinstance(run, Prompt):
        return _stretch_of_prompt(run, place, reference)
    if place == "losses":
        return "the forward", list(reference.where(phase="forward"))
    return stretch_of_gradient(place, clear, reference)


def _stretch_of_prompt(run: Prompt, place: str, reference: Trace) -> Stretch:
    call = 0 if place.endswith("prompt") else 1
    ops = reference.where(call=call)
    what = place.partition(",")[0]
    if what == "logits":
        L = max(r.layer for r in ops if r.layer is not None)
        records = [r for r in ops if r.layer == L and not _makes_keys(r)]
        return f"layer {L} after its keys and values, or the end", [*records, *_after_layers(ops)]
    layer, name = int(what.split()[1]), what.split()[2]
    wanted = {"keys": ("wk",), "values": ("wv",), "qkv": ("qkvw",)}[name]
    records = [r for r in ops if r.layer == layer and _makes_keys(r)]
    if name == "values":  # the keys are inside: so is what they share with the values
        records = [r for r in records if r.weight in wanted]
    elif name == "keys":
        records = [r for r in records if "wv" not in (r.weight, r.of)]
    if name != "values":
        above = [r for r in ops if r.layer == layer - 1 and not _makes_keys(r)]
        records = (above if layer else [r for r in ops if r.layer is None][:1]) + records
    return f"what leads to {what}", records


def _makes_keys(record: Record) -> bool:
    names = {"attention_norm", "wk", "wv", "k_norm", "bk", "bv", "ln1w", "qkvw"}
    return record.weight in names or record.of in names or record.op == "quantize"


def _after_layers(ops: Trace) -> list[Record]:
    last = max((r.index for r in ops if r.layer is not None), default=0)
    return [r for r in ops if r.index > last]


def stretch_of_gradient(place: str, clear: str, reference: Trace) -> Stretch:
    """The backward ops after those that made the last clear gradient, up to this one's."""
    backward = list(reference.where(phase="backward"))
    at = _last_of(place, backward)
    start = _last_of(clear, backward) + 1 if clear.startswith("gradient") else 0
    if place.endswith((" wq", " wk", " wv")):  # their three products follow one another
        attention = [n for n in range(at) if backward[n].op == "attention_backward"]
        start = min(start, attention[-1]) if attention else start
    start = min(start, at)
    if not clear:  # the losses are not clearly inside either: the fault may be in the forward
        forward = list(reference.where(phase="forward"))
        return f"what leads to the {place}", [*forward, *backward[: at + 1]]
    if start:  # gradients of one op: another of its results may be the wrong one
        start = min(start, _first_of(clear, backward))
    return f"the backward that leads to the {place}", backward[start : at + 1]


def _layer_and_name(place: str) -> tuple[int | None, str]:
    """Example: "gradient of layer 1 wq" -> (1, "wq")"""
    words = place.removeprefix("gradient of ").split()
    return (int(words[1]), words[2]) if words[0] == "layer" else (None, words[0])


def _places_of(place: str, backward: list[Record]) -> list[int]:
    layer, name = _layer_and_name(place)
    return [n for n, r in enumerate(backward) if r.layer == layer and _gives(r, name)]


def _last_of(place: str, backward: list[Record]) -> int:
    return (_places_of(place, backward) or [len(backward) - 1])[-1]


def _first_of(place: str, backward: list[Record]) -> int:
    return (_places_of(place, backward) or [0])[0]


# A bias has its gradient from the op that has its weight.
_WITH = {"lnfb": "lnfw", "ln1b": "ln1w", "ln2b": "ln2w", "qkvb": "qkvw"}
_WITH |= {"attprojb": "attprojw", "fcb": "fcw", "fcprojb": "fcprojw"}


def _gives(record: Record, name: str) -> bool:
    if name in ("token_embedding", "wte", "wpe"):
        return record.op in ("embedding_backward", "encoder_backward")
    return record.weight == _WITH.get(name, name)
