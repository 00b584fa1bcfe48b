"""`pyllm2 step` in lines: every command says what it did."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyllm2 import backends
from pyllm2.observe.files import load_trace
from pyllm2.observe.step_plain import ABBREVIATIONS, COMMANDS, PlainStep
from pyllm2.observe.step_runs import PromptRun, training_run
from pyllm2.observe.stepper import Stepper
from tests.observe.models import fixed
from tests.support.command import in_process

IDS = [1, 5, 7, 5]


def said(*commands: str, coloured: bool = False, run: Any = None) -> str:
    """What is printed after the first screen."""
    stdin, stdout = io.StringIO("\n".join(commands)), io.StringIO()
    run = run or PromptRun(fixed("llama2"), IDS)
    with Stepper(run, compare_with=["numpy"]) as stepper:
        PlainStep(stepper, stdin, stdout, coloured, echo=True).cmdloop()
    return stdout.getvalue().partition("(step) ")[2]


def test_moving() -> None:
    text = said("next", "", "next 3", "back 2", "n", "b", "run layer=1 op=swiglu", "out", "next")
    heads = [line for line in text.splitlines() if line.startswith("op ")]
    numbers = [int(line.split()[1]) for line in heads]
    assert numbers == [1, 2, 5, 3, 4, 3, 28, 31, 0]
    assert "op 28 of 33 · token 1 of 4 1 · layer 1 swiglu of w3 · numpy" in heads
    assert heads[-2].endswith("by layers")
    assert "token 2 of 4" in heads[-1]


def test_lines_of_an_op() -> None:
    """With the variables that are no arguments, and the way out."""
    text = said("next", "into", "next", "next", "next", "i", "i", "out")
    assert "by lines, 1 of 3" in text
    assert "mean_square = np.mean(x * x" in text
    assert "    mean_square  (1, 1)" in text
    assert "    returns      (1, 16)" in text
    assert "these are the smallest strides" in text


def test_the_end() -> None:
    assert "the end of the run" in said("run", "next")
    assert "the beginning of the run" in said("back")
    assert "no op from here to the end has not finite" in said("run not finite")
    assert said("run").count("next: ") == 1


def test_looking() -> None:
    text = said(
        "run op=attention", "where", "list", "list c", "show", "show q", "compare", "p q[0, 0]"
    )
    assert "> attention" in text
    assert ". layer 1 (15 ops)" in text
    assert "NumPy, pyllm2/llama2/ops.py:" in text
    assert "void llama2_attention(" in text
    assert "q (1, 4, 4): " in text
    assert "backend             ulp  of bound\nnumpy " in text
    assert "float32" in text or "(4,)" in text
    assert "\x1b[0;38;2;" in said("show out", coloured=True)
    assert "\x1b" not in said("show out", "show table")


def test_changing(tmp_path: Path) -> None:
    """`set` and `use` show the op anew; what is saved can be read as a trace."""
    file = tmp_path / "t.npz"
    text = said("n", "set out[:] = 2", "p out.sum()", "use numpy", "finish", f"save {file}")
    assert "2 … 2, mean 2" in text
    assert "changed" in text
    assert "32.0" in text
    found = load_trace(file)
    assert len(found) == 34
    np.testing.assert_array_equal(found[2].inputs["x"], found[1].output)


def test_training() -> None:
    run = training_run(fixed("gpt2"), IDS)
    text = said("where", "run phase=backward", "run op=adamw_update", "compare", run=run)
    assert ". wte adamw_update" in text
    assert "update 1 of 1, backward" in text
    assert "w_new" in text
    assert "numpy" in text.splitlines()[-2]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("frobnicate", "'frobnicate' is no command"),
        ("next x", "x: expected how many times"),
        ("run layer=q", "layer=q: expected a whole number"),
        ("list fortran", "fortran: expected numpy, numba, c"),
        ("show nosuch", "nosuch: NameError"),
        ("show 'text'", "'text': expected an array of numbers"),
        ("p", "p: expected an expression"),
        ("p 1/0", "ZeroDivisionError"),
        ("set", "expected NAME = VALUE"),
        ("use fortran", "choose from"),
        ("save", "save: expected a file name"),
        ("save x.txt", "ends in .npz"),
        ("save /nosuch/x.npz", "/nosuch"),
        ("help nosuch", "'nosuch' is no command"),
    ],
)
def test_a_wrong_command_is_one_line_and_the_session_goes_on(command: str, words: str) -> None:
    text = said(command, "p 40 + 2")
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert words in line
    assert "42" in text


def test_every_command_has_help() -> None:
    """A line each, a page for one, also by its letter; a letter belongs to one command."""
    lines = said("help").splitlines()[1:-1]
    assert [line.split()[0].rstrip(":") for line in lines] == COMMANDS
    assert "run not finite" in said("help r")
    assert set(ABBREVIATIONS.values()) <= set(COMMANDS)
    for short, name in ABBREVIATIONS.items():
        assert getattr(PlainStep, f"do_{short}") is getattr(PlainStep, f"do_{name}")


def test_the_command(tmp_path: Path) -> None:
    """The bundled model; a pipe needs no --plain."""
    commands = b"run layer=2 op=attention\nout\nfinish\nq\n"
    argv = ["step", "--prompt", "Once upon", "--compare", "numpy"]
    outcome = in_process(argv, tmp_path, commands)
    assert (outcome.code, outcome.err) == (0, b"")
    assert b"layer 2 attention" in outcome.out
    assert "token 2 of 3 'Once'" in outcome.out.decode()
    train = in_process(["step", "--train", "--updates", "2"], tmp_path, b"run op=global_norm\n")
    assert train.code == 0
    assert b"update 1 of 2, update" in train.out


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["nosuch.bin"], 1),
        (["--compare", "fortran"], 2),
        (["--ids", "1,99999"], 1),
        (["--new-tokens", "100000"], 1),
        (["--train", "--ids", "1"], 2),
        (["--updates", "0"], 2),
    ],
)
def test_what_is_wrong_is_one_line(argv: list[str], code: int, tmp_path: Path) -> None:
    outcome = in_process(["step", *argv], tmp_path)
    assert (outcome.code, outcome.out) == (code, b"")
    assert outcome.err.count(b"\n") == 1


def test_backends_are_those_that_run_here() -> None:
    with Stepper(PromptRun(fixed("llama2"), IDS)) as stepper:
        assert stepper.compare_with == [n for n in backends.NAMES if not backends.why_not(n)]
