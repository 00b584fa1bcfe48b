"""One run of a program that is not ours: no shell, and limits of time, memory and output."""

from __future__ import annotations

import os
import resource
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pyllm2.errors import FileError

MOST_OUTPUT = 2**20  # bytes of stdout; a case prints a few hundred
KEPT_ERRORS = 2**13  # bytes of stderr
NEARLY = 0.8  # of the limit of memory: a program that then dies has died of it
_POLL = 0.02  # seconds between two looks at the memory of a child
_CHUNK = 2**16
_PAGE = resource.getpagesize()


@dataclass(frozen=True)
class Limits:
    """What one run may use."""

    seconds: float = 10.0
    memory: int = 2 * 2**30  # bytes, of all its processes together


@dataclass(frozen=True)
class Outcome:
    """What a run left behind."""

    code: int  # exit code, or minus the signal
    out: bytes
    err: bytes  # its end
    stopped: str  # "", or the limit that was exceeded: "time", "memory" or "output"
    seconds: float

    @property
    def ended(self) -> str:
        """How it ended, in words.

        Example: "signal SIGSEGV", "exit code 1"
        """
        if self.stopped:
            return {
                "time": f"still running after {self.seconds:.1f} s",
                "memory": "more memory than --memory allows",
                "output": f"more than {MOST_OUTPUT} bytes of output",
            }[self.stopped]
        if self.code < 0:
            with suppress(ValueError):
                return f"signal {signal.Signals(-self.code).name}"
            return f"signal {-self.code}"
        return f"exit code {self.code}"


def run(
    argv: Sequence[str | bytes],
    folder: Path,
    limits: Limits,
    environment: Mapping[str, str] | None = None,
    stdin: bytes = b"",
) -> Outcome:
    """Run a program in `folder` and wait for it; what it started ends with its process group.

    Memory is limited twice: the writable memory of each process by the system (RLIMIT_DATA, which
    does not count what a virtual machine only reserves), and what all of them occupy by looking.

    Raises FileError if the program cannot be started.
    """
    began = time.monotonic()
    try:
        process = subprocess.Popen(
            argv,
            cwd=folder,
            env=None if environment is None else dict(environment),
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )
    except OSError as error:
        program = os.fsdecode(argv[0])
        raise FileError(program, f"cannot be started: {error.strerror or error}") from None
    try:
        _limit_data(process.pid, limits.memory)
        reaper = _Reaper(process)
        out, err, stopped = _collect(process, reaper, limits, began, stdin)
        while not stopped and not reaper.ended():
            time.sleep(0.001)
            stopped = "time" if time.monotonic() - began > limits.seconds else ""
    finally:
        _end_group(process)
    if not stopped and process.returncode != 0 and reaper.peak > NEARLY * limits.memory:
        stopped = "memory"  # it died of the limit
    return Outcome(process.returncode, out, err, stopped, time.monotonic() - began)


class _Reaper:
    """Waits for the process, and learns how much memory it has occupied at most."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.peak = 0  # bytes

    def ended(self) -> bool:
        if self.process.returncode is None:
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                self.process.returncode = os.waitstatus_to_exitcode(status)
                self.peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return self.process.returncode is not None


def _limit_data(pid: int, memory: int) -> None:
    if hasattr(resource, "prlimit"):  # Linux
        with suppress(OSError, ValueError):  # it has ended, or the limit is lower already
            resource.prlimit(pid, resource.RLIMIT_DATA, (memory, memory))
            resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))


def _collect(
    process: subprocess.Popen[bytes], reaper: _Reaper, limits: Limits, began: float, stdin: bytes
) -> tuple[bytes, bytes, str]:
    """Read both streams until they end or a limit is exceeded."""
    assert process.stdout is not None
    assert process.stderr is not None
    if process.stdin is not None:
        with suppress(OSError):  # at most a line, which fits into the pipe
            process.stdin.write(stdin[:4096])
        with suppress(OSError):
            process.stdin.close()
    parts: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}
    stopped = ""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, 1)
        selector.register(process.stderr, selectors.EVENT_READ, 2)
        while selector.get_map() and not stopped:
            for key, _ in selector.select(_POLL):
                data = os.read(key.fd, _CHUNK)
                if not data:
                    selector.unregister(key.fileobj)
                parts[key.data] += data
            del parts[2][:-KEPT_ERRORS]
            now = time.monotonic() - began
            if len(parts[1]) > MOST_OUTPUT:
                stopped = "output"
            elif now > limits.seconds:
                stopped = "time"
            elif now > _POLL and occupied(process.pid) > limits.memory:
                stopped = "memory"
            if now > _POLL and reaper.ended():
                _drain(selector, parts)
                break  # a grandchild may still hold the streams
    return bytes(parts[1][:MOST_OUTPUT]), bytes(parts[2]), stopped


def _drain(selector: selectors.BaseSelector, parts: dict[int, bytearray]) -> None:
    """Read what is there without waiting."""
    while selector.get_map() and len(parts[1]) <= MOST_OUTPUT:
        ready = selector.select(0)
        if not ready:
            return
        for key, _ in ready:
            data = os.read(key.fd, _CHUNK)
            if not data:
                selector.unregister(key.fileobj)
            parts[key.data] += data


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the process and whatever it started, and close the pipes."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def occupied(group: int) -> int:
    """Resident bytes of all processes of a process group; 0 where /proc does not exist."""
    if not sys.platform.startswith("linux"):
        return 0
    total = 0
    for pid in _members(group):
        with suppress(OSError, ValueError, IndexError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    return total


def _members(group: int) -> list[int]:
    """The leader and its descendants that are in its group, by the lists of children."""
    found: list[int] = []
    queue = [group]
    while queue and len(found) < 1000:
        pid = queue.pop()
        found.append(pid)
        with suppress(OSError, ValueError):
            text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
            queue += map(int, text.split())
    return found
