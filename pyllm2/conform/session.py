"""The protocol: smoke, the properties one after another, shrinking, drawn cases until the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pyllm2.conform import dialects, drawn, finding
from pyllm2.conform.adapter import RUN_C, RUN_C_CHAT, Adapter, ids_of, parse
from pyllm2.conform.case import Case
from pyllm2.conform.chat import expected
from pyllm2.conform.child import Outcome
from pyllm2.conform.dialects import TODAY, Dialect
from pyllm2.conform.finding import Finding
from pyllm2.conform.judge import REFUSES, Verdict, judge, new_ids
from pyllm2.conform.maker import Maker, NoCaseError, quiet
from pyllm2.conform.properties import BY_NAME, PROPERTIES
from pyllm2.conform.property import Property
from pyllm2.conform.reference import Expected
from pyllm2.conform.result import (
    DIFFERS,
    FAILURES,
    NOT_DRIVABLE,
    NOT_TESTED,
    PASSES,
    Result,
    of_finding,
)
from pyllm2.conform.shrink import shrink
from pyllm2.errors import PyLLM2Error

SLOW = 0.2  # seconds per run, from which on runs are saved


@dataclass
class Options:
    """What the user chose."""

    budget: float = 60.0
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    dialect: Dialect = TODAY
    vocab_size: int | None = None
    invalid_utf8: bool = True
    out: Path = Path("conform.d")
    shrink_seconds: float = 12.0
    chat: bool = False  # the properties of chats, and no others


@dataclass
class Session:
    """One program under test."""

    adapter: Adapter
    options: Options
    against: Adapter | None = None
    tell: Callable[[str, int, int], None] = lambda *_: None  # name, done, all
    results: list[Result] = field(default_factory=list)
    switches: dict[str, bool] = field(default_factory=dict)  # seen, by name
    runs: int = 0
    spent: float = 0.0  # seconds in runs

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        has = frozenset(self.adapter.template.words - {"model", "tokenizer"})
        self.maker = Maker(has, self.options.vocab_size, dialect=self.options.dialect)

    # ---- one run -----------------------------------------------------------------------------

    def run(self, case: Case, wanted: Expected) -> tuple[Outcome, Verdict]:
        """Run the program once and judge it."""
        outcome = self.adapter.run(case)
        self.runs += 1
        self.spent += outcome.seconds
        return outcome, judge(case, wanted, outcome, self.adapter.text_of(outcome.out))

    def wanted(self, case: Case, dialect: Dialect | None = None) -> Expected:
        """What is expected: of the original, or of the program that it is compared with."""
        ours = expected(quiet(case), dialect or self.maker.dialect)
        return ours if self.against is None else self._of_other(case, ours)

    def _of_other(self, case: Case, ours: Expected) -> Expected:
        """The text of the other program; how many steps are sure is known from ours."""
        assert self.against is not None
        out = self.against.run(case).out
        _, margins, sure = new_ids(ours)
        ids = ids_of(out)
        margins = [*margins, *[0.0] * len(ids)][: len(ids)]
        if case.judge in ("stdout", "between"):
            return Expected(
                [1], [0], [out.removesuffix(b"\n")], [margins[0] if sure else 0.0], False
            )
        return Expected([1], ids, [b"[%d]" % i for i in ids], margins, False)

    @property
    def seconds_per_run(self) -> float:
        return self.spent / max(1, self.runs)

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return self.options.budget - (time.monotonic() - self.began)

    # ---- smoke -------------------------------------------------------------------------------

    def smoke(self) -> Outcome | None:
        """Find a base that the program can run; None if there is one, else its last outcome.

        A program that computes in whole vectors may fail on small sizes, which is a property of
        its own: then the base is a model of friendly sizes.
        """
        for dim, hidden in ((8, 12), (64, 64)):
            self.use_sizes(dim, hidden)
            case = self.smoke_case()
            outcome, verdict = self.run(case, self.wanted(case))
            if verdict.passed:
                return None
        self.use_sizes(8, 12)
        answers = self.options.chat and verdict.found  # something: a property says what differs
        return None if answers else outcome

    def smoke_case(self) -> Case:
        """The first that is run: a model of one layer, greedy; of a chat one answer."""
        if self.options.chat:
            return BY_NAME["chat"].draw(self.maker, 0)[0]
        return self.maker.draw(self.maker.base(blocks="none"))[0]

    def use_sizes(self, dim: int, hidden_dim: int) -> None:
        """The sizes of the base from now on."""
        self.maker.dim, self.maker.hidden_dim = dim, hidden_dim
        self.maker.least_head = 2 if dim == 8 else 16

    # ---- the properties ----------------------------------------------------------------------

    def chosen(self) -> list[Property]:
        only, skip = self.options.only, self.options.skip
        fitting = [p for p in PROPERTIES if p.chat == self.options.chat]
        fitting = [p for p in fitting if not p.without or p.without not in self.maker.has]
        return [p for p in fitting if (not only or p.name in only) and p.name not in skip]

    def check_all(self) -> Iterator[Result]:
        """Every property, then drawn cases while there is time."""
        chosen = self.chosen()
        names = () if self.options.chat else drawn.NAMES
        extra = [n for n in names if not self.options.only or n in self.options.only]
        extra = [name for name in extra if name not in self.options.skip]
        total = len(chosen) + len(extra)
        for i, prop in enumerate(chosen):
            self.tell(prop.name, i, total)
            yield self._kept(self.check(prop, len(chosen) - i))
        for i, name in enumerate(extra):
            self.tell(name, len(chosen) + i, total)
            yield self._kept(drawn.check(self, name))
        self.tell("", total, total)

    def _kept(self, result: Result) -> Result:
        self.results.append(result)
        return result

    def why_not(self, prop: Property) -> tuple[str, str] | None:
        """Why a property is not tested, as a status and a reason."""
        missing = [word for word in prop.words if word not in self.maker.has]
        if missing:
            return NOT_DRIVABLE, f"the command line has no {' '.join(f'{{{w}}}' for w in missing)}"
        if prop.run_c_only and not self.adapter.is_run_c:
            return NOT_TESTED, "only for run.c's own command line"
        if prop.needs_scores and not self.adapter.scored:
            return NOT_DRIVABLE, "this format of the vocabulary has no scores"
        if prop.name == "invalid-utf8" and not self.options.invalid_utf8:
            return NOT_TESTED, "--no-invalid-utf8"
        for result in self.results:
            if result.name in prop.needs and result.status != PASSES:
                if result.status == DIFFERS and self.is_dialect(result.name):
                    continue
                return NOT_TESTED, f"needs {result.name}"
        return None

    def is_dialect(self, name: str) -> bool:
        found = BY_NAME.get(name)
        return found is not None and found.switch in self.switches

    def check(self, prop: Property, remaining: int = 1) -> Result:
        """Try the cases of a property; shrink the first that fails."""
        reason = self.why_not(prop)
        if reason is not None:
            return Result(prop.name, *reason)
        before = self.runs
        cases = self._drawn_cases(prop, self._how_many(prop, remaining))
        failing: tuple[Case, Expected, Outcome, Verdict] | None = None
        tried = 0
        for case, wanted in cases:
            tried += 1
            outcome, verdict = self.run(case, wanted)
            if not verdict.passed:
                failing = case, wanted, outcome, verdict
                break
        if tried == 0:
            return Result(prop.name, NOT_TESTED, "no case of it fits this program")
        if failing is None:
            if prop.switch:
                self.switches[prop.switch] = getattr(self.maker.dialect, prop.switch)
            return Result(prop.name, PASSES, runs=self.runs - before)
        if prop.switch and self._speaks_other(prop):
            now = getattr(self.maker.dialect, prop.switch)
            self.switches[prop.switch] = now
            change = dialects.CHANGES[prop.switch]
            words = change.today if now else change.before
            since = "since" if now else "before"
            why = f"{words}, as run.c did {since} {change.since}"
            self.maker.dialect = dialects.with_switch(self.maker.dialect, prop.switch, not now)
            found = self.smallest(prop.name, *failing)
            self.maker.dialect = dialects.with_switch(self.maker.dialect, prop.switch, now)
            return Result(prop.name, DIFFERS, why, self.runs - before, found)
        if prop.name == "vector-tails":  # it says nothing about the others
            self.use_sizes(64, 64)
        found = self.smallest(prop.name, *failing)
        return of_finding(found, self.runs - before)

    def _how_many(self, prop: Property, remaining: int) -> int:
        """All cases, or fewer for a slow program: never none."""
        if self.seconds_per_run < SLOW:
            return prop.cases
        share = max(0.0, self.left) / max(1, remaining)
        return max(1, min(prop.cases, int(share / self.seconds_per_run)))

    def _drawn_cases(self, prop: Property, n: int) -> Iterable[tuple[Case, Expected]]:
        for i in range(n):
            if i and self.left < 0:
                return
            try:
                case, _ = prop.draw(self.maker, i)
                yield case, self.wanted(case)
            except (NoCaseError, PyLLM2Error):
                continue

    def _speaks_other(self, prop: Property) -> bool:
        """Whether all cases pass in the other value of the property's switch; then it is kept."""
        now = self.maker.dialect
        other = dialects.with_switch(now, prop.switch, not getattr(now, prop.switch))
        passed = 0
        for i in range(max(2, min(prop.cases, 4))):
            try:
                case, _ = prop.draw(self.maker, i)
            except NoCaseError:
                continue
            if not self.run(case, self.wanted(case, other))[1].passed:
                return False
            passed += 1
        if passed:
            self.maker.dialect = other
        return passed > 0

    # ---- the smallest failure ----------------------------------------------------------------

    def smallest(
        self, name: str, case: Case, wanted: Expected, outcome: Outcome, verdict: Verdict
    ) -> Finding:
        """Shrink a failing case and write its folder."""
        kind = verdict.kind

        def fails(candidate: Case) -> bool:
            run = self.wanted(candidate)
            starved = bool(candidate.lines) and run.stopped
            return run.settled and not starved and self.run(candidate, run)[1].kind == kind

        slow = self.seconds_per_run >= SLOW
        if kind not in ("hangs", "memory", "output", REFUSES):
            seconds = min(self.options.shrink_seconds, max(2.0, self.left / 4))
            case = shrink(case, fails, seconds, 20 if slow else 600)
            wanted = self.wanted(case)
            outcome, verdict = self.run(case, wanted)
        found = Finding(name, case, wanted, verdict, outcome.out, self.adapter.shell_line(case))
        folder = finding.write(found, self.adapter, self.options.out)
        return Finding(**{**found.__dict__, "folder": folder})

    # ---- the outcome -------------------------------------------------------------------------

    @property
    def failed(self) -> bool:
        return any(result.status in FAILURES for result in self.results)

    def dialect_line(self) -> str:
        """A sentence on the version of run.c that the program is like; empty if today's."""
        if all(self.switches.values()):
            return ""
        return dialects.describe(self.switches)


def reference_of(program: tuple[str, ...], adapter: Adapter, chat: bool = False) -> Adapter:
    """The adapter of a program with run.c's command line, to compare with."""
    return Adapter(program, parse(RUN_C_CHAT if chat else RUN_C), limits=adapter.limits)
