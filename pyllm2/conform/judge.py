"""The verdict on one run: what a program printed, against what the original prints."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from pyllm2.conform.adapter import ids_of
from pyllm2.conform.case import Case, show
from pyllm2.conform.child import Outcome
from pyllm2.conform.laws import broken_law
from pyllm2.conform.reference import Expected

OK = "ok"
REFUSES = "refuses"
# What a program prints when it ends by accident, with an exit code that means refusal elsewhere.
_ACCIDENT = re.compile(
    rb"Traceback \(most recent|panicked at|^goroutine \d|Exception in thread|Unhandled exception"
    rb"|uncaught|core dumped|[Ss]egmentation fault|stack backtrace|[Ss]anitizer|^panic: "
    rb"|terminate called|index out of|out of bounds|BoundsError|ERROR: LoadError"
    rb"|\bat .*\.(?:js|java|kt|ts|cs|scala):?\d+",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Verdict:
    """The kind of a result, which shrinking keeps, and the words of a report.

    kind: "ok", "refuses", "crashes", "hangs", "memory", "output", "ids", "count", "bytes", "exit"
    """

    kind: str
    says: str = ""
    step: int | None = None  # the first that differs
    margin: float | None = None
    expected: list[int] = field(default_factory=list)
    found: list[int] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return self.kind == OK


def judge(case: Case, wanted: Expected, outcome: Outcome, text: bytes) -> Verdict:
    """How a run compares.

    text: the part of stdout that holds the text
    """
    found = ids_of(text)
    stopped = {"time": "hangs", "memory": "memory", "output": "output"}.get(outcome.stopped)
    if stopped:
        return Verdict(stopped, outcome.ended, found=found[:50])
    if case.judge == "survives":
        return Verdict(OK)
    if case.judge == "refusal":
        return _judge_refusal(outcome, text)
    if outcome.code != 0 and not (found and found == new_ids(wanted)[0]):
        return _failed(outcome, found)
    if case.judge == "ids":
        verdict = _judge_ids(wanted, found)
    elif case.judge == "count":
        verdict = _judge_count(wanted, found)
    elif case.judge == "start":
        verdict = _judge_start(wanted, text)
    elif case.judge == "text":
        verdict = _judge_text(wanted, text)
    elif case.judge == "law":
        verdict = _judge_law(case, found)
    elif case.judge == "between":
        verdict = _judge_between(wanted, text)
    else:
        verdict = _judge_stdout(wanted, text)
    if verdict.passed and outcome.code != 0:
        return Verdict("exit", f"prints the text, then ends with {outcome.ended}", found=found)
    return verdict


def _judge_refusal(outcome: Outcome, text: bytes) -> Verdict:
    if outcome.code != 0:
        return Verdict(OK)
    says = f"exit code 0, {len(text)} bytes on stdout"
    return Verdict("exit", f"{says}; the original ends with exit code 1")


def _failed(outcome: Outcome, found: list[int]) -> Verdict:
    """A run that ended badly: an accident, or a refusal without text."""
    accident = _ACCIDENT.search(outcome.err) or _ACCIDENT.search(outcome.out)
    last = outcome.err.decode("utf-8", "replace").strip().splitlines()
    says = outcome.ended + (f": {last[-1][:200]}" if last else "")
    if outcome.code < 0 or accident or found:
        return Verdict("crashes", says, found=found[:50])
    return Verdict(REFUSES, says)


def new_ids(wanted: Expected) -> tuple[list[int], list[float], int]:
    """The tracers among the printed parts, their margins, and how many of them are sure."""
    ids: list[int] = []
    margins: list[float] = []
    sure = 0
    for i, (part, margin) in enumerate(zip(wanted.parts, wanted.margins, strict=False)):
        tracers = ids_of(part)
        ids += tracers
        margins += [margin] * len(tracers)
        if i < wanted.sure:
            sure = len(ids)
    return ids, margins, sure


def _judge_ids(wanted: Expected, found: list[int]) -> Verdict:
    """The ids up to the first fragile step; one id more or less at the end is `count`'s matter."""
    ids, margins, sure = new_ids(wanted)
    for i in range(min(sure, len(found))):
        if ids[i] != found[i]:
            margin = margins[i]
            says = f"id {found[i]} in place of {ids[i]} at step {i + 1}"
            return Verdict("ids", says, i, margin, ids, found)
    if len(found) < sure - 1 or (sure and not found):
        says = f"{len(found)} ids in place of {len(ids)}"
        return Verdict("ids" if not found else "count", says, len(found), None, ids, found)
    return Verdict(OK)


def _judge_count(wanted: Expected, found: list[int]) -> Verdict:
    """The ids, and that there are as many."""
    verdict = _judge_ids(wanted, found)
    ids, _, sure = new_ids(wanted)
    if verdict.passed and sure == len(ids) and len(found) != len(ids):
        says = f"{len(found)} ids in place of {len(ids)}"
        return Verdict("count", says, min(len(found), len(ids)), None, ids, found)
    return verdict


def _judge_law(case: Case, found: list[int]) -> Verdict:
    """What holds whatever the random numbers are."""
    if not found:
        return Verdict("ids", "no ids")
    broken = broken_law(case, [i for i in found if i < case.vocab_size])
    if broken is None:
        return Verdict(OK)
    return Verdict("ids", broken[1], broken[0], None, [], found)


def _judge_between(wanted: Expected, text: bytes) -> Verdict:
    """The bytes from the first to the last tracer of the text: nothing between pieces."""
    want = _from_tracer_to_tracer(wanted.text)
    verdict = _judge_ids(wanted, ids_of(text))
    if not verdict.passed:
        return verdict
    if want in text:
        return Verdict(OK)
    has = _from_tracer_to_tracer(text)
    ids, _, _ = new_ids(wanted)
    return Verdict("bytes", f"{show(has[:200])} in place of {show(want)}", expected=ids)


def _from_tracer_to_tracer(text: bytes) -> bytes:
    places = [m.span() for m in re.finditer(rb"\[\d+\]", text)]
    return text[places[0][0] : places[-1][1]] if places else text


def _judge_text(wanted: Expected, text: bytes) -> Verdict:
    """The text up to the first fragile step, anywhere in stdout."""
    want = b"".join(wanted.parts[: wanted.sure]).strip()
    if want in text.replace(b"\0", b""):
        return Verdict(OK)
    return Verdict("bytes", f"{show(text[:400])} in place of {show(want)}")


def _judge_start(wanted: Expected, text: bytes) -> Verdict:
    """The text with what is before its first tracer, and no space in front of it."""
    want = wanted.text
    if want in text and b" " + want not in text:
        return Verdict(OK)
    return Verdict("bytes", f"{show(text[:200])} in place of {show(want)}")


def _judge_stdout(wanted: Expected, text: bytes) -> Verdict:
    want = wanted.text + b"\n"
    if text == want:
        return Verdict(OK)
    return Verdict("bytes", f"stdout is {show(text[:300])} in place of {show(want)}")


WAYS = ("ids", "count", "between", "start", "text", "stdout", "refusal", "survives", "law")
