"""Plant bugs, one at a time, and see which ones the tests catch.

    python tools/mutate.py                          every area
    python tools/mutate.py --area numba --only rope
    python tools/mutate.py --list                   what there is to plant
    python tools/mutate.py --share 1/4 --json OUT   a part; verdicts are appended to OUT
    python tools/mutate.py --report OUT...          one table from the parts

Most bugs come from `operators.py`, sampled function by function; where no operator reaches,
people wrote some in `tools/mutants/*.toml`. `tools/mutants/equivalent.toml` lists, each with its
reason, the bugs that no caller can observe: they are counted, and not run.

A bug is tried in a fork of this process, which has NumPy, hypothesis, pytest and Numba loaded, on
a copy of the repository. First come the properties of the ops that the changed function serves,
found by its name in the tables of `pyllm2.testing`; then the tests of its area, which `AREAS`
finds by pattern. Golden files are out of sight. A bug counts as

    killed      a test fails, the process crashes, or it takes far longer than it should
    survived    the tests pass: a property is missing
    equivalent  listed as such
    invalid     the changed file cannot be imported or compiled: the bug says nothing

A test kills only if it passes with nothing planted; one that does not is left out.

Exit code 0 if 95 % are killed (of those that are neither equivalent nor invalid), 1 if not, 2 if
a test had to be left out.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import re
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import operators
from mutant import Mutant, tokens_of
from mutate_areas import AREAS, Area
from mutate_run import NO_END, Stage, Workspace, free_folder, op_tables

REPOSITORY = Path(__file__).resolve().parents[1]
WRITTEN = REPOSITORY / "tools" / "mutants"
WANTED = 0.95  # share that must be killed


# ---- what to plant --------------------------------------------------------------------------


@dataclass(frozen=True)
class Bug:
    """A mutant with a name and the area that it belongs to."""

    name: str
    area: Area
    mutant: Mutant
    reason: str = ""  # why no caller can observe it, if so


@functools.cache
def files_of(area: Area) -> list[str]:
    """The files of an area, without those of the areas before it."""

    def found(patterns: str) -> set[str]:
        paths = (path for p in patterns.split() for path in REPOSITORY.glob(p))
        return {path.relative_to(REPOSITORY).as_posix() for path in paths}

    earlier = AREAS[: AREAS.index(area)]
    taken = set[str]().union(*(files_of(other) for other in earlier))
    return sorted(found(area.files) - found(area.but) - taken)


@functools.cache
def source_of(file: str) -> str:
    return (REPOSITORY / file).read_text(encoding="utf-8")


def short(file: str) -> str:
    return file.removeprefix("pyllm2/")


def long(file: str) -> str:
    return file if file.startswith("csrc/") else f"pyllm2/{file}"


def sampled(area: Area, seed: int) -> list[Bug]:
    """What the operators find in an area's files, a few per function."""
    found = []
    for file in files_of(area):
        mutants = operators.mutants(file, source_of(file))
        found += operators.sample(mutants, area.per_function, seed)
    kept = sorted(found, key=lambda m: operators.rank(m, seed))[: area.most]
    return [Bug(short(m.name), area, m) for m in found if m in kept]


def written() -> tuple[list[Bug], list[str]]:
    """The bugs of tools/mutants/*.toml, and why others no longer fit their files."""
    areas = {file: area for area in AREAS for file in files_of(area)}
    found, stale = [], []
    for path in sorted(WRITTEN.glob("*.toml")):
        for row in tomllib.loads(path.read_text(encoding="utf-8")).get("mutant", []):
            file, _, function = row["function"].partition(":")
            file, name = long(file), f"{row['function']}: {row['name']}"
            try:
                m = operators.planted(file, source_of(file), function, row["old"], row["new"])
                found.append(Bug(name, areas[file], m))
            except (OSError, KeyError, ValueError) as error:
                stale.append(f"{path.name}: {name}: {error}")
    return found, stale


