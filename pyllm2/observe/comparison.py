"""One op by several backends, on the same inputs, in ulp and in shares of the derived bound."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

from pyllm2 import backends
from pyllm2.errors import BackendError
from pyllm2.observe.judge import NOTHING, Judge, Measure
from pyllm2.observe.record import Record
from pyllm2.observe.sources import package_of


@dataclass
class Comparison:
    """The largest error of each backend; `note` says why there is none."""

    measures: dict[str, Measure] = field(default_factory=dict)
    note: str = ""

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Backend, ulp, share of the bound, and a word where that is not enough."""
        return [
            (name, f"{m.ulp:.3g}", f"{m.share:.3g}", m.note if m.inside else m.note or "OUTSIDE")
            for name, m in self.measures.items()
        ]

    @property
    def short(self) -> str:
        """Example: "ulp and share of the bound: numpy 1.07 0.0245 · c 0.962 0.0262" """
        parts = (" ".join(filter(None, row)) for row in self.rows())
        return self.note or f"ulp and share of the bound: {' · '.join(parts)}"

    def __str__(self) -> str:
        if self.note:
            return self.note
        lines = [f"{'backend':<13} {'ulp':>9} {'of bound':>9}"]
        lines += [
            f"{n:<13} {ulp:>9} {share:>9}  {word}".rstrip() for n, ulp, share, word in self.rows()
        ]
        return "\n".join(lines)


@functools.cache
def judge(family: str) -> Judge:
    """Raises BackendError without hypothesis."""
    return Judge(family)


def compared(family: str, record: Record, names: Sequence[str]) -> Comparison:
    """What backends make of the inputs of a record, against its formula in float64.

    A backend that cannot run is left out. Raises BackendError without hypothesis, whose package
    the bounds are part of.
    """
    referee = judge(family)
    if not record.kept:
        return Comparison(note="the values of this op were not kept")
    bounded = referee.bounded(record)
    if bounded is None:
        return Comparison(note=f"no bound is known for {record.op}")
    found = Comparison()
    for name in names:
        try:
            ops = backends.ops(name, package=package_of(family, record.op))
        except BackendError:
            continue
        function = getattr(ops, record.op, None)
        found.measures[name] = referee.run(function, record, bounded) if function else NOTHING
    return found
