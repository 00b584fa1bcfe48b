"""The report: a line per property, then each failure with what repeats it."""

from __future__ import annotations

from typing import Any

from pyllm2.conform import drawn
from pyllm2.conform.case import show
from pyllm2.conform.judge import new_ids
from pyllm2.conform.properties import BY_NAME, PROPERTIES
from pyllm2.conform.result import FAILURES, PASSES, Result
from pyllm2.conform.session import Session


def says(name: str) -> str:
    return BY_NAME[name].says if name in BY_NAME else drawn.SAYS[name]


def cause(name: str) -> str:
    return BY_NAME[name].cause if name in BY_NAME else drawn.CAUSE


def listing() -> str:
    """`--list`: every property, and what usually breaks it."""
    lines = []
    for name in (*(p.name for p in PROPERTIES), *drawn.NAMES):
        lines += [f"{name:<21}{says(name)}", f"{'':<21}usual cause: {cause(name)}"]
    return "\n".join(lines)


def line(result: Result) -> str:
    """Example: "passes        layers               more layers than key/value heads (6 runs)" """
    head = f"{result.status:<13} {result.name:<21}"
    if result.status == PASSES:
        return f"{head}{says(result.name)} ({_runs(result.runs)})"
    return f"{head}{result.why}"


def _runs(n: int) -> str:
    return "1 run" if n == 1 else f"{n} runs"


def details(result: Result) -> str:
    """A failure: the smallest case, both lists of ids, the cause, and how to repeat it."""
    found = result.finding
    assert found is not None
    lines = [f"{result.name}: {says(result.name)}"]
    lines.append(f"  found     {found.verdict.says}")
    lines.append(f"  case      {found.case.summary()}")
    if found.case.damage:
        lines.append(f"  files     {found.case.damage}")
    ids, _, _ = new_ids(found.wanted)
    if found.verdict.kind in ("ids", "count"):
        lines.append(f"  expected  {_ids(ids)}")
        lines.append(f"  got       {_ids(found.verdict.found)}")
        if found.verdict.margin is not None:
            margin = "exact" if found.verdict.margin > 1e6 else f"{found.verdict.margin:.1f} times"
            lines.append(f"  margin    {margin} the tolerance, at step {found.verdict.step + 1}")  # type: ignore[operator]
    elif found.verdict.kind not in ("exit", "refuses"):
        lines.append(f"  expected  {show(found.expected_text[:300])}")
        lines.append(f"  got       {show(found.out[:300])}")
    lines.append(f"  usually   {cause(result.name)}")
    if found.folder:
        lines.append(f"  repeat    cd {found.folder} && {found.shell_line}")
        lines.append(f"            or: pyllm2 conform --replay {found.folder}")
    return "\n".join(lines)


def _ids(ids: list[int]) -> str:
    shown = " ".join(map(str, ids[:40])) or "none"
    return shown + (" ..." if len(ids) > 40 else "")


def summary(session: Session, seconds: float) -> str:
    """The last line: counts, and the dialect if it is an old one."""
    counts: dict[str, int] = {}
    for result in session.results:
        counts[result.status] = counts.get(result.status, 0) + 1
    parts = [f"{n} {_plural(status, n)}" for status, n in counts.items()]
    text = f"{', '.join(parts)}; {session.runs} runs in {seconds:.1f} s"
    dialect = session.dialect_line()
    return f"{text}\nthe program is {dialect}" if dialect else text


def _plural(status: str, n: int) -> str:
    if n == 1 or status.startswith("not "):
        return status
    return {"passes": "pass", "differs": "differ", "refuses": "refuse"}.get(status, status[:-1])


def as_json(session: Session, seconds: float) -> dict[str, Any]:
    """The whole report as plain values."""
    rows = []
    for result in session.results:
        row: dict[str, Any] = {
            "property": result.name,
            "says": says(result.name),
            "status": result.status,
            "why": result.why,
            "runs": result.runs,
        }
        if result.finding is not None:
            found = result.finding
            row["finding"] = {
                "kind": found.verdict.kind,
                "says": found.verdict.says,
                "cause": cause(result.name),
                "step": found.verdict.step,
                "margin": found.verdict.margin,
                "expected": new_ids(found.wanted)[0],
                "got": found.verdict.found,
                "case": found.case.as_json() if found.case.style != "stories" else None,
                "command": found.shell_line,
                "folder": found.folder,
            }
        rows.append(row)
    return {
        "program": list(session.adapter.program),
        "arguments": session.adapter.template.text,
        "dialect": session.dialect_line() or "like run.c of today",
        "runs": session.runs,
        "seconds": round(seconds, 3),
        "failed": session.failed,
        "properties": rows,
    }


def failures(session: Session) -> list[Result]:
    return [r for r in session.results if r.status in FAILURES and r.finding is not None]
