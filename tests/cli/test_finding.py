"""Finding things: examples, suggestions, completion."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pyllm2.cli.completion import SHELLS
from pyllm2.cli.parser import parse, parser_of
from tests.cli.test_help import COMMANDS
from tests.support.command import in_process

# (words of the command, what its help page calls an example)
SHOWN = [
    (words, line.strip().split("  ")[0])
    for words, parser in COMMANDS.items()
    for line in re.sub(r"\\\n\s*", "", parser.epilog or "").splitlines()
    if line.strip().startswith("pyllm2 ")
]


@pytest.mark.parametrize(("words", "line"), SHOWN, ids=str)
def test_an_example_is_a_command_line(words: tuple[str, ...], line: str) -> None:
    """Every example of a help page can be parsed."""
    argv = shlex.split(line, comments=True)[1:]
    argv = argv[: next((i for i, word in enumerate(argv) if word in ("<", ">", "|")), len(argv))]
    assert parse(parser_of(), argv).command == argv[0]


@pytest.mark.parametrize("words", COMMANDS, ids=str)
def test_every_page_has_an_example(words: tuple[str, ...]) -> None:
    """At its end."""
    assert words in [found for found, _ in SHOWN]


@pytest.mark.parametrize(
    ("argv", "error", "page"),
    [
        ("genrate", "COMMAND: invalid choice: 'genrate'; did you mean generate?", ""),
        (
            "generate --promt",
            "unrecognized arguments: --promt; did you mean --prompt or --prompts?",
            "generate ",
        ),
        (
            "generate -n 30",
            "unrecognized arguments: -n; did you mean --max-new-tokens?",
            "generate ",
        ),
        ("tokenize -n", "unrecognized arguments: -n", "tokenize "),
        (
            "tokenizer train x --out y --vocab=3",
            "unrecognized arguments: --vocab=3; did you mean --vocab-size?",
            "tokenizer train ",
        ),
        (
            "generate --backend numppy",
            "--backend: invalid choice: 'numppy'; did you mean numpy?",
            "generate ",
        ),
    ],
)
def test_a_near_miss_is_named(argv: str, error: str, page: str, tmp_path: Path) -> None:
    """With the help page of the command."""
    outcome = in_process(argv.split(), tmp_path)
    expected = f"pyllm2: error: {error} (see pyllm2 {page}--help)\n"
    assert (outcome.code, outcome.err.decode()) == (2, expected)


def test_a_prompt_in_the_place_of_the_model(tmp_path: Path) -> None:
    """The error says which flag it needs."""
    outcome = in_process(["generate", "Once upon a time"], tmp_path)
    assert outcome.code == 2
    assert b"'Once upon a time' is no file: to continue a text, --prompt 'Once" in outcome.err


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_run_has_a_help_page(flag: str, tmp_path: Path) -> None:
    """On stdout, with exit code 0."""
    outcome = in_process(["run", flag], tmp_path)
    assert (outcome.code, outcome.err) == (0, b"")
    assert outcome.out.startswith(b"usage: pyllm2 run MODEL")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_for_the_shell(shell: str, tmp_path: Path) -> None:
    """It names the command."""
    pytest.importorskip("argcomplete")
    outcome = in_process(["completion", shell], tmp_path)
    assert outcome.code == 0
    assert b"pyllm2" in outcome.out


def test_the_shell_completes_a_flag(tmp_path: Path) -> None:
    """What argcomplete's script does."""
    pytest.importorskip("argcomplete")
    line = "pyllm2 generate --prompt-"
    asked = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE": "1", "IFS": "\v"}
    out = tmp_path / "found"
    env = {**os.environ, **asked, "_ARGCOMPLETE_STDOUT_FILENAME": str(out)}
    subprocess.run([sys.executable, "-m", "pyllm2"], env=env, check=True, timeout=60)
    assert out.read_text().strip() == "--prompt-file"
