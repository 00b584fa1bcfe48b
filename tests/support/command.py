"""Run the command `pyllm2` as a process with limited memory, or faster within this process."""

from __future__ import annotations

import fcntl
import io
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
TIMEOUT = 300  # seconds; a busy machine may compile kernels for a minute
COMMAND = [sys.executable, "-m", "pyllm2"]

Argument = str | bytes


@dataclass(frozen=True)
class Outcome:
    """Exit code, stdout and stderr of a command."""

    code: int
    out: bytes
    err: bytes


# Variables that a developer's shell may have set and a user's has not.
UNSET = dict.fromkeys(("PYTHONUNBUFFERED", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONOPTIMIZE"))


def environment(changes: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """The environment of this process, with one thread and changes (None removes a variable)."""
    fixed = {"OPENBLAS_NUM_THREADS": "1", "COLUMNS": "100"}
    env = {**os.environ, **UNSET, **fixed, **(changes or {})}
    return {name: value for name, value in env.items() if value is not None}


def limited(argv: Sequence[Argument], redirect: str = "") -> list[Argument]:
    """The command line of pyllm2 under the memory limit; `redirect` is shell syntax."""
    script = f'ulimit -v {MEMORY_KIB}; exec "$@" {redirect}'
    return ["sh", "-c", script, "sh", *COMMAND, *argv]


def as_process(
    argv: Sequence[Argument],
    folder: Path,
    stdin: bytes = b"",
    env: Mapping[str, str | None] | None = None,
    redirect: str = "",
) -> Outcome:
    """Run pyllm2 as a process in `folder`. Raises TimeoutExpired after TIMEOUT seconds."""
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
    """Start pyllm2 as a process without waiting; stdout and stderr are pipes by default.

    The pipes are small and not read ahead: a process whose lines are not read waits after 4 KiB,
    so that a test on a busy machine meets it where it expects it.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    process = subprocess.Popen(
        limited(argv),
        cwd=folder,
        env=environment(),
        preexec_fn=interruptible,
        bufsize=0,
        **pipes,
    )
    for stream in (process.stdout, process.stderr):
        if stream is not None and hasattr(fcntl, "F_SETPIPE_SZ"):  # Linux
            fcntl.fcntl(stream, fcntl.F_SETPIPE_SZ, 4096)
    return process


def interruptible() -> None:
    """Reset signals that tests inherit as ignored from a background job or from `nohup`."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


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
    """Call `pyllm2.cli.main` in `folder`, with its standard streams captured."""
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
