"""Help, version and usage errors: what the parser itself says."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

import pyllm2
from pyllm2.cli.arguments import parser_of

from .program import in_process


def subparsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command."""
    (commands,) = (a for a in parser_of()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(commands.choices)


COMMANDS = {name: parser for name, parser in subparsers().items() if name != "run"}
TYPED = [
    (name, action.option_strings[0])
    for name, parser in COMMANDS.items()
    for action in parser._actions
    if action.option_strings and (action.type is not None or action.choices is not None)
]


def said(folder: Path, *argv: str) -> str:
    """What it prints on stdout, and nothing on stderr."""
    outcome = in_process(argv, folder)
    assert (outcome.code, outcome.err) == (0, b"")
    return outcome.out.decode()


@pytest.mark.parametrize("argv", [(), *((name,) for name in COMMANDS)], ids=str)
def test_help_fits_a_screen(
    argv: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 columns, 50 lines."""
    monkeypatch.setenv("COLUMNS", "100")
    lines = said(tmp_path, *argv, "--help").splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) <= 50


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_every_default(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flag that has a default says it."""
    monkeypatch.setenv("COLUMNS", "400")
    text = said(tmp_path, name, "--help")
    for action in COMMANDS[name]._actions:
        if action.default not in (None, False, "", [], argparse.SUPPRESS):
            flag = action.option_strings[0]
            assert re.search(rf"{flag} .*default:? {re.escape(str(action.default))}\b", text), flag


def test_alone_it_prints_its_help(tmp_path: Path) -> None:
    """`pyllm2` is `pyllm2 --help`, and names every command."""
    assert said(tmp_path) == said(tmp_path, "--help")
    for name in ("run", *COMMANDS):
        assert re.search(rf"^ +{name} ", said(tmp_path), re.MULTILINE)


def test_it_says_its_version(tmp_path: Path) -> None:
    """One line, the package's."""
    assert said(tmp_path, "--version") == f"pyllm2 {pyllm2.__version__}\n"


@pytest.mark.parametrize(("name", "flag"), TYPED)
def test_a_usage_error_is_one_line_that_names_the_flag(
    name: str, flag: str, tmp_path: Path
) -> None:
    """Exit code 2 and the way to the help, before any file is looked at."""
    outcome = in_process([name, "no-such-file", flag, "x?"], tmp_path)
    assert (outcome.code, outcome.out) == (2, b"")
    assert re.fullmatch(
        rf"pyllm2: error: {flag}: .*'x\?'.* \(see pyllm2 {name} --help\)\n", outcome.err.decode()
    )
