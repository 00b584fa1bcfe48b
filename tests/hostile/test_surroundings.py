"""Row 69: locales, closed and full streams, readers that leave early, the interrupt key."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.hostile.case import CHAT, GENERATE, RUN
from tests.support.command import TIMEOUT, Argument, as_process, start
from tests.support.llama2_files import BOS, byte_id, lay_out, scripted

A, B = byte_id(ord("a")), byte_id(ord("b"))
ENDLESS = scripted(((BOS, A), (A, B), (B, A)), seq_len=10**6)
LONG: tuple[Argument, ...] = (*GENERATE, "--max-new-tokens", "900000")
EURO = "\u20ac"
LOCALES = {
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "C-ascii": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii:strict"},
}


@pytest.mark.parametrize("locale", LOCALES)
def test_the_locale_changes_no_byte(locale: str, tmp_path: Path) -> None:
    """Text goes from argument to stdout as bytes, also under an ASCII locale."""
    lay_out(tmp_path)
    argv = (*GENERATE, "--max-new-tokens", "0", "--prompt", EURO)
    outcome = as_process(argv, tmp_path, env=LOCALES[locale])
    assert (outcome.code, outcome.out) == (0, EURO.encode() + b"\n")


@pytest.mark.parametrize("locale", LOCALES)
def test_a_refusal_survives_an_ascii_locale(locale: str, tmp_path: Path) -> None:
    """A message with a letter outside the locale is one line, with the same exit code."""
    argv = ("generate", f"{EURO}.bin", "--temperature", "nan")
    outcome = as_process(argv, tmp_path, env=LOCALES[locale])
    assert (outcome.code, outcome.out) == (2, b"")
    assert outcome.err.startswith(b"pyllm2: error: --temperature: 'nan': expected a number ")
    assert outcome.err.count(b"\n") == 1


@pytest.mark.parametrize("command", [(), ("generate",), ("chat",), ("tokenize",)])
def test_help_survives_an_ascii_locale(command: tuple[str, ...], tmp_path: Path) -> None:
    """Help has letters outside ASCII."""
    outcome = as_process((*command, "--help"), tmp_path, env=LOCALES["C-ascii"])
    assert (outcome.code, outcome.err) == (0, b"")
    assert outcome.out.startswith(b"usage: pyllm2")


WRITERS: dict[str, tuple[Argument, ...]] = {
    "generate": GENERATE,
    "run": RUN,
    "chat": (*CHAT, "--prompt", "a"),
    "tokenize": ("tokenize", "--tokenizer", "t.bin", "a"),
    "lens": ("lens", "m.bin", "--ids", "1,5", "--backend", "numpy"),
    "step": ("step", "m.bin", "--ids", "1,5", "--plain"),
    "diff": ("diff", "m.bin", "--ids", "1,5", "--backends", "numpy"),
    "help": ("--help",),
    "version": ("--version",),
    "bare": (),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_line(name: str, tmp_path: Path) -> None:
    """An error of the operating system on stdout is reported."""
    lay_out(tmp_path)
    outcome = as_process(WRITERS[name], tmp_path, redirect=">/dev/full")
    assert outcome.code == 1
    assert outcome.err == b"pyllm2: error: standard output: no space left on device\n"


@pytest.mark.parametrize("name", WRITERS)
def test_a_closed_pipe_ends_it_quietly(name: str, tmp_path: Path) -> None:
    """Exit code 141, which is a shell's for a closed pipe, and no message."""
    lay_out(tmp_path)
    reader, writer = os.pipe()
    os.close(reader)
    process = start(WRITERS[name], tmp_path, stdout=writer)
    os.close(writer)
    _, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, err) == (141, b"")


@pytest.mark.parametrize("name", ["generate", "run", "chat", "tokenize", "lens", "step", "diff"])
def test_a_closed_stdout_ends_it_quietly(name: str, tmp_path: Path) -> None:
    """`>&-` has the same result as a closed pipe."""
    lay_out(tmp_path)
    outcome = as_process(WRITERS[name], tmp_path, redirect=">&-")
    assert (outcome.code, outcome.err) == (141, b"")


@pytest.mark.parametrize("redirect", ["2>&-", "<&-", "2>/dev/full"])
def test_stdin_and_stderr_may_be_closed(redirect: str, tmp_path: Path) -> None:
    """Streams that a command does not use may be closed or full."""
    lay_out(tmp_path)
    usual = as_process(GENERATE, tmp_path)
    outcome = as_process(GENERATE, tmp_path, redirect=redirect)
    assert (outcome.code, outcome.out) == (0, usual.out)


@pytest.mark.parametrize("redirect", ["", "<&-"])
def test_step_needs_neither_stdin_nor_a_locale(redirect: str, tmp_path: Path) -> None:
    """A letter of its lines that ASCII has not got; a closed stdin has no commands."""
    lay_out(tmp_path)
    outcome = as_process(WRITERS["step"], tmp_path, env=LOCALES["C-ascii"], redirect=redirect)
    assert outcome.code == 0, outcome.err.decode()
    assert " · numpy\n".encode() in outcome.out


def test_head_ends_a_long_story(tmp_path: Path) -> None:
    """A reader that closes the pipe ends generation with exit code 141 and no message."""
    lay_out(tmp_path, {"m.bin": ENDLESS})
    process = start(LONG, tmp_path)
    assert process.stdout is not None
    assert process.stderr is not None
    assert os.read(process.stdout.fileno(), 1) == b"a"
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(TIMEOUT), err) == (141, b"")


@pytest.mark.parametrize("command", ["generate", "run"])
def test_the_interrupt_key_ends_a_long_story(command: str, tmp_path: Path) -> None:
    """Exit code 130 and no traceback."""
    lay_out(tmp_path, {"m.bin": ENDLESS})
    run = (*RUN, "-n", "900000", "-i", "")
    process = start(LONG if command == "generate" else run, tmp_path)
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 1) == b"a"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, err) == (130, b"")


def test_the_interrupt_key_ends_a_chat_that_waits(tmp_path: Path) -> None:
    """Also while it waits for input."""
    lay_out(tmp_path)
    reader, writer = os.pipe()  # a stdin that stays open and silent
    process = start(CHAT, tmp_path, stdin=reader)
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 6) == b"User: "
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=TIMEOUT)
    os.close(reader)
    os.close(writer)
    assert (process.returncode, err) == (130, b"")
