"""Where backends part ways: every op against its bound, and whole runs against theirs.

    report = diff(model, ["numpy", "numba", "c"], "Once upon a time")
    print(report)

*local*: every backend's op gets the inputs that the reference run had, so that the op that is wrong
is named even if everything after it is wrong too. *carried*: every backend runs on its own, and is
compared with the propagated bound (`ensemble`). *whole*: passes in one piece have no ops to look
at; they are compared where they leave traces, see `whole`. The reference is the specification.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2 import backends
from pyllm2.errors import UsageError
from pyllm2.inference.language_model import LanguageModel
from pyllm2.observe import guarded
from pyllm2.observe.ensemble import Ensemble
from pyllm2.observe.judge import measure
from pyllm2.observe.report import Entry, Fault, Report, TokenCheck
from pyllm2.observe.runs import Prompt, Step, on_engine
from pyllm2.observe.sources import sources_of
from pyllm2.observe.standard import Standard, WrongSpecificationError
from pyllm2.observe.trace import new_recorder, prompt_ids, traced_model
from pyllm2.observe.whole import examine_whole_pass

Array = NDArray[Any]


def diff(
    model: LanguageModel,
    names: Sequence[str],
    prompt: str | bytes | Iterable[int],
    training: bool = False,
) -> Report:
    """Compare backends on a prompt, or, with `training`, on a training step of its tokens.

    Raises BackendError, ContextError, TokenizerError, UsageError.
    """
    standard, title = prepared(model, names, prompt, training)
    report = Report(title, list(names))
    compare(report, standard, names)
    return report


def prepared(
    model: LanguageModel,
    names: Sequence[str],
    prompt: str | bytes | Iterable[int],
    training: bool = False,
) -> tuple[Standard, str]:
    """What the backends are compared with, and the title of the report. Raises as `diff`."""
    ids = prompt_ids(model, prompt)
    for name in names:
        backends.require(name)
    if training:
        if len(ids) < 2:
            raise UsageError("training needs a prompt of at least 2 tokens")
        run: Any = Step(*model.check_batch([ids[:-1]], [ids[1:]]))
        subject = model.trainable
    else:
        run, subject = Prompt(ids), model.model
    return Standard(subject, run), f"{len(ids)} tokens, {run.name}, {', '.join(names)}"


def compare(report: Report, standard: Standard, names: Sequence[str]) -> None:
    """Add to a report what a run of a model shows about backends."""
    model, run = standard.model, standard.run
    try:
        _ = standard.reference
    except WrongSpecificationError as error:
        report.faults.append(_fault_of_specification(standard, error))
        return
    engines = {name: backends.engine(name, family=standard.family) for name in names}

    compare_ops(report, standard, {name: engine.ops for name, engine in engines.items()})
    tapped: dict[str, Any] = {}  # the ops of whole passes that are composed of ops of their own
    wholes = {}
    for name, engine in engines.items():
        if _has_whole(engine, run):
            guarded.at("whole", run.name, name, "", f"the whole pass of {run.name}")
            wholes[name] = whole_results(model, engine, run, tapped, name)
    compare_ops(report, standard, tapped, whole=True)
    for name, engine in engines.items():
        compare_carried(report, standard, name, engine.ops)
    for name, found in wholes.items():
        examine_whole_pass(report, standard, engines[name], found)
    if isinstance(run, Prompt):
        for name, engine in engines.items():
            logits = wholes[name] if name in wholes else _composed(model, engine, run)
            report.tokens.append(_compare_tokens(name, logits, standard.ensemble))


def _fault_of_specification(standard: Standard, error: WrongSpecificationError) -> Fault:
    """The first op whose result is outside, or the one that raises: nothing else is compared."""
    where, found, says = error.running, _raised(error.error), str(error)
    for record in error.records:
        bounded = standard.judge.bounded(record) or ()
        for output, (value, allowed) in zip(record.outputs.values(), bounded, strict=False):
            off = measure(output, value, allowed)
            if not off.inside:
                where, found, says = record, off, words(off)
                break
        if where is record:
            break
    op, name = (where.op, where.name) if where is not None else ("", "no op")
    text = f"numpy: {op or name}, at {name}: {says}; there is nothing to compare with"
    source = tuple(sources_of(standard.family, op)) if op else ()
    ops = (op,) if op else ()
    return Fault("local", standard.run.name, "numpy", ops, name, found, text, source)


def _has_whole(engine: backends.Engine, run: Any) -> bool:
    return (engine.forward if isinstance(run, Prompt) else engine.add_gradient) is not None


def whole_results(
    model: Any, engine: backends.Engine, run: Any, tapped: dict[str, Any], name: str
) -> dict[str, Array] | Exception:
    """Results of the whole pass; the ops that it composes a part of go to `tapped`."""
    rival = on_engine(model, engine)
    with_ops = rival.with_ops

    def tapping(ops: Any) -> Any:
        tapped[f"{name} (prompt)"] = ops
        return with_ops(guarded.Announced(ops, "whole", run.name, name))

    setattr(rival, "with_ops", tapping)  # noqa: B010 (of this object only)
    try:
        return run(rival)
    except Exception as error:  # whatever a wrong kernel raises is a finding
        return error


def compare_ops(
    report: Report,
    standard: Standard,
    ops: Mapping[str, Any],
    whole: bool = False,
    only: str | None = None,
) -> None:
    """Every op of every backend with the inputs of the reference.

    whole: the ops belong to a whole pass   only: this op
    """
    judge, run = standard.judge, standard.run
    outside: dict[tuple[str, str], Entry] = {}
    unknown = set()
    for record in standard.reference:
        if only is not None and record.op != only:
            continue
        bounded = standard.bounded(record)
        if bounded is None:
            unknown.add(record.op)
            continue
        for name, module in ops.items():
            if whole and record.rows == 1:
                continue  # its whole pass has another way for a single token
            allowed = judge.of_partial_sums(record) if whole else bounded
            guarded.at("local", run.name, name, record.op, record.name)
            found = judge.run(getattr(module, record.op), record, allowed or bounded)
            entry = Entry(
                "local", run.name, name, record.index, record.name, record.op, record.layer, found
            )
            report.entries.append(entry)
            if not found.inside:
                outside.setdefault((name, record.op), entry)
    for (name, op), entry in outside.items():
        text = f"{name}: {op}, first at {entry.name}: {words(entry.found)}"
        source = tuple(sources_of(standard.family, op))
        report.faults.append(
            Fault("local", run.name, name, (op,), entry.name, entry.found, text, source)
        )
    if unknown:
        report.notes.append(f"no bound is known for {', '.join(sorted(unknown))}")


def words(found: Any) -> str:
    """Example: "0.0123 off, 35 times its bound, 5e+04 ulp" """
    if found.note and not np.isfinite(found.share):
        return str(found.note)
    return f"{found.error:.3g} off, {found.share:.3g} times its bound, {found.ulp:.3g} ulp"


def compare_carried(report: Report, standard: Standard, name: str, ops: Any) -> None:
    """A backend's own run, composed of its plain ops, against the propagated bound."""
    model, run, family = standard.model, standard.run, standard.family
    reference, ensemble = standard.reference, standard.ensemble
    recorder = new_recorder(model, family)
    guarded.at("carried", run.name, name, "", "a run of the plain ops")
    try:
        with np.errstate(all="ignore"):
            run(traced_model(model, recorder, ops), recorder)
    except Exception as error:
        text = f"{name}: a run of the plain ops raises {type(error).__name__}: {error}"[:200]
        where = recorder.running or reference[-1]
        fault = Fault("carried", run.name, name, (where.op,), where.name, _raised(error), text)
        report.faults.append(fault)
        return
    first = None
    for record, spreads in zip(recorder.records, ensemble.records, strict=True):
        worst = None
        for result in spreads:
            found = measure(record.outputs[result], *ensemble.bound(record.index, result))
            worst = found if worst is None else worst.worse(found)
        assert worst is not None
        entry = Entry(
            "carried", run.name, name, record.index, record.name, record.op, record.layer, worst
        )
        report.entries.append(entry)
        first = first or (None if worst.inside else entry)
    named = [f for f in report.faults if f.kind == "local" and f.backend == name]
    if first is not None and not named:
        text = f"{name}: {first.name} of a run on its own: {words(first.found)}; no op is outside"
        fault = Fault(
            "carried",
            run.name,
            name,
            (first.op,),
            first.name,
            first.found,
            text,
            tuple(sources_of(family, first.op)),
        )
        report.faults.append(fault)


def _raised(error: Exception) -> Any:
    from pyllm2.observe.judge import wrong

    return wrong(f"raises {type(error).__name__}")


def _composed(model: Any, engine: backends.Engine, run: Any) -> dict[str, Array] | Exception:
    try:
        return run(on_engine(model, backends.Engine(engine.ops)))
    except Exception as error:
        return error


def _compare_tokens(
    name: str, found: dict[str, Array] | Exception, ensemble: Ensemble
) -> TokenCheck:
    """The most probable token after each position; the first that differs from float64's."""
    if isinstance(found, Exception):
        return TokenCheck(name, 0, inside=False)
    value, error = ensemble.named["logits"].bound(1)
    logits = found["logits"]
    with np.errstate(all="ignore"):
        ours, theirs = value.argmax(axis=-1), logits.argmax(axis=-1)
    for t in np.flatnonzero(ours != theirs):
        margin = float(value[t, ours[t]] - value[t, theirs[t]])
        allowed = float(2 * error[t, 0])
        return TokenCheck(
            name, int(t), int(ours[t]), int(theirs[t]), margin, allowed, margin <= allowed
        )
    return TokenCheck(name, None)
