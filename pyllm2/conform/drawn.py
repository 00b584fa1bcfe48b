"""Cases with everything at once: the bundled stories, and random ones until the budget ends."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from pyllm2.conform import bundled
from pyllm2.conform.case import Case, Text
from pyllm2.conform.maker import Maker, NoCaseError, letters
from pyllm2.conform.result import FAILURES, NOT_TESTED, PASSES, REFUSED, Result, of_finding
from pyllm2.formats.llama2c import FIELDS

NAMES = ("stories", "drawn")
SAYS = {
    "stories": "the bundled model tells its stories, with and without a prompt",
    "drawn": "random shapes, prompts and flags, until the budget ends",
}
CAUSE = "something that only shows in a combination: see the smallest case"
PROMPTS = (None, b"Once upon a time", "The café, 3 o'clock".encode(), b"Lily  said")
IN_STORIES = (
    "grouped-heads multi-query prompt merges spaces byte-pieces epsilon large-scores steps "
    "bos-stops rope-tables later-space first-space joined coins temperature top-p"
).split()
MOST = 1500  # drawn cases
SPARE = 0.05  # of the budget: for the start of the command and its report
_TEXTS = letters(b"abcd", (b"ab", -8.0), (b"bc", -4.0), (b"cd", -6.0), (b"abc", -2.0), (b" a", -3))


def check(session: Any, name: str) -> Result:
    """All cases of "stories" or "drawn", the first failure shrunk."""
    passed = {r.name for r in session.results if r.status == PASSES}
    broken = [r.name for r in session.results if r.status in (*FAILURES, REFUSED)]
    ladder = ("smoke", "feed-forward", "rope", "layers", "heads")
    if not session.options.only and not passed.issuperset(ladder):
        first = next(n for n in ladder if n not in passed)
        return Result(name, NOT_TESTED, f"needs {first}")
    if name == "stories":
        return _stories(session, broken)
    before, spare = session.runs, SPARE * session.options.budget
    for case in _draws(session, passed):
        if session.left < spare + session.seconds_per_run or session.runs - before >= MOST:
            break
        try:
            case, _ = session.maker.draw(case, case.weights, 1)
        except NoCaseError:
            continue
        wanted = session.wanted(case)
        outcome, verdict = session.run(case, wanted)
        if not verdict.passed:
            found = session.smallest(name, case, wanted, outcome, verdict)
            return of_finding(found, session.runs - before)
    if session.runs == before:
        return Result(name, NOT_TESTED, "no time is left: see --budget")
    return Result(name, PASSES, runs=session.runs - before)


def _stories(session: Any, broken: list[str]) -> Result:
    for name in broken:
        if name in IN_STORIES and not session.is_dialect(name):
            return Result("stories", NOT_TESTED, f"needs {name}")
    if session.options.vocab_size is not None:
        return Result("stories", NOT_TESTED, "its vocabulary has another size")
    before = session.runs
    for case in story_cases(session.maker, slow=session.seconds_per_run > 0.2):
        if session.left < 0 and session.runs > before:
            break
        wanted = session.wanted(case)
        outcome, verdict = session.run(case, wanted)
        if verdict.kind == "hangs":  # or slow: a million weights, after models of some hundred
            return Result("stories", NOT_TESTED, f"{verdict.says}: see --timeout")
        if not verdict.passed:
            found = session.smallest("stories", case, wanted, outcome, verdict)
            return of_finding(found, session.runs - before)
    return Result("stories", PASSES, runs=session.runs - before)


def story_cases(maker: Maker, slow: bool) -> Iterator[Case]:
    """Greedy and sampled continuations of the bundled model."""
    texts = tuple(Text(*row) for row in bundled.pieces())
    config, steps = bundled.arrays()[0], 12 if slow else 48
    sizes = {name: getattr(config, name) for name in FIELDS}
    for i, prompt in enumerate(PROMPTS):
        if prompt is not None and "prompt" not in maker.has:
            continue
        case = Case(**sizes, texts=texts, prompt=prompt, steps=steps, style="stories", judge="text")
        if "temperature" in maker.has:
            yield case.but(temperature=0.0)
        if {"temperature", "topp", "seed"} <= maker.has:
            yield case.but(temperature=0.9, topp=0.9, seed=11 + i)


def _draws(session: Any, passed: set[str]) -> Iterator[Case]:
    """Random cases inside what has passed."""
    rng = random.Random(20230723)
    has = session.maker.has
    number = 0
    while True:
        number += 1
        changes: dict[str, Any] = {"weights": 100_000 + 50 * number}
        changes["n_layers"] = rng.choice((1, 1, 2, 3, 4))
        NKV = rng.choice((1, 2, 3))
        group = rng.choice((1, 2, 4)) if {"grouped-heads", "multi-query"} <= passed else 1
        changes |= {"n_heads": NKV * group, "n_kv_heads": NKV}
        even = rng.choice((2, 4, 6, 8, 10)) if "vector-tails" in passed else 8
        changes["dim"] = NKV * group * even
        changes["hidden_dim"] = rng.randint(1, 40) if "vector-tails" in passed else 16
        if "own-classifier" in passed:
            changes["shared"] = rng.random() < 0.5
        if "small-files" in passed:
            changes["vocab_size"] = rng.choice((32, 50, 600, 601))
        changes["steps"] = rng.randint(2, 24)
        changes["seq_len"] = changes["steps"] + rng.randint(0, 20)
        if "prompt" in has and {"merges", "merge-ties", "spaces"} <= passed:
            prompt = "".join(rng.choice("abcd ") for _ in range(rng.randint(0, 8)))
            if prompt and rng.random() < 0.5:
                changes |= {"prompt": prompt.encode(), "texts": _TEXTS, "vocab_size": 601}
                changes["seq_len"] += 10
                changes["steps"] += 10
        if {"coins", "temperature"} <= passed and rng.random() < 0.5:
            changes["temperature"] = rng.choice((0.5, 0.8, 1.0, 1.7))
            changes["topp"] = rng.choice((1.0, 0.9, 0.5)) if "top-p" in passed else 1.0
            if "topp" not in has:
                changes["topp"] = session.maker.topp_default
            changes["seed"] = rng.randint(1, 2**31 - 1)
            changes["steps"] = min(changes["steps"], 8 + len(changes.get("prompt", b"")))
        yield session.maker.base(**changes)
