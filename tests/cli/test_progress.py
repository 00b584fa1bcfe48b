"""The progress bar of a training run on a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
from contextlib import suppress

import pytest

from pyllm2.cli.progress import Progress
from pyllm2.training.recipe import Recipe
from pyllm2.training.report import Update

STEPS = 3


class Tokenizer:
    """Decodes to two lines that end with a byte that is not UTF-8."""

    def decode(self, tokens: list[int]) -> bytes:
        return b"first line\nsecond \xf9"


def screen(data: bytes) -> list[str]:
    """The lines of a terminal of any width that has received `data`."""
    lines = []
    for received in data.decode().replace("\r\n", "\n").split("\n"):
        line: list[str] = []
        for part in received.split("\r"):
            line[: len(part)] = part
        lines.append("".join(line).rstrip())
    return lines


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The screen after a run with a sample."""
    pytest.importorskip("tqdm")
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    with os.fdopen(slave, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr("sys.stdout", terminal)
        monkeypatch.setattr("sys.stderr", terminal)
        progress = Progress(Recipe(1, 4, 4, STEPS), Tokenizer())
        progress.begin(0)
        for step in range(1, STEPS + 1):
            progress.update(Update(step, 1.25, 1e-3, 0.5, 0.0, 0.0, False))
            progress.sample(step, [1])
        progress.close()
    seen = b""
    with os.fdopen(master, "rb", buffering=0) as reader, suppress(OSError):  # EIO: no writer left
        while received := reader.read(2**16):  # a terminal gives what it has by then
            seen += received
    return screen(seen)


def test_samples_are_above_the_bar(shown: list[str]) -> None:
    """Each begins at the left edge; a byte that is not UTF-8 is U+FFFD."""
    at = [i for i, line in enumerate(shown) if line.startswith("pyllm2: sample after")]
    assert len(at) == STEPS
    for i in at:
        assert shown[i + 1 : i + 3] == ["first line", "second \ufffd"]


def test_the_bar_shows_loss_norm_and_rate(shown: list[str]) -> None:
    """At the end the bar is the last line."""
    last = [line for line in shown if line][-1]
    assert re.fullmatch(
        r"3/3 .* \| loss 1\.250000 \| norm 0\.5000 \| lr 1\.00e-03 \| [\d,]+ tokens/s", last
    )
