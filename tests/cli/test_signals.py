"""Signals while a command writes: nothing half, nothing left, and the exit code of the signal."""

from __future__ import annotations

import bdb
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command import TIMEOUT, environment, interruptible
from tests.support.llama2_files import lay_out

# The command, in a process that sends itself a signal in its Nth call of fsync.
SCRIPT = """
import os, sys
from pyllm2.cli import main
number, calls, real = int(sys.argv[1]), int(sys.argv[2]), os.fsync
def fsync(descriptor):
    global calls
    calls -= 1
    if calls == 0:
        os.kill(os.getpid(), number)
    real(descriptor)
os.fsync = fsync
sys.exit(main(sys.argv[3:]))
"""
PREPARE = "data prepare text --tokenizer bytes --val-tokens 9 --shard-tokens 50".split()
COMMANDS = {
    "quantize": "quantize m.bin out --group-size 4 --force".split(),
    "export": "export m.bin out --format v1 --force".split(),
    "tokenizer": "tokenizer export t.bin out --force".split(),
    "prepare": [*PREPARE, "--out", "new"],
    "prepare into": [*PREPARE, "--out", "empty"],
}
ENDS = {signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGINT: 130, signal.SIGKILL: -9}


def ignoring_hangups() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def run(
    argv: list[str],
    folder: Path,
    number: int = 0,
    calls: int = 0,
    setup: Callable[[], None] = interruptible,
) -> int:
    command = [sys.executable, "-c", SCRIPT, str(number), str(calls), *argv]
    options = {"cwd": folder, "env": environment(), "preexec_fn": setup}
    done = subprocess.run(command, capture_output=True, timeout=TIMEOUT, **options)
    assert b"Traceback" not in done.stderr
    return done.returncode


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below the folder, with the contents of files."""
    found = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in found}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lay_out(tmp_path, {"out": b"old", "text": b"abcdefgh\n\n" * 30})
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("number", ENDS, ids=lambda n: n.name)
def test_a_signal_leaves_what_was_there(name: str, number: signal.Signals, folder: Path) -> None:
    """Of SIGKILL a temporary file is left, and the next run of the same command removes it."""
    before = tree(folder)
    calls = 2 if name == "prepare" else 1
    assert run(COMMANDS[name], folder, number, calls) == ENDS[number]
    if number != signal.SIGKILL:
        assert tree(folder) == before
        return
    extra = set(tree(folder)) - set(before)
    assert extra
    assert all(".pyllm2-" in path for path in extra)
    assert {k: v for k, v in tree(folder).items() if k not in extra} == before
    assert run(COMMANDS[name], folder) == 0
    assert not [path for path in tree(folder) if ".pyllm2-" in path]


def test_an_ignored_hangup_is_ignored(folder: Path) -> None:
    """A command that was started with nohup goes on after a SIGHUP."""
    assert run(COMMANDS["export"], folder, signal.SIGHUP, 1, ignoring_hangups) == 0
    assert os.path.getsize(folder / "out") > 3


def test_leaving_the_debugger_is_no_bug(tmp_path: Path) -> None:
    """`q` in pdb: exit code 130, and no traceback."""
    from tests.support.command import in_process

    with pytest.MonkeyPatch.context() as patch:

        def leave(*_: object) -> None:
            raise bdb.BdbQuit

        patch.setattr("pyllm2.cli.doctor.main", leave)
        outcome = in_process(["doctor", "x"], tmp_path)
    assert (outcome.code, outcome.out, outcome.err) == (130, b"", b"")
