"""Row 57: on a terminal control bytes are escaped, bad UTF-8 is U+FFFD; raw in a pipe."""

from __future__ import annotations

import os
import pty
from pathlib import Path

import pytest

from tests.hostile.case import GENERATE, RUN, TOKENIZE, Argv
from tests.support.command import TIMEOUT, Argument, as_process, in_process, start
from tests.support.llama2_files import (
    BOS,
    PIECES,
    V,
    byte_id,
    lay_out,
    saying,
    scripted,
    vocabulary,
)

CLEAR = b"\x1b[2J\x07"  # escape sequences that a terminal would obey
TITLE = b"\x1b]0;x\x9b"
SHOWN = b"\\x1b[2J\\x07"
GENERATED = {"m.bin": saying(CLEAR)}
COMMANDS: dict[str, tuple[Argv, bytes, bytes]] = {
    "reply": (GENERATE, CLEAR[:4], b"\\x1b[2J"),
    "echo": (
        (*GENERATE, "--max-new-tokens", "0", "--prompt", TITLE),
        TITLE,
        b"\\x1b]0;x\xef\xbf\xbd",
    ),
    "tokenize": ((*TOKENIZE[:-1], "--decode", "30 94 53 77 10"), CLEAR, SHOWN),
}


def on_a_terminal(argv: Argv, folder: Path) -> bytes:
    """What the terminal receives."""
    master, slave = pty.openpty()
    process = start(argv, folder, stdout=slave)
    os.close(slave)
    seen = b""
    try:
        while chunk := os.read(master, 4096):
            seen += chunk
    except OSError:  # Linux says so when the other end is closed
        pass
    os.close(master)
    process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0
    return seen.replace(b"\r\n", b"\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_control_bytes_are_escaped_on_a_terminal_and_raw_in_a_pipe(
    name: str, tmp_path: Path
) -> None:
    """The terminal shows the bytes of the pipe with escape sequences spelled out."""
    argv, raw, shown = COMMANDS[name]
    lay_out(tmp_path, GENERATED)
    end = b"" if name == "tokenize" else b"\n"
    assert as_process(argv, tmp_path).out == raw + end
    assert on_a_terminal(argv, tmp_path) == shown + end


EVIL = b"\x1b]0;x\x07\x9b2J"  # a piece that sets the title, and clears the screen
EVIL_FILES = {
    "m.bin": scripted(((BOS, V - 1), (byte_id(ord("]")), V - 1), (V - 1, V - 1))),
    "t.bin": vocabulary([*PIECES[:-1], EVIL]),
}
RUNS: dict[str, tuple[tuple[Argument, ...], bytes]] = {
    "generate": (("-i", "", "-n", "1"), b"%s\n"),
    "chat": (("-m", "chat", "-i", "", "-y", "", "-n", "20"), b"Assistant: %s\n"),
}


@pytest.mark.parametrize("mode", RUNS)
def test_run_escapes_pieces_on_a_terminal_only(mode: str, tmp_path: Path) -> None:
    """In a pipe its bytes are the original's, also half a character at a time."""
    lay_out(tmp_path, EVIL_FILES)
    flags, expected = RUNS[mode]
    argv = (*RUN[:8], *flags)
    in_a_pipe = as_process(argv, tmp_path).out
    assert EVIL in in_a_pipe
    times = in_a_pipe.count(EVIL)
    assert in_a_pipe == expected % (EVIL * times)
    assert on_a_terminal(argv, tmp_path) == expected % (b"\\x1b]0;x\\x07\xef\xbf\xbd2J" * times)


NAMES = ["a\x1b[2Jb", "bell\x07", "c1\x9b", "two\nlines", "back\x08space", "bidi\u202e"]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_name_is_printable_wherever_it_is_printed(name: str, tmp_path: Path) -> None:
    """In a success line and in an error, one line each."""
    lay_out(tmp_path)
    for argv in (
        ("export", "m.bin", name, "--format", "v1"),
        ("export", "none" + name, "x", "--format", "v1"),
    ):
        said = in_process(argv, tmp_path).err.decode()
        assert said.count("\n") == 1
        assert said[:-1].isprintable()


def test_newlines_tabs_and_letters_are_shown_as_they_are(tmp_path: Path) -> None:
    """Newlines, tabs and letters are not escaped."""
    lay_out(tmp_path)
    text = "a\tb\n\u00e9 \u20ac \U0001f600"
    argv = (*GENERATE, "--max-new-tokens", "0", "--prompt", text)
    assert on_a_terminal(argv, tmp_path) == text.encode() + b"\n"
    assert BOS == 1
