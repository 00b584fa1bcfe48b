"""A line of the report."""

from __future__ import annotations

from dataclasses import dataclass

from pyllm2.conform.finding import Finding
from pyllm2.conform.judge import REFUSES

PASSES, DIFFERS, REFUSED = "passes", "differs", "refuses"
CRASHES, HANGS = "crashes", "hangs"
NOT_DRIVABLE, NOT_TESTED = "not drivable", "not tested"
FAILURES = (DIFFERS, CRASHES, HANGS)
_STATUS = {"crashes": CRASHES, "hangs": HANGS, "output": HANGS, "memory": HANGS, REFUSES: REFUSED}


@dataclass
class Result:
    """A property and what became of it.

    why: what differs, or why it was not tested
    """

    name: str
    status: str
    why: str = ""
    runs: int = 0
    finding: Finding | None = None


def of_finding(found: Finding, runs: int) -> Result:
    """The result of a property that fails."""
    status = _STATUS.get(found.verdict.kind, DIFFERS)
    return Result(found.name, status, found.verdict.says, runs, found)
