"""The command: arguments, exit codes, the report, replaying."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pyllm2.conform.adapter import ids_of, parse, quoted
from pyllm2.errors import UsageError
from tests.conform.wrong import WRONG, build
from tests.support.command import in_process

PORT = Path(__file__).with_name("port.py")


def script(folder: Path, text: str) -> str:
    """An executable Python program."""
    path = folder / "program.py"
    path.write_text(f"#!{sys.executable} -S\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    ("template", "prompt", "expected"),
    [
        ("{model} -t {temperature} [-i {prompt}]", None, ["m", "-t", "0.0"]),
        ("{model} -t {temperature} [-i {prompt}]", "a b", ["m", "-t", "0.0", "-i", "a b"]),
        ("{model} {temperature} [{steps} [{prompt}]]", "", ["m", "0.0", "4", ""]),
        ("--model={model} '-x y' {prompt}", None, ["--model=m", "-x y", ""]),
    ],
)
def test_a_template_is_filled_in(template: str, prompt: str | None, expected: list[str]) -> None:
    """Brackets drop out without their value; a value is one argument; empty ones stay."""
    values: dict[str, str | bytes] = {"model": "m", "temperature": "0.0", "steps": "4"}
    if prompt is not None:
        values["prompt"] = prompt
    assert [word.decode() for word in parse(template).fill(values)] == expected


@pytest.mark.parametrize("template", ["{model} [", "{model} ]", "{modle}", "-t 1", "{model} '"])
def test_a_wrong_template_is_a_usage_error(template: str) -> None:
    """An unknown word, unbalanced brackets or quotation marks, no model."""
    with pytest.raises(UsageError, match=r"^--args: "):
        parse(template)


def test_ids_are_read_out_of_any_noise() -> None:
    """Banners, NULs and line ends do not matter."""
    assert ids_of(b"v1.0 [info]\n[3]\0\0[12]\n [4] x 99 tok/s [") == [3, 12, 4]


def test_a_word_is_quoted_for_a_shell(tmp_path: Path) -> None:
    """bash gets the same bytes."""
    for word in (b"a b", b"it's", b"\xff\n$x\\", "é".encode()):
        shell = f"printf %s {quoted(word)}"
        assert subprocess.run(["bash", "-c", shell], capture_output=True).stdout == word


def test_a_finding_is_reported_and_can_be_replayed(ours: Path, tmp_path: Path) -> None:
    """Exit code 1, the case, both lists of ids; the folder differs with it and agrees with ours."""
    (wrong,) = [w for w in WRONG if w.name == "w1 and w3 exchanged"]
    program = build(wrong, tmp_path / "wrong")
    argv = ["conform", str(program), "--only", "feed-forward", "--json", "report.json"]
    outcome = in_process(argv, tmp_path)
    assert outcome.code == 1
    text = outcome.out.decode()
    for words in ("differs       feed-forward", "  expected  ", "  got       ", "  usually   "):
        assert words in text
    report = json.loads((tmp_path / "report.json").read_bytes())
    assert [row["status"] for row in report["properties"]] == ["differs"]
    folder = tmp_path / "conform.d" / "feed-forward-1"
    assert {p.name for p in folder.iterdir()} == {
        "cmd", "expected", "got", "model.bin", "tokenizer.bin",
    }  # fmt: skip
    replay = ["conform", "--replay", str(folder)]
    assert in_process(replay, tmp_path).code == 1
    assert in_process([*replay, str(ours)], tmp_path).code == 0
    assert in_process([*replay, "--against", str(program)], tmp_path).code == 0


def test_a_program_can_be_the_reference(ours: Path, tmp_path: Path) -> None:
    """A wrong program agrees with itself."""
    (wrong,) = [w for w in WRONG if w.name == "w1 and w3 exchanged"]
    program = build(wrong, tmp_path / "wrong")
    argv = ["conform", str(program), "--only", "feed-forward", "--against", str(program)]
    assert in_process(argv, tmp_path).code == 0


def test_positional_arguments_are_proposed(tmp_path: Path) -> None:
    """Exit code 2, what it printed, and a template with which it answers."""
    text = f"import sys\nsys.path.insert(0, {str(PORT.parent)!r})\nimport port\n"
    text += "m, t, n = sys.argv[1:4]\nsys.exit(port.main([m, '-t', str(float(t)), '-n', n]))\n"
    program = script(tmp_path, text)
    outcome = in_process(["conform", program], tmp_path)
    assert outcome.code == 2
    assert b"--args '{model} {temperature} [{steps} [{prompt}]]'" in outcome.err
    argv = ["conform", "--args", "{model} {temperature} [{steps} [{prompt}]]", program]
    outcome = in_process([*argv, "--only", "heads", "--only", "coins"], tmp_path)
    assert outcome.code == 0
    assert b"not drivable  coins" in outcome.out


def test_a_program_that_says_nothing_cannot_be_driven(tmp_path: Path) -> None:
    """Exit code 2, with its output."""
    outcome = in_process(["conform", script(tmp_path, "print('hello')")], tmp_path)
    assert outcome.code == 2
    assert b"hello" in outcome.out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "PROGRAM: expected a program"),
        (["./nothing"], "./nothing: no such program"),
        (["nothing-of-that-name"], "no such program"),
        (["true", "--only", "no"], "'no' is no property"),
        (["true", "--env", "x"], "expected NAME=VALUE"),
        (["true", "--begin", "("], "--begin: '('"),
        (["true", "--args", "{x}"], "{x} is not one of"),
        (["--replay", "."], "cmd: no such file"),
    ],
    ids=str,
)
def test_a_misuse_is_one_line(argv: list[str], words: str, tmp_path: Path) -> None:
    """What was found and what is expected."""
    outcome = in_process(["conform", *argv], tmp_path)
    assert outcome.code in (1, 2)
    assert words in outcome.err.decode()
    assert len(outcome.err.splitlines()) == 1


def test_the_list_names_every_property_and_its_cause(tmp_path: Path) -> None:
    """Two lines each."""
    outcome = in_process(["conform", "--list"], tmp_path)
    assert outcome.code == 0
    assert outcome.out.count(b"usual cause: ") >= 50


def test_a_record_that_lies_is_refused(tmp_path: Path) -> None:
    """`cmd` of another make, or damaged."""
    for text in ("", "# pyllm2: {", "# pyllm2: []", '# pyllm2: {"argv": 3}'):
        (tmp_path / "cmd").write_text(text)
        outcome = in_process(["conform", "--replay", str(tmp_path)], tmp_path)
        assert outcome.code == 1
        assert b"is not a finding" in outcome.err


def test_nothing_is_left_behind(ours: Path, tmp_path: Path) -> None:
    """A program that passes leaves no file in the working directory."""
    assert in_process(["conform", str(ours), "--only", "heads"], tmp_path).code == 0
    assert os.listdir(tmp_path) == []


def test_a_chat_is_tested_and_its_finding_replayed(ours: Path, tmp_path: Path) -> None:
    """Lines of stdin are in the folder; properties of the other mode are refused by name."""
    (wrong,) = [w for w in WRONG if w.name == "no space after [INST]"]
    program = build(wrong, tmp_path / "wrong")
    outcome = in_process(["conform", "--chat", "--only", "chat", str(program)], tmp_path)
    assert outcome.code == 1
    assert b"-m chat -y '' < stdin\n" in outcome.out
    folder = tmp_path / "conform.d" / "chat-1"
    assert (folder / "stdin").read_bytes().endswith(b"bc\nd\nab\ncd\nda\n")
    for argv, code in (((), 1), (("--", str(ours)), 0), (("--against", str(program)), 0)):
        replay = ["conform", "--replay", str(folder), *argv]
        assert in_process(replay, tmp_path).code == code
    again = subprocess.run([folder / "cmd"], capture_output=True)
    assert again.stdout == (folder / "got").read_bytes()
    for argv, words in (
        (("--only", "chat"), b"--only: chat is tested by --chat"),
        (("--chat", "--skip", "rope"), b"--skip: rope is not tested by --chat"),
        (("--chat", "--trainer"), b"--chat: not with --trainer"),
    ):
        outcome = in_process(["conform", *argv, str(ours)], tmp_path)
        assert (outcome.code, words in outcome.err) == (2, True)
    outcome = in_process(["conform", "--chat", "--", sys.executable, "-V"], tmp_path)
    assert (outcome.code, b"-m chat -y '' < stdin" in outcome.err) == (2, True)