def equivalents() -> dict[tuple[str, str, tuple[str, ...], tuple[str, ...]], str]:
    """By file, function and the lines before and after, as tokens: why nobody can tell."""
    found = {}
    text = (WRITTEN / "equivalent.toml").read_text(encoding="utf-8")
    for row in tomllib.loads(text).get("equivalent", []):
        file, _, function = row["function"].partition(":")
        found[_key(long(file), function, row["line"], row["becomes"])] = row["reason"]
    return found


def _key(file: str, function: str, before: str, after: str) -> Any:
    lines = (tuple(t.text for t in tokens_of(file, line)) for line in (before, after))
    return (file, function, *lines)


def bugs(seed: int) -> list[Bug]:
    """Everything there is to plant, area by area, those that people wrote first."""
    reasons = equivalents()
    by_hand, _ = written()
    found = []
    for area in AREAS:
        for bug in [*(b for b in by_hand if b.area is area), *sampled(area, seed)]:
            m = bug.mutant
            key = _key(m.file, m.function, *m.lines(source_of(m.file)))
            found.append(Bug(bug.name, area, m, reasons.get(key, "")))
    return found


# ---- what to run ----------------------------------------------------------------------------


def package_of(file: str) -> str:
    """Whose ops and tests a file belongs to: "llama2", "gpt2" or "training"."""
    if "adamw" in file:
        return "training"
    return next((p for p in ("llama2", "gpt2", "training") if p in file), "llama2")


def model_of(package: str) -> str:
    """The table of `pyllm2.testing` with a package's ops."""
    return "adamw" if package == "training" else package


def names_of(bug: Bug) -> list[str]:
    """What a bug's function is called, and what it is in; or the constant that changes."""
    if bug.mutant.function:
        return bug.mutant.function.split(".")[::-1]
    before, _ = bug.mutant.lines(source_of(bug.mutant.file))
    return re.findall(r"\w+", before)[:1]


def ops_served(bug: Bug, tables: dict[str, list[str]]) -> list[str]:
    """The ops whose result a function may change: itself, or those that reach it by name."""
    package = package_of(bug.mutant.file)
    names = tables[model_of(package)]
    functions = _functions(bug.area, package)

    def op_of(function: str) -> str | None:
        last = function.rpartition(".")[2]
        return next((n for n in names if last == n or last.endswith(f"_{n}")), None)

    own = op_of(bug.mutant.function)
    if own is not None:
        return [own]
    reached, found = {names_of(bug)[0]}, list[str]()
    for _ in range(4):
        callers = {f for f, words in functions.items() if words & reached} - reached
        found += [op for f in sorted(callers) if (op := op_of(f)) is not None]
        reached |= callers
    return list(dict.fromkeys(found))[:6]


@functools.cache
def _functions(area: Area, package: str) -> dict[str, frozenset[str]]:
    """The functions of an area's files, and the words in each."""
    found = {}
    for file in files_of(area):
        if package_of(file) != package:
            continue
        for name in {m.function for m in operators.mutants(file, source_of(file))} - {""}:
            for start, end in operators.spans_of(file, source_of(file), name):
                words = re.findall(r"\w+", source_of(file)[start:end])
                found[name.rpartition(".")[2]] = frozenset(words)
    return found


def test_files(bug: Bug, root: Path) -> list[str]:
    """The tests of a bug's area, those that are closest to its file first."""
    file = Path(bug.mutant.file)
    patterns = bug.area.tests.format(package=package_of(bug.mutant.file), stem=file.stem)
    found = [path for p in patterns.split() for path in sorted(root.glob(p))]
    names = dict.fromkeys(path.relative_to(root).as_posix() for path in found)
    unseen = ["golden"]
    unseen += [] if "numba" in bug.area.backends else ["numba", "tests/fast/"]
    unseen += [] if "c" in re.split("[,-]", bug.area.backends) else ["tests/csrc/", "test_c."]
    return [name for name in names if not any(part in name for part in unseen)]


# ---- running --------------------------------------------------------------------------------


