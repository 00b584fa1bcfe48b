"""Usage errors that say what to type instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyllm2.cli import flags
from tests.support.command import in_process


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (
            ("generate", "--prompt", "-Once"),
            "--prompt: expected one argument; a value with a dash in front: --prompt=-Once",
        ),
        (
            ("chat", "m.bin", "--system", "-a'b"),
            "--system: expected one argument; a value with a dash in front: --system='-a'\"'\"'b'",
        ),
        (("generate", "--prompt", "--seed", "1"), "--prompt: expected one argument"),
        (("generate", "--prompt"), "--prompt: expected one argument"),
    ],
)
def test_a_value_that_looks_like_a_flag(argv: tuple[str, ...], error: str, tmp_path: Path) -> None:
    """The error gives the form with an equals sign, quoted for a shell."""
    outcome = in_process(argv, tmp_path)
    expected = f"pyllm2: error: {error} (see pyllm2 {argv[0]} --help)\n"
    assert (outcome.code, outcome.err.decode()) == (2, expected)


@pytest.mark.parametrize(
    "argv",
    [
        ("diff", "--backends"),
        ("bench", "--shape", "260K", "--backends"),
        ("step", "--compare"),
        ("warmup", "--only"),
    ],
    ids=lambda argv: argv[0],
)
def test_a_backend_that_does_not_exist(argv: tuple[str, ...], tmp_path: Path) -> None:
    """Wrong usage, before any work; a near miss is named."""
    for names, problem in (("numpy,c-strikt", "did you mean c-strict"), ("numpy,", "''")):
        outcome = in_process([*argv, names], tmp_path)
        assert (outcome.code, outcome.out) == (2, b"")
        assert f"{argv[-1]}: invalid choice: " in outcome.err.decode()
        assert problem in outcome.err.decode()


def test_a_backend_named_twice_is_one(tmp_path: Path) -> None:
    argv = ["diff", "--backends", "numpy,numpy", "--ids", "1,2", "--json"]
    outcome = in_process(argv, tmp_path)
    assert outcome.code == 0
    assert b"numpy, numpy" not in outcome.out
    assert flags.names_of(("a", "b"))("b,a,b") == ["b", "a"]
