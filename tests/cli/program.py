"""Runs the command `pyllm2`: as a process with little memory, or inside this one, for speed.

As a script it runs many in one process, so that `python -O` need be started only once: it reads
[[folder, [argument, …]], …] as JSON on stdin and writes [[exit code, stdout, stderr], …], the
texts as hexadecimal.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyllm2.cli

MEMORY_KIB = 2 * 2**20  # RLIMIT_AS: 2 GiB of address space
TIMEOUT = 60
COMMAND = [sys.executable, "-m", "pyllm2"]

Argument = str | bytes


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit code and two streams."""

    code: int
    out: bytes
    err: bytes


# What a tester's shell may have set and a user's has not.
UNSET = dict.fromkeys(("PYTHONUNBUFFERED", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONOPTIMIZE"))


def environment(changes: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """This process's environment, one thread, with changes (None takes a variable away)."""
    ours = {"OPENBLAS_NUM_THREADS": "1", "COLUMNS": "100"}
    env = {**os.environ, **UNSET, **ours, **(changes or {})}
    return {name: value for name, value in env.items() if value is not None}


def limited(argv: Sequence[Argument], redirect: str = "") -> list[Argument]:
    """pyllm2 under the memory limit; `redirect` is in the shell's words."""
    script = f'ulimit -v {MEMORY_KIB}; exec "$@" {redirect}'
    return ["sh", "-c", script, "sh", *COMMAND, *argv]


def as_process(
    argv: Sequence[Argument],
    folder: Path,
    stdin: bytes = b"",
    env: Mapping[str, str | None] | None = None,
    redirect: str = "",
) -> Outcome:
    """Run it for real, in `folder`; TimeoutExpired if it hangs."""
    done = subprocess.run(
        limited(argv, redirect),
        cwd=folder,
        input=stdin,
        capture_output=True,
        env=environment(env),
        timeout=TIMEOUT,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def start(argv: Sequence[Argument], folder: Path, **streams: Any) -> subprocess.Popen[bytes]:
    """Start it for real and do not wait; stdout is a pipe unless `streams` says otherwise."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.Popen(
        limited(argv), cwd=folder, env=environment(), preexec_fn=_interruptible, **pipes
    )


def _interruptible() -> None:
    """A background job of a shell starts with SIGINT ignored; a user's command does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def _streams(stdin: bytes) -> Any:
    before = sys.stdin, sys.stdout, sys.stderr
    fresh = [io.TextIOWrapper(io.BytesIO(data), "utf-8") for data in (stdin, b"", b"")]
    fresh[2] = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")
    sys.stdin, sys.stdout, sys.stderr = fresh
    try:
        with warnings.catch_warnings():
            yield fresh
    finally:
        sys.stdin, sys.stdout, sys.stderr = before


def in_process(argv: Sequence[Argument], folder: Path, stdin: bytes = b"") -> Outcome:
    """Call `pyllm2.cli.main` with streams of our own, in `folder`."""
    words = [os.fsdecode(word) for word in argv]
    before = os.getcwd()
    os.chdir(folder)
    try:
        with _streams(stdin) as (_, out, err):
            code = pyllm2.cli.main(words)
            out.flush()
            err.flush()
            return Outcome(code, out.buffer.getvalue(), err.buffer.getvalue())
    finally:
        os.chdir(before)


def without_asserts(jobs: Sequence[tuple[Path, Sequence[Argument]]]) -> list[Outcome]:
    """Run all of them in one process of `python -O`."""
    data = json.dumps([[str(folder), [os.fsdecode(w) for w in argv]] for folder, argv in jobs])
    done = subprocess.run(
        ["sh", "-c", f'ulimit -v {MEMORY_KIB}; exec "$@"', "sh", sys.executable, "-O", __file__],
        input=data.encode(),
        capture_output=True,
        env=environment(),
        timeout=TIMEOUT,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.decode())
    rows = json.loads(done.stdout)
    return [Outcome(code, bytes.fromhex(out), bytes.fromhex(err)) for code, out, err in rows]


if __name__ == "__main__":
    if __debug__:
        sys.exit("start me with -O")
    outcomes = [in_process(argv, Path(folder)) for folder, argv in json.load(sys.stdin)]
    json.dump([[o.code, o.out.hex(), o.err.hex()] for o in outcomes], sys.stdout)