def stages_of(bug: Bug, tables: dict[str, list[str]], root: Path = REPOSITORY) -> list[Stage]:
    """What may kill a bug, in this order."""
    area, package = bug.area, package_of(bug.mutant.file)
    names = tuple(ops_served(bug, tables)) if area.backend else ()
    names_around = [name for name in names_of(bug) if not name.startswith("__")]
    words = tuple(name.strip("_") for name in (*names_around, Path(bug.mutant.file).stem))
    tests = Stage(
        "pytest",
        tuple(test_files(bug, root)),
        package,
        model_of(package),
        area.backends,
        area.seconds,
        words=words,
        changed=bug.mutant.file,
    )
    first = replace(tests, seconds=30, interpreted=area.interpreted)
    if names:
        return [replace(first, kind="property", what=names, backend=area.backend), tests]
    return [first, tests] if area.interpreted else [tests]


def judge(space: Workspace, bug: Bug, tables: dict[str, list[str]]) -> dict[str, Any]:
    """Plant a bug, run its stages until one kills it, take it out again."""
    began = time.monotonic()
    state, by = ("equivalent", bug.reason) if bug.reason else ("survived", "")
    for stage in [] if bug.reason else stages_of(bug, tables, space.root):
        while True:
            failing = _failing[stage.interpreted]
            stage = replace(stage, without=tuple(failing))
            with space.planted(bug.mutant):
                state, by = space.run(stage)
            if by.endswith(NO_END) and not _ends_soon(space, stage, by):
                with space.planted(bug.mutant):
                    state, by = space.run(replace(stage, seconds=4 * stage.seconds))
            if state != "killed" or _holds(space, stage, by):
                break
            state = "survived"
            failing.append(_test(by))
            if "::" not in by:
                break
        if state != "survived":
            break
    by += " (interpreted)" if state == "killed" and stage.interpreted else ""
    before, after = bug.mutant.lines(source_of(bug.mutant.file))
    seconds = round(time.monotonic() - began, 2)
    found = {"name": bug.name, "area": bug.area.name, "state": state, "by": by}
    return {**found, "before": before, "after": after, "seconds": seconds}


# Tests that fail with nothing planted say nothing. Interpreted, that is no wonder.
_failing: dict[bool, list[str]] = {False: [], True: []}
_holding = set[Stage]()


def _test(by: str) -> str:
    """A verdict's test, without how it ended."""
    return re.sub(r" \([\w ]+\)$", "", by)


def _holds(space: Workspace, stage: Stage, by: str) -> bool:
    """Whether what killed a bug passes with nothing planted; tried once for each."""
    if stage.kind == "pytest" and "::" in by:
        stage = replace(stage, what=(_test(by),), words=(), without=(), changed="")
    if stage not in _holding and space.run(stage)[0] == "survived":
        _holding.add(stage)
    return stage in _holding


