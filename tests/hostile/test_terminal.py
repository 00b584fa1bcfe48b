"""Row 57: a model cannot reach through a terminal, and a pipe gets what the model said."""

from __future__ import annotations

import os
import pty
from pathlib import Path

import pytest

from ..cli.program import TIMEOUT, Argument, as_process, start
from ..cli.tiny import BOS, lay_out, saying
from .case import GENERATE

CLEAR = b"\x1b[2J\x07"  # escape sequences that a terminal would obey
TITLE = b"\x1b]0;x\x9b"
SHOWN = b"\\x1b[2J\\x07"
GENERATED = {"m.bin": saying(CLEAR)}
COMMANDS: dict[str, tuple[tuple[Argument, ...], bytes, bytes]] = {
    "reply": (GENERATE, CLEAR[:4], b"\\x1b[2J"),
    "echo": ((*GENERATE, "--max-new-tokens", "0", "--prompt", TITLE), TITLE, b"\\x1b]0;x\\udc9b"),
    "tokenize": (
        ("tokenize", "--tokenizer", "t.bin", "--decode", "30 94 53 77 10"), CLEAR, SHOWN,
    ),
}  # fmt: skip


def on_a_terminal(argv: tuple[Argument, ...], folder: Path) -> bytes:
    """What reaches the screen."""
    master, slave = pty.openpty()
    process = start(argv, folder, stdout=slave)
    os.close(slave)
    seen = b""
    try:
        while chunk := os.read(master, 4096):
            seen += chunk
    except OSError:  # Linux: the other end is closed
        pass
    os.close(master)
    process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0
    return seen.replace(b"\r\n", b"\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_control_bytes_are_escaped_on_a_terminal_and_raw_in_a_pipe(
    name: str, tmp_path: Path
) -> None:
    """The screen shows what the pipe carries, with escapes spelled out."""
    argv, raw, shown = COMMANDS[name]
    lay_out(tmp_path, GENERATED)
    end = b"" if name == "tokenize" else b"\n"
    assert as_process(argv, tmp_path).out == raw + end
    assert on_a_terminal(argv, tmp_path) == shown + end


def test_newlines_tabs_and_letters_are_shown_as_they_are(tmp_path: Path) -> None:
    """Only what moves the cursor about is escaped."""
    lay_out(tmp_path)
    text = "a\tb\n\u00e9 \u20ac \U0001f600"
    argv = (*GENERATE, "--max-new-tokens", "0", "--prompt", text)
    assert on_a_terminal(argv, tmp_path) == text.encode() + b"\n"
    assert BOS == 1
