"""What `diff` found: entries, faults, tokens; as text, JSON and HTML."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pyllm2.observe.judge import NOTHING, Measure
from pyllm2.observe.notebook import table

KINDS = {
    "local": "each op with the reference's inputs",
    "carried": "each backend on its own",
    "whole": "whole passes, where they leave traces",
    "against": "the dump and a run in float64",
    "layer": "each layer with the dump's own input",
    "step": "backends in lockstep, the worst place of each step",
    "program": "what a program prints",
}


@dataclass(frozen=True)
class Entry:
    """One comparison: where, whose, and how far."""

    kind: str  # of KINDS
    run: str  # inference, training, ...
    backend: str
    index: int  # in the order of the run
    name: str  # of the record or of the array
    op: str
    layer: int | None
    found: Measure


@dataclass(frozen=True)
class Fault:
    """What is wrong, as closely as it is known."""

    kind: str
    run: str
    backend: str
    ops: tuple[str, ...]  # one for a local fault; those of a stretch
    where: str  # Example: "layer 0 wq matmul", "layer 1, between keys and the stream"
    found: Measure
    text: str  # one line
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class TokenCheck:
    """The most probable token of a backend at the first position where it is another."""

    backend: str
    position: int | None  # None: the same everywhere
    expected: int = -1
    found: int = -1
    margin: float = math.inf  # of the reference, in float64
    allowed: float = 0.0  # twice the error of a logit
    inside: bool = True


@dataclass
class Report:
    """`str(report)` is a table; `passed` says whether everything is inside its bound."""

    title: str
    backends: list[str]
    entries: list[Entry] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    tokens: list[TokenCheck] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        inside = all(entry.found.inside for entry in self.entries)
        return inside and not self.faults and all(check.inside for check in self.tokens)

    @property
    def worst(self) -> Measure:
        worst = NOTHING
        for entry in self.entries:
            worst = worst.worse(entry.found)
        return worst

    def sections(self) -> list[tuple[str, str]]:
        return list(dict.fromkeys((entry.kind, entry.run) for entry in self.entries))

    def rows(self, kind: str, run: str) -> tuple[list[str], list[tuple[str, list[Measure | None]]]]:
        """Backends, and for each op, layer or array the worst of every backend, in order."""
        chosen = [e for e in self.entries if (e.kind, e.run) == (kind, run)]
        labels = list(dict.fromkeys(e.backend for e in chosen))
        by_key: dict[str, dict[str, Measure]] = {}
        for entry in sorted(chosen, key=lambda e: e.index):
            key = entry.op if kind == "local" else _place(entry)
            row = by_key.setdefault(key, {})
            row[entry.backend] = row.get(entry.backend, NOTHING).worse(entry.found)
        return labels, [(key, [row.get(b) for b in labels]) for key, row in by_key.items()]

    def __str__(self) -> str:
        lines = [self.title]
        for kind, run in self.sections():
            labels, rows = self.rows(kind, run)
            lines += ["", f"{kind}, {run} ({KINDS[kind]}): largest share of the bound, ulp"]
            lines += columns(["", *labels], [[key, *map(cell, found)] for key, found in rows])
            marked = _first_outside(rows)
            if marked is not None:
                at = len(lines) - len(rows) + marked
                lines[at] = ">" + lines[at][1:]
        lines += ["", *map(_token_words, self.tokens)] if self.tokens else []
        for fault in self.faults:
            lines += ["", f"OUTSIDE: {fault.text}", *(f"    {s}" for s in fault.sources)]
        lines += ["", *self.notes] if self.notes else []
        verdict = "everything is inside its bound" if self.passed else "outside"
        if not all(entry.found.inside for entry in self.entries) and not self.faults:
            verdict = "outside, see the marked rows"
        return "\n".join([*lines, "", verdict])

    def as_json(self) -> dict[str, Any]:
        """Numbers that JSON has not are strings."""
        return {
            "passed": self.passed,
            "backends": self.backends,
            "faults": [
                {
                    "kind": f.kind,
                    "run": f.run,
                    "backend": f.backend,
                    "ops": list(f.ops),
                    "where": f.where,
                    "text": f.text,
                    "sources": list(f.sources),
                    **_numbers(f.found),
                }
                for f in self.faults
            ],
            "tokens": [{k: _number(v) for k, v in vars(t).items()} for t in self.tokens],
            "entries": [
                {
                    "kind": e.kind,
                    "run": e.run,
                    "backend": e.backend,
                    "name": e.name,
                    "op": e.op,
                    "layer": e.layer,
                    **_numbers(e.found),
                }
                for e in self.entries
            ],
            "notes": self.notes,
        }

    def _repr_html_(self) -> str:
        parts = [f"<b>{html.escape(self.title)}</b>"]
        for kind, run in self.sections():
            labels, rows = self.rows(kind, run)
            body = [[key, *map(cell, found)] for key, found in rows]
            parts.append(f"<p>{html.escape(f'{kind}, {run}: share of the bound, ulp')}</p>")
            parts.append(table(["", *labels], body, _first_outside(rows)))
        parts += [f"<p>{html.escape(fault.text)}</p>" for fault in self.faults]
        parts.append("<p>inside</p>" if self.passed else "<p><b>outside</b></p>")
        return "".join(parts)


def _place(entry: Entry) -> str:
    if entry.kind == "carried" and entry.layer is not None:
        return f"layer {entry.layer}"
    return entry.name


def _first_outside(rows: Sequence[tuple[str, list[Measure | None]]]) -> int | None:
    for n, (_, found) in enumerate(rows):
        if any(m is not None and not m.inside for m in found):
            return n
    return None


def cell(found: Measure | None) -> str:
    """Example: "0.031  1.5" (share of the bound, ulp); "-" where there is nothing to compare."""
    if found is None:
        return "-"
    if found.note and math.isinf(found.share):
        return found.note[:24]
    return f"{found.share:.3f}  {found.ulp:.3g}" + ("" if found.inside else "  OUTSIDE")


def columns(headers: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    return [
        "  " + "  ".join(f"{c:<{w}}" for c, w in zip(r, widths, strict=True)).rstrip()
        for r in [headers, *rows]
    ]


def _token_words(check: TokenCheck) -> str:
    if check.position is None:
        return f"tokens, {check.backend}: the most probable ones are the same"
    at = f"tokens, {check.backend}: position {check.position}: {check.found} instead of"
    if check.inside:
        tie = (
            f"a tie within {check.allowed:.2g} (they are {check.margin:.2g} apart): both are right"
        )
        return f"{at} {check.expected}: {tie}"
    return f"{at} {check.expected}: they are {check.margin:.2g} apart, {check.allowed:.2g} allowed"


def _number(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(found: Measure) -> dict[str, Any]:
    fields = found._asdict()
    fields["at"] = list(found.at)
    return {name: _number(value) for name, value in fields.items()} | {"inside": found.inside}
