"""Help, version and usage errors: what the parser itself says."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

import pyllm2
from pyllm2.cli.arguments import parser_of

from .program import in_process


def subparsers(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> dict:  # type: ignore[type-arg]
    """The parser of each command, by its words: ("generate",), ("tokenizer", "train"), …"""
    found = {path: parser} if path else {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                found |= subparsers(below, (*path, name))
    return found


COMMANDS = {words: p for words, p in subparsers(parser_of()).items() if words != ("run",)}
TYPED = [
    (words, action.option_strings[0])
    for words, parser in COMMANDS.items()
    for action in parser._actions
    if action.option_strings and (action.type is not None or action.choices is not None)
]


def said(folder: Path, *argv: str) -> str:
    """What it prints on stdout, and nothing on stderr."""
    outcome = in_process(argv, folder)
    assert (outcome.code, outcome.err) == (0, b"")
    return outcome.out.decode()


@pytest.mark.parametrize("argv", [(), *COMMANDS], ids=str)
def test_help_fits_a_screen(
    argv: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 columns, 50 lines."""
    monkeypatch.setenv("COLUMNS", "100")
    lines = said(tmp_path, *argv, "--help").splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) <= 50


@pytest.mark.parametrize("words", COMMANDS, ids=str)
def test_help_shows_every_default(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flag that has a default says it."""
    monkeypatch.setenv("COLUMNS", "400")
    text = said(tmp_path, *words, "--help")
    for action in COMMANDS[words]._actions:
        if action.default not in (None, False, "", [], argparse.SUPPRESS):
            flag = action.option_strings[0]
            assert re.search(rf"{flag} .*default:? {re.escape(str(action.default))}\b", text), flag


def test_alone_it_prints_its_help(tmp_path: Path) -> None:
    """`pyllm2` is `pyllm2 --help`, and names every command."""
    assert said(tmp_path) == said(tmp_path, "--help")
    for name in {"run", *(words[0] for words in COMMANDS)}:
        assert re.search(rf"^ +{name}( |$)", said(tmp_path), re.MULTILINE)


def test_it_says_its_version(tmp_path: Path) -> None:
    """One line, the package's."""
    assert said(tmp_path, "--version") == f"pyllm2 {pyllm2.__version__}\n"


@pytest.mark.parametrize(("words", "flag"), TYPED, ids=str)
def test_a_usage_error_is_one_line_that_names_the_flag(
    words: tuple[str, ...], flag: str, tmp_path: Path
) -> None:
    """Exit code 2 and the way to the help, before any file is looked at."""
    outcome = in_process([*words, "no-such-file", flag, "x?"], tmp_path)
    assert (outcome.code, outcome.out) == (2, b"")
    see = rf"\(see pyllm2 {' '.join(words)} --help\)"
    error = rf"pyllm2: error: {flag}: .*'x\?'.* {see}\n"
    assert re.fullmatch(error, outcome.err.decode())
