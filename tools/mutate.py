"""Plant bugs, one at a time, and see which ones the tests catch.

    python tools/mutate.py                       every bug; property tests only
    python tools/mutate.py --golden              what they miss, may the golden tests catch?
    python tools/mutate.py --area c              one area (may be given again)
    python tools/mutate.py --only epsilon        bugs with this in their name (likewise)
    python tools/mutate.py --list                what there is to plant

A bug is data: `tools/mutants/AREA.toml` gives a file, a text in it, what to put there instead and
a name for what is then wrong. A new area is a new file; the fields are those of `Area` and
`Mutant` below. Bugs change behaviour: what no caller can observe does not belong there.

Nothing here touches the checkout. Each worker has a copy of it in a temporary folder, and the
tests run in that copy with golden files out of sight. A bug counts as

    killed      a test fails, the tests crash, or they take far longer than they should
    survived    the tests pass: a property is missing
    invalid     the changed file cannot be imported or compiled: the bug says nothing

Exit code 0 if 95 % are killed and none is invalid, 1 if not, 2 if the tests fail unchanged.
"""

from __future__ import annotations

import argparse
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
MUTANTS = REPOSITORY / "tools" / "mutants"
COPIED = ("pyllm2", "csrc", "tests", "tools", "pyproject.toml", "README.md")
NOT_COPIED = shutil.ignore_patterns("__pycache__", ".*", "*.so")

WANTED = 0.95  # share that must be killed
MEMORY_KIB = 8 * 2**20  # address space of a test run: a bug may be an endless list
SECONDS, TIMES = 60, 5  # a run may take a minute, and five times what it takes unchanged, more

# Loaded by pytest in the copy. Shrinking a counterexample is for people; the same examples are
# tried without it.
PLUGIN = """
from pathlib import Path
import hypothesis
import pyllm2

def pytest_configure(config):
    assert Path(pyllm2.__file__).is_relative_to(Path(__file__).parent), pyllm2.__file__
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("mutate", hypothesis.settings(), phases=phases)
    hypothesis.settings.load_profile("mutate")
"""


@dataclass(frozen=True)
class Mutant:
    """A bug: in `file`, which has `old` `count` times, put `new` for the `nth` of them, or all."""

    area: str
    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]  # what to run, in this order, until something fails
    golden: tuple[str, ...]  # the same, with golden files
    smoke: str  # Python that must still run: the file can be imported, or compiled
    select: str = ""  # of those tests, the ones that match this, as for `pytest -k`
    count: int = 1
    nth: int | None = None

    def apply(self, text: str) -> str:
        """The file's text with the bug in it; ValueError if the file is no longer as expected."""
        pieces = text.split(self.old)
        found = len(pieces) - 1
        if found != self.count:
            where = f"{self.area}: {self.name}: {self.file}"
            raise ValueError(f"{where} has its old text {found} times, expected {self.count}")
        if self.nth is None:
            return self.new.join(pieces)
        before, after = pieces[: self.nth], pieces[self.nth :]
        return self.old.join(before) + self.new + self.old.join(after)


@dataclass(frozen=True)
class Area:
    """`tools/mutants/NAME.toml`: fields that hold for all its bugs unless one has its own."""

    name: str
    about: str
    mutants: tuple[Mutant, ...]


@dataclass(frozen=True)
class Verdict:
    """What became of a bug. `by` is the test that failed, or why the bug is invalid."""

    mutant: Mutant
    state: str  # killed, golden (killed by golden tests alone), survived, invalid
    by: str = ""
    how: str = ""  # failed, crashed, timed out
    seconds: float = 0.0


def read_area(path: Path) -> Area:
    """One file of bugs."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    shared = ("file", "tests", "golden", "smoke", "select")
    common = {key: table[key] for key in shared if key in table}
    mutants = []
    for row in table["mutant"]:
        fields = {"golden": [], "smoke": "", **common, **row}
        for key in ("tests", "golden"):
            fields[key] = tuple(fields[key])
        mutants.append(Mutant(area=path.stem, **fields))
    return Area(path.stem, table["about"], tuple(mutants))


def read_areas(folder: Path = MUTANTS) -> list[Area]:
    """Every file of bugs, by name."""
    return [read_area(path) for path in sorted(folder.glob("*.toml"))]


# ---- running --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One call of pytest; golden: the folder of golden files, None to hide them."""

    tests: tuple[str, ...]
    select: str
    golden: Path | None = None


def runs_of(mutant: Mutant, golden: Path | None) -> dict[str, Run]:
    """What may kill a bug, in this order, by the state that it is in then."""
    runs = {"killed": Run(mutant.tests, mutant.select)}
    if golden is not None and mutant.golden:
        runs["golden"] = Run(mutant.golden, mutant.select, golden)
    return runs


