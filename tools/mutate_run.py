"""A copy of the repository with one bug in it, and what runs there in a forked child."""

from __future__ import annotations

import compileall
import contextlib
import fcntl
import functools
import inspect
import itertools
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutant import Mutant
from mutate_interpret import interpret

REPOSITORY = Path(__file__).resolve().parents[1]
COPIED = ("pyllm2", "csrc", "tests", "tools", "pyproject.toml", "README.md")
NOT_COPIED = shutil.ignore_patterns("__pycache__", ".*", "*.so", "mutants")

MEMORY = 8 * 2**30  # bytes of address space: a bug may be an endless list
WALL_SECONDS = 900  # for what waits without working
NO_END = " (no end)"  # how a verdict ends if a test took too long


@dataclass(frozen=True)
class Stage:
    """What a forked child does: properties of ops, or tests.

    kind: "property" or "pytest"   what: op names, or test files
    package, model: what `backends.ops` and `check_op` call the ops
    interpreted: without Numba's compiler
    seconds: of processor time that one test may take, and after which no other begins
    words: tests that have one of these in them come first
    without: tests to leave out
    changed: the file with the bug
    """

    kind: str
    what: tuple[str, ...]
    package: str
    model: str
    backend: str
    seconds: int
    interpreted: bool = False
    words: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    changed: str = ""


@contextlib.contextmanager
def free_folder() -> Iterator[Path]:
    """A folder that no other process uses meanwhile, with what Numba has compiled there before."""
    for n in itertools.count():
        folder = Path(tempfile.gettempdir()) / f"pyllm2-mutate-{os.getuid()}" / str(n)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "lock", "w") as lock, contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield folder
            return


class Workspace:
    """A copy of the repository in which one bug at a time is planted."""

    def __init__(self, root: Path) -> None:
        self.root = root
        shutil.rmtree(root, ignore_errors=True)
        for name in COPIED:
            source = REPOSITORY / name
            if source.is_dir():
                shutil.copytree(source, root / name, ignore=NOT_COPIED)
            else:
                shutil.copy2(source, root / name)
        compileall.compile_dir(root, quiet=2)  # the file with the bug is newer: compiled anew

    @contextlib.contextmanager
    def planted(self, mutant: Mutant) -> Iterator[None]:
        """The copy with the bug in it, inside a `with`."""
        file = self.root / mutant.file
        text, stat = file.read_text(encoding="utf-8"), file.stat()
        file.write_text(mutant.apply(text), encoding="utf-8")
        try:
            yield
        finally:
            file.write_text(text, encoding="utf-8")
            os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # what is cached fits again

    def environment(self, stage: Stage) -> dict[str, str]:
        """The copy is what is imported; no golden files; few threads."""
        return {
            "PYTHONPATH": str(self.root),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # whatever else is installed here
            "HYPOTHESIS_PROFILE": "quick",
            "HYPOTHESIS_STORAGE_DIRECTORY": str(self.root / ".hypothesis"),
            "PYLLM2_CACHE": str(self.root.parent / "cache"),
            "NUMBA_CACHE_DIR": str(self.root.parent / f"numba-{self.root.name}"),
            "PYLLM2_SHARED": str(self.root / "no-golden-files"),
            "PYLLM2_TEST_BACKENDS": stage.backend,
            "OMP_NUM_THREADS": "2",
            "OPENBLAS_NUM_THREADS": "1",
        }

    def run(self, stage: Stage) -> tuple[str, str]:
        """State and what it was found by; in a forked child, which ends with all it started."""
        began, file = time.monotonic(), self.root.parent / f"verdict-{self.root.name}"
        file.write_text(json.dumps(["", ""]))
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            status = 70
            try:
                os.setsid()
                _child(self, stage, file)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        while not (done := os.waitpid(pid, os.WNOHANG))[0]:
            if time.monotonic() - began > WALL_SECONDS:
                os.killpg(pid, signal.SIGKILL)
            time.sleep(0.005)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what a test left behind
        state, by = json.loads(file.read_text())
        if not state:  # it did not come to a verdict: `by` is what it was at
            status = os.waitstatus_to_exitcode(done[1])
            how = signal.Signals(-status).name if status < 0 else f"status {status}"
            return "killed", by + (NO_END if how in ("SIGPROF", "SIGKILL") else f" ({how})")
        return state, by


def _child(space: Workspace, stage: Stage, file: Path) -> None:
    """Run a stage in this process and write [state, by] to a file."""
    os.environ.update(space.environment(stage))
    os.chdir(space.root)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    log = os.open(space.root.parent / f"log-{space.root.name}", os.O_CREAT | os.O_TRUNC | os.O_RDWR)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.dont_write_bytecode = True
    sys.path[:0] = [str(space.root)]
    import numba

    numba.config.reload_config()
    if stage.interpreted:
        interpret()

    def at(what: str) -> None:
        """The next test begins; SIGPROF ends the process if it takes too long."""
        file.write_text(json.dumps(["", what]))
        signal.setitimer(signal.ITIMER_PROF, stage.seconds)

    at("loading")
    run = _pytest if stage.kind == "pytest" else _properties
    file.write_text(json.dumps(run(stage, at)))


