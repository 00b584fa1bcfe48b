"""A comparison that survives kernels which end their process, or write where they should not.

The comparison runs in a child. If that ends by a signal, every op of the backend runs once more,
each in a child of its own: the op that crashed last is often not the one that wrote out of bounds.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Sequence

import numpy as np

from pyllm2 import backends
from pyllm2.observe.diff import compare, compare_ops
from pyllm2.observe.guarded import in_child
from pyllm2.observe.report import Report
from pyllm2.observe.standard import Standard, WrongSpecificationError

SIZES = (16, 100, 1000, 10000, 100000)  # of arrays whose allocation may notice a damaged heap


def compare_safely(standard: Standard, names: Sequence[str], title: str = "") -> Report:
    """`compare` in children; a fault for an op that ends one."""

    def whole_comparison() -> Report:
        report = Report(title, list(names))
        compare(report, standard, names)
        return report

    empty = Report(title, list(names))
    report = in_child(whole_comparison, empty)
    if report is not empty:
        return report
    (crash,) = report.faults
    found = []
    try:
        ops = dict.fromkeys(record.op for record in standard.reference)
    except WrongSpecificationError:
        return report
    for op in ops:
        one = Report(title, [crash.backend])
        found += in_child(functools.partial(_one_op, standard, crash.backend, op), one).faults
    if found:
        report.faults[:] = found
    report.notes.append(f"{crash.text}; each op was then tried in a process of its own")
    return report


def _one_op(standard: Standard, name: str, op: str) -> Report:
    """Every place of one op, and allocations that show a damaged heap."""
    report = Report("", [name])
    engine = backends.engine(name, family=standard.family)
    compare_ops(report, standard, {name: engine.ops}, only=op)
    for size in SIZES * 3:
        kept = [np.ones(size, np.float32) for _ in range(20)]
        del kept
    gc.collect()
    return report
