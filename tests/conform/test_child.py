"""One run of a program: every limit holds, and nothing stays alive."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pyllm2.conform.child import Limits, run
from pyllm2.errors import FileError

PYTHON = [sys.executable, "-S", "-E", "-c"]


def test_streams_and_exit_code(tmp_path: Path) -> None:
    """All bytes of stdout, the end of stderr, the exit code."""
    code = "import os; os.write(1, b'a\\0b'); os.write(2, b'c'); os._exit(3)"
    done = run([*PYTHON, code], tmp_path, Limits())
    assert (done.code, done.out, done.err, done.stopped) == (3, b"a\0b", b"c", "")


def test_a_hang_is_ended_with_its_children(tmp_path: Path) -> None:
    """The process group goes, also a grandchild that holds stdout."""
    code = "import os, time\nprint(os.fork(), flush=True)\ntime.sleep(60)"
    began = time.monotonic()
    done = run([*PYTHON, code], tmp_path, Limits(seconds=0.5))
    assert done.stopped == "time"
    assert time.monotonic() - began < 10
    child = max(int(word) for word in done.out.split())
    for _ in range(100):
        with suppress(ProcessLookupError):
            os.kill(child, 0)
            time.sleep(0.02)
            continue
        return
    state = Path(f"/proc/{child}/stat").read_text().split()[2]
    assert state == "Z"  # not reaped by a container without init


def test_a_grandchild_that_holds_stdout_does_not_delay(tmp_path: Path) -> None:
    """The program has ended: its output is complete."""
    code = "import os, time\nif os.fork() == 0: time.sleep(60)\nprint('done', flush=True)"
    began = time.monotonic()
    done = run([*PYTHON, code], tmp_path, Limits(seconds=20))
    assert done.out == b"done\n"
    assert time.monotonic() - began < 10


def test_endless_output_is_ended(tmp_path: Path) -> None:
    done = run([*PYTHON, "while True: print('x' * 1000)"], tmp_path, Limits(seconds=20))
    assert done.stopped == "output"


def test_memory_is_limited(tmp_path: Path) -> None:
    """By touching it bit by bit, so that it is no single allocation that fails."""
    code = "kept = []\nwhile True: kept.append(bytearray(2**22))"
    done = run([*PYTHON, code], tmp_path, Limits(seconds=20, memory=2**27))
    assert done.stopped == "memory"


def test_a_program_that_cannot_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be started"):
        run(["./nothing"], tmp_path, Limits())
