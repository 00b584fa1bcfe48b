"""The progress bar of a training run on a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
from contextlib import suppress
from typing import Any

import pytest

from pyllm2.cli.progress import ERASE, Progress
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
    for row in data.decode().replace("\r\n", "\n").split("\n"):
        line: list[str] = []
        for part in row.split("\r"):
            if part.startswith(ERASE):
                part, line = part.removeprefix(ERASE), []
            line[: len(part)] = part
        lines.append("".join(line).rstrip())
    return lines


def resize(terminal: Any, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))


def received(master: int) -> bytes:
    """All that the terminal has got until nobody writes any more."""
    seen = b""
    with os.fdopen(master, "rb", buffering=0) as reader, suppress(OSError):  # EIO: no writer left
        while part := reader.read(2**16):  # a terminal gives what it has by then
            seen += part
    return seen


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The screen after a run with a sample."""
    pytest.importorskip("tqdm")
    master, slave = pty.openpty()
    resize(slave, 120)
    with os.fdopen(slave, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr("sys.stdout", terminal)
        monkeypatch.setattr("sys.stderr", terminal)
        progress = Progress(Recipe(1, 4, 4, STEPS), Tokenizer())
        progress.begin(0)
        for step in range(1, STEPS + 1):
            progress.update(Update(step, 1.25, 1e-3, 0.5, 0.0, 0.0, False))
            progress.sample(step, [1])
        progress.close()
    return screen(received(master))


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


def test_the_bar_follows_the_width_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line is longer than the terminal is when it is drawn, so that none wraps."""
    pytest.importorskip("tqdm")
    master, slave = pty.openpty()
    widths = [120, 40, 80, 100, 20]
    with os.fdopen(slave, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        resize(terminal, widths[0])
        progress = Progress(Recipe(1, 4, 4, len(widths)), Tokenizer())
        progress.begin(0)
        for step, width in enumerate(widths, 1):
            resize(terminal, width)
            terminal.write(f"\n[{width}]\n")
            progress.update(Update(step, 1.25, 1e-3, 0.5, 0.0, 0.0, False))
            progress.bar.refresh()  # tqdm waits a tenth of a second otherwise
        terminal.write("\n[0]\n")
        progress.close()
    parts = re.split(r"\[(\d+)\]", received(master).decode().replace(ERASE, ""))
    drawn = {int(width): text for width, text in zip(parts[1::2], parts[2::2], strict=True)}
    for width in widths:
        lines = [line for line in re.split(r"[\r\n]+", drawn[width]) if line.strip()]
        assert lines, width
        assert max(map(len, lines)) <= width, width
    assert "tokens/s" in drawn[120]