def _ends_soon(space: Workspace, stage: Stage, by: str) -> bool:
    """Whether a test that did not end takes, with nothing planted, a quarter of its time at most.

    If not, it may be the machine that is slow, and the verdict needs more patience.
    """
    return _holds(space, replace(stage, seconds=max(1, stage.seconds // 4)), by)


def run_all(chosen: Sequence[Bug]) -> Iterator[dict[str, Any]]:
    """A verdict per bug, in order."""
    for module in ("hypothesis.extra.numpy", "pytest", "numba"):  # each fork has them loaded
        importlib.import_module(module)
    tables = op_tables()
    with free_folder() as folder:
        space = Workspace(folder / "copy")
        for bug in chosen:
            verdict = judge(space, bug, tables)
            print(
                f"{verdict['state']:10} {verdict['seconds']:6.2f} s  {bug.area.name}: {bug.name}"
                f"  ({verdict['by']})",
                file=sys.stderr,
                flush=True,
            )
            yield verdict


# ---- reporting ------------------------------------------------------------------------------

STATES = ("killed", "survived", "equivalent", "invalid")


def report(verdicts: Iterable[dict[str, Any]]) -> str:
    """A table by area, and a list of what was not killed. The last verdict on a bug counts."""
    from tabulate import tabulate

    last = {v["name"]: v for v in verdicts}.values()
    rows = []
    for area in [*(a.name for a in AREAS), "all"]:
        ours = [v for v in last if area in (v["area"], "all")]
        n = Counter(v["state"] for v in ours)
        if ours:
            judged = n["killed"] + n["survived"]
            seconds = sum(v["seconds"] for v in ours)
            counts = [n[state] for state in STATES]
            percent = f"{100 * n['killed'] / judged:.1f} %" if judged else "-"
            rows.append([area, len(ours), *counts, percent, f"{seconds / len(ours):.2f}"])
    headers = ["area", "planted", *STATES, "share", "seconds each"]
    lines = [tabulate(rows, headers, tablefmt="github", disable_numparse=True)]
    for state in STATES[1:]:
        found = [v for v in last if v["state"] == state]
        lines += ["", f"{state.capitalize()}: {len(found)}"] if found else []
        for v in found:
            lines.append(f"- {v['name']}" + (f"  ({v['by']})" if v["by"] else ""))
            lines += [f"      {v['before']}", f"   -> {v['after']}"]
    return "\n".join(lines)


def passed(verdicts: Iterable[dict[str, Any]]) -> int:
    n = Counter(v["state"] for v in {v["name"]: v for v in verdicts}.values())
    return 0 if n["killed"] >= WANTED * (n["killed"] + n["survived"]) else 1


def part_of(chosen: Sequence[Bug], share: str) -> list[Bug]:
    """The i-th of n parts, "i/n": together they are everything, each bug once."""
    i, n = (int(number) for number in share.split("/"))
    if not 1 <= i <= n:
        raise ValueError(f"share {share}: expected i/n with 1 <= i <= n")
    return list(chosen[i - 1 :: n])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [area.name for area in AREAS]
    parser.add_argument("--area", action="append", choices=names, help="this area only")
    parser.add_argument(
        "--only", metavar="TEXT", action="append", help="bugs with this in the name"
    )
    parser.add_argument("--share", metavar="I/N", default="1/1", help="the I-th of N parts")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default 0)")
    parser.add_argument("--list", action="store_true", help="name the bugs and plant none")
    parser.add_argument("--json", metavar="OUT", help="append the verdicts to this file")
    parser.add_argument(
        "--continue", dest="go_on", action="store_true", help="leave out what OUT has a verdict on"
    )
    parser.add_argument("--report", metavar="FILE", nargs="+", help="add up verdicts; plant none")
    options = parser.parse_args(argv)

    if options.report:
        lines = [line for file in options.report for line in Path(file).read_text().splitlines()]
        verdicts = [json.loads(line) for line in lines]
        print(report(verdicts))
        return passed(verdicts)

    chosen = [b for b in bugs(options.seed) if b.area.name in (options.area or names)]
    chosen = [b for b in chosen if any(part in b.name for part in options.only or [""])]
    chosen = part_of(chosen, options.share)
    if options.go_on and os.path.exists(options.json):
        judged = {json.loads(line)["name"] for line in Path(options.json).read_text().splitlines()}
        chosen = [b for b in chosen if b.name not in judged]
    if not chosen:
        parser.error("no such bug")
    if options.list:
        for bug in chosen:
            before, after = bug.mutant.lines(source_of(bug.mutant.file))
            print(f"{bug.area.name}: {bug.name}\n      {before}\n   -> {after}")
        return 0

    verdicts = []
    print(*(f"stale: {why}" for why in written()[1]), sep="\n", file=sys.stderr)
    for verdict in run_all(chosen):
        verdicts.append(verdict)
        if options.json:
            with open(options.json, "a") as out:
                out.write(json.dumps(verdict) + "\n")
    print(report(verdicts))
    if _failing[False]:
        print("\nLeft out, because they fail with nothing planted:")
        print("\n".join(f"- {test}" for test in _failing[False]))
        return 2
    return passed(verdicts)


if __name__ == "__main__":
    sys.exit(main())