def no_shrinking(max_examples: int = 25) -> None:
    """The examples of profile `quick`, the same each time; the smallest one is for people."""
    import hypothesis

    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile(
        "mutate",
        hypothesis.settings(),
        phases=phases,
        derandomize=True,
        deadline=None,
        database=None,
        max_examples=max_examples,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.settings.load_profile("mutate")


def _invalid(error: BaseException | str) -> bool:
    """Whether it was Numba's or C's compiler that complained."""
    return bool(re.search(r"TypingError|LoweringError|BackendError.*failed:", repr(error)))


def _properties(stage: Stage, at: Callable[[str], None]) -> tuple[str, str]:
    no_shrinking()
    try:
        from pyllm2 import backends
        from pyllm2.testing import check_op

        ops = backends.ops(stage.backend, package=stage.package)
    except BaseException as error:
        return "invalid", f"{type(error).__name__}: {error}"[:200]
    for name in stage.what:
        at(what := f"property of {stage.package} {name}")
        try:
            check_op(name, getattr(ops, name), model=stage.model)
        except BaseException as error:
            return ("invalid" if _invalid(error) else "killed"), what
    return "survived", ""


_OTHER_PROCESSES = re.compile("subprocess|fork|played|threads|environment")


@functools.cache
def remoteness(test: str, changed: str) -> int:
    """0: a test file imports the changed file and is named like it, 1: it imports it, 2: it is
    named like it, 3: neither.

    tests/formats/test_gguf.py is named like formats/gguf_blocks.py.
    """
    subject, stem = Path(test).stem.removeprefix("test_"), Path(changed).stem
    alike = stem.startswith(subject) or subject.startswith(stem)
    package, _, module = changed.removesuffix(".py").replace("/", ".").rpartition(".")
    imported = rf"from {package}(\.{module} import| import .*\b{module}\b)"
    if re.search(imported, Path(test).read_text(encoding="utf-8")):
        return 0 if alike else 1
    return 2 if alike else 3


class _Plugin:
    """Puts the tests in order, says which one is next, and remembers the first that fails."""

    by, why, began = "", "", 0.0

    def __init__(self, stage: Stage, at: Callable[[str], None]) -> None:
        self.stage, self.at = stage, at

    def pytest_configure(self, config: Any) -> None:
        no_shrinking(10 if self.stage.interpreted else 25)

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """First the files that are about the changed one; before the others, what mentions the
        function.

        Then in the order of `what`: tests/conftest.py has sorted the slow files to the front.
        """
        files = {name: n for n, name in enumerate(self.stage.what)}

        def text(item: Any) -> str:
            return item.name + inspect.getsource(item.function)

        words = [re.compile(f"(?<![a-zA-Z]){w}(?![a-zA-Z])") for w in self.stage.words]

        def distance(item: Any) -> tuple[int, int, int]:
            file = item.nodeid.partition("::")[0]
            found = (n for n, word in enumerate(words) if word.search(text(item)))
            far, word = remoteness(file, self.stage.changed), next(found, len(words))
            return min(far, 1) if word == 0 else far, word, files.get(file, len(files))

        items[:] = [item for item in items if item.nodeid not in self.stage.without]
        if self.stage.interpreted:
            items[:] = [item for item in items if not _OTHER_PROCESSES.search(text(item))]
        items.sort(key=distance)
        self.began = sum(os.times()[:4])  # what comes before is the same for every bug

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.at(nodeid)

    def pytest_runtest_teardown(self, item: Any) -> None:
        if sum(os.times()[:4]) - self.began > self.stage.seconds:
            item.session.shouldstop = "time is up"

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.by:
            self.by, self.why = report.nodeid, report.longreprtext

    pytest_collectreport = pytest_runtest_logreport


def _pytest(stage: Stage, at: Callable[[str], None]) -> tuple[str, str]:
    import pytest

    plugin = _Plugin(stage, at)
    options = ["-x", "-q", "--tb=line", "--assert=plain", "-p", "no:cacheprovider"]
    status = pytest.main([*options, "--rootdir", os.getcwd(), *stage.what], plugins=[plugin])
    if plugin.by:
        return ("invalid" if _invalid(plugin.why) else "killed"), plugin.by
    if status not in (0, 2, 5):
        raise RuntimeError(f"pytest cannot start: status {status}")
    return "survived", ""


def op_tables() -> dict[str, list[str]]:
    """The names of the ops by model, as pyllm2.testing has them; read in a child."""
    read, write = os.pipe()
    if os.fork() == 0:
        sys.path[:0] = [str(REPOSITORY)]
        from pyllm2.testing import tables

        os.write(write, json.dumps({model: list(ops) for model, ops in tables.items()}).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        found: dict[str, list[str]] = json.load(stream)
    os.wait()
    return found
