"""Usage errors that say what to type instead."""

from __future__ import annotations

from pathlib import Path

import pytest

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
