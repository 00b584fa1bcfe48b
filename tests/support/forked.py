"""Run the command `pyllm2` in a forked child of a server process that has imported it already.

A start takes 10 ms instead of 150. The child has the memory limit, file descriptors and exit code
of a separate process; only start and end of the interpreter are missing, which
`command.as_process` covers.

This module run as a script is the server. It reads lines of JSON [folder, arguments, stdin] and
answers with lines of JSON [exit code, stdout, stderr]; stdin, stdout and stderr are hexadecimal.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.command import MEMORY_KIB, TIMEOUT, Argument, Outcome, environment

REPOSITORY = Path(__file__).parents[2]


def as_fork(
    argv: Sequence[Argument], folder: Path, stdin: bytes = b"", flags: Sequence[str] = ()
) -> Outcome:
    """Run the command in `folder`, in a child of `python *flags`; SIGALRM ends it after TIMEOUT."""
    server = _server(*flags)
    job = [str(folder), [os.fsdecode(word) for word in argv], stdin.hex()]
    server.stdin.write(json.dumps(job) + "\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    if not answer:
        raise RuntimeError(f"the process that forks has ended: exit code {server.wait()}")
    code, out, err = json.loads(answer)
    return Outcome(code, bytes.fromhex(out), bytes.fromhex(err))


@functools.cache
def _server(*flags: str) -> Any:
    words = [sys.executable, *flags, "-m", "tests.support.forked"]
    server = subprocess.Popen(
        ["sh", "-c", f'ulimit -v {MEMORY_KIB}; exec "$@"', "sh", *words],
        cwd=REPOSITORY,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(_close, server)
    return server


def _close(server: Any) -> None:
    server.stdin.close()
    server.stdout.close()
    server.wait(TIMEOUT)


# Modules that most commands need, imported once by the server instead of once per child.
PRELOADED = ("cli.generate", "cli.run", "inference.load", "llama2.ops", "gpt2.ops", "stories")


def _serve() -> None:
    for name in PRELOADED:
        importlib.import_module(f"pyllm2.{name}")
    for line in sys.stdin:
        folder, argv, stdin = json.loads(line)
        with (
            tempfile.TemporaryFile() as given,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
        ):
            given.write(bytes.fromhex(stdin))
            given.seek(0)
            child = os.fork()
            if child == 0:
                for descriptor, stream in enumerate((given, out, err)):
                    os.dup2(stream.fileno(), descriptor)
                _run(folder, argv)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            texts = []
            for stream in (out, err):
                stream.seek(0)
                texts.append(stream.read().hex())
        print(json.dumps([code, *texts]), flush=True)


def _run(folder: str, argv: list[str]) -> None:
    """Run `python -m pyllm2` in the child, and end the child."""
    signal.alarm(TIMEOUT)
    code: object = 1
    try:
        os.chdir(folder)
        sys.stdin = os.fdopen(0, closefd=False)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", errors="backslashreplace", closefd=False)
        sys.argv = ["pyllm2", *argv]
        runpy.run_module("pyllm2", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    _serve()
