"""The helpers in tests/support."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import FIRST
from tests.hostile.case import TOKENIZE
from tests.support.command import Argument, as_process
from tests.support.forked import as_fork
from tests.support.llama2_files import lay_out

COMMANDS: dict[str, tuple[Argument, ...]] = {
    "usage": ("generate", "--seed"),
    "refusal": ("generate", "none.bin", "--backend", "numpy"),
    "stdin": (*TOKENIZE[:-1], "--text-file", "-"),
    "bytes": (*TOKENIZE[:-1], b"a\xff"),
    "help": ("--help",),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_forked_command_behaves_like_a_process(name: str, tmp_path: Path) -> None:
    """Exit code, stdout and stderr of a forked child equal those of a separate process."""
    lay_out(tmp_path)
    both = [run(COMMANDS[name], tmp_path, b"a cab\xff") for run in (as_fork, as_process)]
    assert both[0] == both[1]


def test_the_files_that_start_first_exist() -> None:
    """A file that is renamed keeps its place in the order."""
    tests = Path(__file__).parents[1]
    assert [name for name in FIRST if not (tests / name).exists()] == []
    assert len(set(FIRST)) == len(FIRST)
