"""A comparison that survives kernels which end their process, or write where they should not.

The comparison runs in a child. If that ends by a signal, every op of the backend runs once more,
each in a child of its own: the op that crashed last is often not the one that wrote out of bounds.
Damaged memory may also make the comparison itself raise whatever comes: such a child is tried again
in the same way. If no op is wrong, the passes in one piece are tried: the prompt's and a token's.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pyllm2 import backends
from pyllm2.observe.diff import compare, compare_ops
from pyllm2.observe.guarded import ChildError, in_child
from pyllm2.observe.judge import wrong
from pyllm2.observe.record import Record
from pyllm2.observe.report import Fault, Report
from pyllm2.observe.runs import Prompt, on_engine
from pyllm2.observe.sources import sources_of, whole_sources
from pyllm2.observe.standard import Standard, WrongSpecificationError

SIZES = (16, 100, 1000, 10000, 100000)  # of arrays whose allocation may notice a damaged heap


def compare_safely(standard: Standard, names: Sequence[str], title: str = "") -> Report:
    """`compare` in children; a fault for an op that ends one, or a pass in one piece.

    Raises PyLLM2Error, ChildError (a bug of ours: no op and no pass has to do with it).
    """

    def whole_comparison() -> Report:
        report = Report(title, list(names))
        compare(report, standard, names)
        return report

    report = Report(title, list(names))
    failed: ChildError | None = None
    try:
        found = in_child(whole_comparison, report)
    except ChildError as error:
        failed, suspects = error, list(names)
    else:
        if found is not report:
            return found
        suspects = [report.faults[0].backend]
    try:
        ops = dict.fromkeys(record.op for record in standard.reference)
    except WrongSpecificationError:
        if failed is not None:
            raise failed from None
        return report
    faults: list[Fault] = []
    for name in suspects:
        local = [fault for op in ops for fault in _faults_of_op(standard, name, op)]
        whole = not local and not any(fault.kind == "local" for fault in report.faults)
        faults += local or (_faults_of_passes(standard, name) if whole else [])
    if failed is not None and not faults:
        raise failed
    says = str(failed) if failed is not None else report.faults[0].text
    report.faults[:] = faults or report.faults
    report.notes.append(f"{says}; each op was then tried in a process of its own")
    return report


# ---- one op --------------------------------------------------------------------------------------


def _faults_of_op(standard: Standard, name: str, op: str) -> list[Fault]:
    report = Report("", [name])
    try:
        return in_child(functools.partial(_one_op, standard, name, op), report).faults
    except ChildError:  # nothing but this op ran there
        text = f"{name}: {op}: after it the comparison itself fails: it damages the memory"
        source = tuple(sources_of(standard.family, op))
        run = standard.run.name
        return [Fault("local", run, name, (op,), "any place", wrong("memory"), text, source)]


def _one_op(standard: Standard, name: str, op: str) -> Report:
    """Every place of one op, and allocations that show a damaged heap."""
    report = Report("", [name])
    engine = backends.engine(name, family=standard.family)
    compare_ops(report, standard, {name: engine.ops}, only=op)
    _allocate()
    return report


def _allocate() -> None:
    for size in SIZES * 3:
        kept = [np.ones(size, np.float32) for _ in range(20)]
        del kept
    gc.collect()


# ---- passes in one piece -------------------------------------------------------------------------


def _faults_of_passes(standard: Standard, name: str) -> list[Fault]:
    """The first pass that ends a process of its own."""
    engine = backends.engine(name, family=standard.family)
    family, run = standard.family, standard.run
    for words, whole, alone, records in _passes(standard):
        if not whole(engine):
            continue

        def one_pass(alone: Callable[[Any], Any] = alone) -> Report:
            with np.errstate(all="ignore"):
                alone(on_engine(standard.model, engine))
            _allocate()
            return Report("", [name])

        said = "fails"
        try:
            faults = in_child(one_pass, Report("", [name])).faults
            said = faults[0].found.note if faults else ""
        except ChildError:
            pass
        if said:
            ops = tuple(dict.fromkeys(record.op for record in records))
            text = f"{name}: the whole pass of {run.name} ends its process ({said}) in {words}; "
            text += f"the plain ops are all inside: its own code is wrong: {', '.join(ops)}"
            source = tuple(whole_sources(family, name, run.name))
            return [Fault("whole", run.name, name, ops, words, wrong(said), text, source)]
    return []


def _passes(
    standard: Standard,
) -> list[tuple[str, Callable[[Any], Any], Callable[[Any], Any], list[Record]]]:
    """Name, whether an engine has it in one piece, how to run it alone, and its ops."""
    run, reference = standard.run, standard.reference
    if isinstance(run, Prompt):
        prompt = Prompt(run.ids[: run.cut].tolist(), singles=0)
        token = Prompt(run.ids[:2].tolist(), singles=1)  # two passes of a token each
        last = max(record.call for record in reference)
        return [
            ("the pass of a single token", _forward, token, list(reference.where(call=last))),
            ("the pass of the prompt", _forward, prompt, list(reference.where(call=0))),
        ]
    forward, backward = reference.where(phase="forward"), reference.where(phase="backward")
    return [
        (
            "the forward pass",
            lambda engine: engine.losses,
            lambda model: model.losses(run.x, run.y),
            list(forward),
        ),
        (
            "the backward pass",
            lambda engine: engine.add_gradient,
            run,
            list(backward),
        ),
    ]


def _forward(engine: Any) -> Any:
    return engine.forward
