"""The tables of ops; `check_op` and `check_ops` check your functions against them."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pyllm2.testing.adamw.table import OPS as ADAMW
from pyllm2.testing.gpt2.table import OPS as GPT2
from pyllm2.testing.llama2.table import OPS as LLAMA2
from pyllm2.testing.op import Held, Op, hold

tables: dict[str, dict[str, Op]] = {"llama2": LLAMA2, "gpt2": GPT2, "adamw": ADAMW}


def check_op(name: str, function: Callable[..., Any], model: str | None = None) -> Held:
    """Check a function against the specification's op of that name, on many drawn inputs.

    Checks that the inputs are left unchanged, shape, dtype, the error bound around a float64
    evaluation, and the op's laws.

    model: "llama2", "gpt2" or "adamw"; needed for a name that two of them have

    Returns how many examples were checked, and the largest share of the bound.

    Raises AssertionError with the smallest inputs that hypothesis finds, and ValueError for a name
    that no model has or that two models have.
    """
    return hold(find_op(name, model), {name: function})


@dataclass
class Report:
    """What `check_ops` found. `str(report)` is a line per op that failed or is missing."""

    model: str
    passed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    failed: dict[str, Exception] = field(default_factory=dict)

    def __str__(self) -> str:
        total = len(tables[self.model])
        lines = [f"{self.model}: {len(self.passed)} of {total} ops pass, {len(self.failed)} fail"]
        lines += [f"{name}: missing" for name in self.missing]
        for error in self.failed.values():
            text = str(error) if isinstance(error, AssertionError) else repr(error)
            lines += [text, *("  " + "\n  ".join(note.splitlines()) for note in notes(error))]
        return "\n".join(lines)


def notes(error: Exception) -> list[str]:
    """Notes of an exception: here the smallest inputs."""
    return getattr(error, "__notes__", [])


def check_ops(ops: Any, model: str, complete: bool = False) -> Report:
    """Check every op of a model that a module or object has; other attributes are ignored.

    complete: an op that is missing is an error too

    Raises AssertionError with the report if an op fails, and ValueError if `ops` has none of them.
    """
    table, report = _table(model), Report(model)
    for name, op in table.items():
        function = getattr(ops, name, None)
        if function is None:
            report.missing.append(name)
            continue
        try:
            hold(op, {name: function})
        except Exception as error:  # whatever a kernel raises is a finding
            report.failed[name] = error
        else:
            report.passed.append(name)
    if len(report.missing) == len(table):
        raise ValueError(f"no op of {model}: expected functions with the names {', '.join(table)}")
    if report.failed or (complete and report.missing):
        raise AssertionError(str(report))
    return report


def find_op(name: str, model: str | None = None) -> Op:
    """The row of `tables` with this name; ValueError if there is none or more than one."""
    searched = tables if model is None else {model: _table(model)}
    having = [of for of, table in searched.items() if name in table]
    if not having:
        known = "; ".join(f"{of} has {', '.join(table)}" for of, table in searched.items())
        names = [other for table in searched.values() for other in table]
        near = difflib.get_close_matches(name, dict.fromkeys(names), n=3)
        meant = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise ValueError(f"op {name!r} does not exist{meant}: {known}")
    if len(having) > 1:
        choices = " or ".join(f"model={of!r}" for of in having)
        raise ValueError(f"op {name!r} exists in {len(having)} models: pass {choices}")
    return tables[having[0]][name]


def _table(model: str) -> dict[str, Op]:
    if model not in tables:
        raise ValueError(f"model {model!r} does not exist: choose from {', '.join(tables)}")
    return tables[model]
