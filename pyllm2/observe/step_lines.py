"""The lines of an op of the specification, one after another, with the variables at each.

Ops are plain functions: running one again on the inputs of a record shows how its results come
about, without a debugger, and as often as one likes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np

from pyllm2 import backends
from pyllm2.observe.record import Record
from pyllm2.observe.sources import package_of

MOST_LINES = 2000
MOST_BYTES = 2**26  # of copies; variables after that may show later values


@dataclass
class Line:
    """A line that is about to run; the last one has run and `returned` is what the op gives."""

    number: int  # in the file of the specification
    variables: dict[str, Any] = field(default_factory=dict)
    returned: bool = False


def lines_of(family: str, record: Record) -> list[Line]:
    """The lines that ran, at most MOST_LINES; [] if the values of the record were not kept."""
    if not record.kept:
        return []
    ops = backends.ops("numpy", package=package_of(family, record.op))
    function = getattr(ops, record.op, None)
    if function is None:
        return []
    arguments = [a.copy() if isinstance(a, np.ndarray) else a for a in record.inputs.values()]
    return _run(function, arguments)


def _run(function: Any, arguments: list[Any]) -> list[Line]:
    found: list[Line] = []
    code = function.__code__
    room = MOST_BYTES
    given = {id(a) for a in arguments}

    def snapshot(frame: FrameType) -> dict[str, Any]:
        nonlocal room
        variables = {}
        for name, value in frame.f_locals.items():
            if isinstance(value, np.ndarray) and id(value) not in given and value.nbytes <= room:
                room -= value.nbytes
                value = value.copy()
            variables[name] = value
        return variables

    def local(frame: FrameType, event: str, value: Any) -> Any:
        if event == "line" and len(found) < MOST_LINES:
            found.append(Line(frame.f_lineno, snapshot(frame)))
        elif event == "return":
            returned = {} if value is None else {"returns": value}
            found.append(Line(frame.f_lineno, snapshot(frame) | returned, returned=True))
        return local

    def enter(frame: FrameType, event: str, value: Any) -> Any:
        return local if frame.f_code is code else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        with np.errstate(all="ignore"):
            function(*arguments)
    except Exception:  # a value that was set may be impossible: the lines before it are shown
        pass
    finally:
        sys.settrace(before)
    return found
