"""Modules and names that only POSIX systems have: what NumPy can do without them works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.llama2_files import lay_out
from tests.support.toy_training import TRAIN, write_shards

# What Windows has not; the standard library keeps what it has imported already.
WITHOUT = """
import os, signal, sys
for name in "fcntl grp posix_ipc pty pwd readline resource syslog termios tty".split():
    sys.modules[name] = None
for name in "fchmod fchown fork geteuid getuid killpg mkfifo sched_getaffinity".split():
    delattr(os, name)
for name in "O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK".split():
    delattr(os, name)
for name in "SIGHUP SIGKILL SIGPIPE SIGALRM pthread_sigmask".split():
    delattr(signal, name)
from pyllm2.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "line",
    [
        "generate m.bin --tokenizer t.bin --prompt ab --max-new-tokens 3 --backend numpy",
        "doctor m.bin t.bin",
        "export m.bin x.bin --format v1",
        "export m.bin x --format hf --tokenizer t.bin",
        "data prepare text.txt --tokenizer bytes --val-tokens 9 --out x",
        "lens m.bin --tokenizer t.bin --prompt ab --backend numpy",
        "tokenize --tokenizer t.bin ab",
        " ".join(TRAIN),
    ],
    ids=lambda line: line.split()[0] + line.split()[-1],
)
def test_numpy_needs_no_posix(line: str, tmp_path: Path) -> None:
    """As far as that can be tried here; locks and signals are then left out."""
    lay_out(tmp_path)
    write_shards(tmp_path)
    (tmp_path / "text.txt").write_text("one two three four five\n" * 20)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *line.split()], cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
