"""How llama2.c's run changed over the summer of 2023, as switches with dates.

The dates are approximate, to within some days. Many ports were written from one of those versions
and are faithful to it; what they do differently is one sentence, not a dozen failures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import date


@dataclass(frozen=True)
class Dialect:
    """A version of run.c. True is what it does today."""

    bos_stops: bool = True
    dummy_space: bool = True
    byte_pieces: bool = True
    hides_bytes: bool = True
    computes_rope: bool = True


@dataclass(frozen=True)
class Change:
    """When a switch became true, and what was before."""

    since: date
    today: str
    before: str


CHANGES: dict[str, Change] = {
    "bos_stops": Change(date(2023, 7, 31), "BOS ends the text", "BOS does not end the text"),
    "dummy_space": Change(
        date(2023, 8, 6), "a prompt begins with a space", "no space is put before a prompt"
    ),
    "byte_pieces": Change(
        date(2023, 8, 13), "pieces <0x..> are bytes", "pieces <0x..> are printed as they are"
    ),
    "computes_rope": Change(
        date(2023, 8, 14), "RoPE is computed", "RoPE is read from the tables of the model file"
    ),
    "hides_bytes": Change(
        date(2023, 8, 20), "bytes that cannot be printed are dropped", "all bytes are printed"
    ),
}
TODAY = Dialect()


def of_date(day: date) -> Dialect:
    """What run.c did on a day."""
    return Dialect(**{name: change.since <= day for name, change in CHANGES.items()})


def with_switch(dialect: Dialect, name: str, value: bool) -> Dialect:
    changes: dict[str, bool] = {name: value}
    return replace(dialect, **changes)


def nearest(seen: Mapping[str, bool]) -> tuple[date | None, list[str]]:
    """The day that explains most of the switches seen, and those that it does not explain.

    None is today. Of two days that explain the same number the later is taken.
    """
    days = [None, *sorted((c.since for c in CHANGES.values()), reverse=True)]

    def exceptions(day: date | None) -> list[str]:
        def then(name: str) -> bool:
            return day is None or CHANGES[name].since < day

        return [name for name, value in seen.items() if value != then(name)]

    best = min(days, key=lambda day: len(exceptions(day)))
    return best, exceptions(best)


def describe(seen: Mapping[str, bool]) -> str:
    """A sentence.

    Example: "like run.c before 2023-08-13, except: RoPE is computed"
    """
    day, but = nearest(seen)
    words = "like run.c of today" if day is None else f"like run.c before {day}"
    exceptions = [CHANGES[n].today if seen[n] else CHANGES[n].before for n in but]
    return words + (f", except: {'; '.join(exceptions)}" if exceptions else "")


NAMES = tuple(field.name for field in fields(Dialect))