class Workspace:
    """A copy of the repository, with nothing planted or one bug, and commands that run in it."""

    def __init__(self, root: Path, source: Path, profile: str) -> None:
        self.root, self.profile = root, profile
        root.mkdir()
        for name in COPIED:
            if (source / name).is_dir():
                shutil.copytree(source / name, root / name, ignore=NOT_COPIED)
            else:
                shutil.copy(source / name, root / name)
        (root / "mutate_plugin.py").write_text(PLUGIN)

    def environment(self, golden: Path | None) -> dict[str, str]:
        """The copy is what is imported; nothing is remembered but compiled C, by its sources."""
        ours = {
            "PYTHONPATH": str(self.root),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",
            "HYPOTHESIS_PROFILE": self.profile,
            "HYPOTHESIS_STORAGE_DIRECTORY": str(self.root / ".hypothesis"),
            "PYLLM2_CACHE": str(self.root.parent / "cache"),
            "PYLLM2_SHARED": str(golden or self.root / "no-golden-files"),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        unwanted = ("PYLLM2_REQUIRE_SHARED", "PYLLM2_TEST_BACKENDS", "PYTEST_ADDOPTS")
        return {k: v for k, v in os.environ.items() if k not in unwanted} | ours

    def python(
        self, *arguments: str, golden: Path | None = None, seconds: float = 600
    ) -> tuple[int | None, str]:
        """Exit code (None: it took too long) and what was printed."""
        limited = f'ulimit -v {MEMORY_KIB}; exec "$@"'
        process = subprocess.Popen(
            ["sh", "-c", limited, "sh", sys.executable, *arguments],
            cwd=self.root,
            env=self.environment(golden),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that what a test started ends with it
        )
        try:
            output, _ = process.communicate(timeout=seconds)
            return process.returncode, output
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return None, ""

    def pytest(self, run: Run, seconds: float = 3600) -> tuple[int | None, str]:
        options = ["-x", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", "mutate_plugin"]
        options += ["-k", run.select] if run.select else []
        return self.python("-m", "pytest", *options, *run.tests, golden=run.golden, seconds=seconds)

    def smoke(self, mutant: Mutant) -> str:
        """Why the changed file cannot be imported or compiled; empty if it can."""
        code = f"import pyllm2; assert pyllm2.__file__.startswith({str(self.root)!r})\n"
        if mutant.file.startswith("pyllm2/"):
            module = mutant.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            code += f"import {module}\n"
        status, output = self.python("-c", code + mutant.smoke)
        return "" if status == 0 else (output.strip().splitlines() or ["no reason given"])[-1]


def judge(
    space: Workspace, mutant: Mutant, usual: dict[Run, float], golden: Path | None
) -> Verdict:
    """Plant a bug, run its tests, take it out again. `usual`: seconds that they take unchanged."""
    file = space.root / mutant.file
    original = file.read_text(encoding="utf-8")
    began = time.monotonic()

    def verdict(state: str, by: str = "", how: str = "") -> Verdict:
        return Verdict(mutant, state, by, how, time.monotonic() - began)

    file.write_text(mutant.apply(original), encoding="utf-8")
    try:
        reason = space.smoke(mutant)
        if reason:
            return verdict("invalid", reason)
        for state, run in runs_of(mutant, golden).items():
            status, output = space.pytest(run, SECONDS + TIMES * usual[run])
            if status is None:
                return verdict(state, how="timed out")
            if status < 0 or status > 128:  # a signal, or what sh makes of one
                return verdict(state, how="crashed")
            if status == 1:
                failed = re.search(r"^(?:FAILED|ERROR) (.*)$", output, re.MULTILINE)
                return verdict(state, failed[1] if failed else "", "failed")
            if status != 0:  # pytest itself: nothing collected, or a file of tests not importable
                return verdict("invalid", f"pytest exits {status}: {output.strip()[-300:]}")
        return verdict("survived")
    finally:
        file.write_text(original, encoding="utf-8")


def run_all(
    mutants: Sequence[Mutant], jobs: int, profile: str, golden: Path | None
) -> list[Verdict] | None:
    """A verdict a bug, in order; None if the tests fail with nothing planted."""
    with tempfile.TemporaryDirectory(prefix="pyllm2-mutate-") as folder:
        pristine = Workspace(Path(folder) / "pristine", REPOSITORY, profile)
        spaces: queue.Queue[Workspace] = queue.Queue()
        for n in range(jobs):
            spaces.put(Workspace(Path(folder) / f"copy{n}", pristine.root, profile))

        def in_a_space(work: Callable[[Workspace], Any]) -> Any:
            space = spaces.get()
            try:
                return work(space)
            finally:
                spaces.put(space)

        def unchanged(run: Run) -> tuple[float, int | None, str]:
            began = time.monotonic()
            status, output = in_a_space(lambda space: space.pytest(run))
            return time.monotonic() - began, status, output

        def one(mutant: Mutant) -> Verdict:
            verdict: Verdict = in_a_space(lambda space: judge(space, mutant, usual, golden))
            note = verdict.how if verdict.how != "failed" else ""
            say(f"{verdict.state:9}{verdict.seconds:5.0f} s  {mutant.area}: {mutant.name}", note)
            return verdict

        runs = list(dict.fromkeys(r for m in mutants for r in runs_of(m, golden).values()))
        usual: dict[Run, float] = {}
        with ThreadPoolExecutor(jobs) as pool:
            for run, (seconds, status, output) in zip(runs, pool.map(unchanged, runs), strict=True):
                if status != 0:
                    say(f"these tests fail with nothing planted: {' '.join(run.tests)}\n{output}")
                    return None
                say(f"unchanged{seconds:5.0f} s  {' '.join(run.tests)}")
                usual[run] = seconds
            return list(pool.map(one, mutants))


def say(*words: str) -> None:
    print(*(word for word in words if word), file=sys.stderr, flush=True)


# ---- reporting ------------------------------------------------------------------------------


def share(killed: int, total: int) -> str:
    return f"{100 * killed / total:.1f} %" if total else "-"


def report(verdicts: Sequence[Verdict], golden: bool, verbose: bool) -> str:
    """A table by area and a list of what was not killed."""
    from tabulate import tabulate

    headers = ["area", "bugs", "killed", "share"]
    headers += ["with golden", "share"] if golden else []
    headers += ["survived", "invalid", "timed out", "crashed"]
    areas = list(dict.fromkeys(v.mutant.area for v in verdicts))
    rows = []
    for area in [*areas, "all"]:
        ours = [v for v in verdicts if area in (v.mutant.area, "all")]
        n = Counter(v.state for v in ours)
        how = Counter(v.how for v in ours)
        row: list[object] = [area, len(ours), n["killed"], share(n["killed"], len(ours))]
        if golden:
            both = n["killed"] + n["golden"]
            row += [both, share(both, len(ours))]
        rows.append([*row, n["survived"], n["invalid"], how["timed out"], how["crashed"]])
    lines = [tabulate(rows, headers, tablefmt="github", disable_numparse=True)]
    for state, title in (
        ("survived", "Survivors"),
        ("golden", "Killed by golden tests only"),
        ("invalid", "Invalid"),
        *([("killed", "Killed")] if verbose else []),
    ):
        found = [v for v in verdicts if v.state == state]
        lines += ["", f"{title}: {len(found)}"] if found else []
        lines += [
            f"- {v.mutant.area}: {v.mutant.name}" + (f"  ({v.by or v.how})" if v.by + v.how else "")
            for v in found
        ]
    return "\n".join(lines)


def shared_folder() -> Path:
    """Where the golden files are, as tests/conftest.py looks for them."""
    return Path(os.environ.get("PYLLM2_SHARED") or REPOSITORY.parent / "shared").resolve()


def main(argv: Sequence[str] | None = None) -> int:
    areas = read_areas()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [area.name for area in areas]
    parser.add_argument("--area", action="append", choices=names, help="this area only")
    parser.add_argument(
        "--only", metavar="NAME", action="append", help="bugs with this in their name"
    )
    parser.add_argument("--list", action="store_true", help="name the bugs and plant none")
    parser.add_argument("--jobs", type=int, default=2, help="bugs at a time (default 2)")
    parser.add_argument("--profile", choices=("quick", "ci"), default="ci", help="default ci")
    parser.add_argument(
        "--golden", action=argparse.BooleanOptionalAction, help="then golden tests (default: no)"
    )
    parser.add_argument("--verbose", action="store_true", help="name the test that killed each")
    options = parser.parse_args(argv)

    mutants = [m for area in areas if area.name in (options.area or names) for m in area.mutants]
    mutants = [m for m in mutants if any(part in m.name for part in options.only or [""])]
    if options.list:
        for m in mutants:
            print(f"{m.area}: {m.name}  ({m.file})")
        return 0
    if not mutants:
        parser.error(f"no bug has {' or '.join(options.only)} in its name")
    if options.golden and not (shared_folder() / "golden").is_dir():
        parser.error(f"no golden files in {shared_folder()}")

    began = time.monotonic()
    verdicts = run_all(
        mutants, options.jobs, options.profile, shared_folder() if options.golden else None
    )
    if verdicts is None:
        return 2
    print(report(verdicts, options.golden, options.verbose))
    n = Counter(v.state for v in verdicts)
    killed = n["killed"] + n["golden"]
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    print(f"\nkilled {killed} of {len(verdicts)} ({share(killed, len(verdicts))}), "
          f"profile {options.profile}, {minutes} min {seconds} s")  # fmt: skip
    return 0 if killed >= WANTED * len(verdicts) and not n["invalid"] else 1


if __name__ == "__main__":
    sys.exit(main())
