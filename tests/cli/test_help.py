"""The parser: help pages, version, usage errors."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyllm2
from pyllm2.cli.outputs import output
from pyllm2.cli.parser import parser_of
from tests.support.command import in_process


def subparsers(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> dict:  # type: ignore[type-arg]
    """The parser of each command by its words: ("generate",), ("tokenizer", "train"), ..."""
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
    if action.dest != "stop" and action.type is not output  # any text may do
]


def said(folder: Path, *argv: str) -> str:
    """stdout of a command that succeeds and prints nothing on stderr."""
    outcome = in_process(argv, folder)
    assert (outcome.code, outcome.err) == (0, b"")
    return outcome.out.decode()


@pytest.mark.parametrize("argv", [(), *COMMANDS], ids=str)
def test_help_fits_a_terminal(
    argv: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """80 columns and 50 lines; more where the flags are in groups: diff 60, train 95."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = said(tmp_path, *argv, "--help").splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= {"diff": 60, "train": 95}.get(argv[0] if argv else "", 50)


@pytest.mark.parametrize("words", COMMANDS, ids=str)
def test_a_help_line_says_what_the_flag_does_and_its_default(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every flag has a help text without a full stop, and it shows the default if there is one."""
    monkeypatch.setenv("COLUMNS", "400")
    text = said(tmp_path, *words, "--help")
    for action in COMMANDS[words]._actions:
        if not action.option_strings or action.default == argparse.SUPPRESS:
            continue
        (line,) = re.findall(rf"^  {action.option_strings[0]} .*", text, re.MULTILINE)
        assert action.help
        assert not action.help.endswith(".")
        if action.default not in (None, "", []) and action.default is not False:
            assert f"default: {action.default})" in line, line


def test_alone_it_prints_its_help(tmp_path: Path) -> None:
    """`pyllm2` prints the same as `pyllm2 --help`, and names every command."""
    assert said(tmp_path) == said(tmp_path, "--help")
    for name in {"run", *(words[0] for words in COMMANDS)}:
        assert re.search(rf"^ +{name}( |$)", said(tmp_path), re.MULTILINE)


def test_it_says_its_version(tmp_path: Path) -> None:
    """One line with the version of the package."""
    assert said(tmp_path, "--version") == f"pyllm2 {pyllm2.__version__}\n"


@pytest.mark.parametrize(("words", "flag"), TYPED, ids=str)
def test_a_usage_error_is_one_line_that_names_the_flag(
    words: tuple[str, ...], flag: str, tmp_path: Path
) -> None:
    """Exit code 2 and a pointer to --help, before any file is opened."""
    outcome = in_process([*words, "no-such-file", flag, "x?"], tmp_path)
    assert (outcome.code, outcome.out) == (2, b"")
    see = rf"\(see pyllm2 {' '.join(words)} --help\)"
    error = rf"pyllm2: error: {flag}: .*'x\?'.* {see}\n"
    assert re.fullmatch(error, outcome.err.decode())


def test_help_loads_nothing_heavy() -> None:
    """Help needs neither NumPy nor the modules that do the work of a command."""
    code = "import sys; from pyllm2.cli import main; main(['train', 'gpt2', '--help']); "
    code += "print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert "pyllm2.cli.train" in loaded
    assert not {"numpy", "numba", "pyllm2.cli.train_run", "pyllm2.inference.load"} & set(loaded)
