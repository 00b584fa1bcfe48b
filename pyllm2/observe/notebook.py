"""Traces and reports as HTML for a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

MOST_ROWS = 400


def table(
    headers: Sequence[str], rows: Iterable[Sequence[object]], marked: int | None = None
) -> str:
    """A table; the row of that number is marked."""
    head = "".join(f"<th>{html.escape(h)}</th>" for h in headers)
    lines = [f"<table><thead><tr>{head}</tr></thead><tbody>"]
    for n, row in enumerate(rows):
        style = " style='background:#f8d7da;color:#000'" if n == marked else ""
        cells = "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row)
        lines.append(f"<tr{style}>{cells}</tr>")
    return "".join([*lines, "</tbody></table>"])


def trace_html(trace: Any) -> str:
    rows = [(r.index, r.name, r.described, *numbers(r)) for r in trace.records[:MOST_ROWS]]
    more = len(trace) - len(rows)
    return table(["", "op", "shapes", "min", "max", "mean"], rows) + (
        f"<p>and {more} more ops</p>" if more else ""
    )


def record_html(record: Any) -> str:
    values = {**record.inputs, **{f"-> {n}": a for n, a in record.outputs.items()}}
    rows = [(name, _shape(a), *_numbers(a)) for name, a in values.items()]
    title = html.escape(f"{record.index} {record.name}")
    return f"<b>{title}</b>" + table(["", "shape", "min", "max", "mean"], rows)


def numbers(record: Any) -> tuple[str, str, str]:
    """min, max and mean of the first result, as text."""
    return _numbers(record.output) if record.kept and record.outputs else ("", "", "")


def _shape(a: Any) -> str:
    return f"{a.shape} {a.dtype}" if isinstance(a, np.ndarray) else repr(a)


def _numbers(a: Any) -> tuple[str, str, str]:
    if not isinstance(a, np.ndarray) or not a.size:
        return "", "", ""
    a = a.astype(np.float64)
    with np.errstate(all="ignore"):
        low, high, mean = a.min(), a.max(), a.mean()
    return f"{low:.4g}", f"{high:.4g}", f"{mean:.4g}"
