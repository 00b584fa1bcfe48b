"""Whatever happens to a valid file, the answer is a run or one clean line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ..cli.program import Outcome, as_process, in_process
from ..cli.tiny import checkpoint, lay_out
from .case import GENERATE, RUN, TOKENIZE
from .mutations import damaged
from .tokenizer_files import AT, GOOD

MODELS = damaged(
    [
        (checkpoint(0, True), range(0, 28, 4)),
        (checkpoint(0, False), range(0, 28, 4)),
        (checkpoint(1, True), range(0, 40, 4)),
        (checkpoint(1, False), range(0, 40, 4)),
    ]
)
VOCABULARIES = damaged([(GOOD, [0, *AT[:5], *(at + 4 for at in AT[:5]), AT[260], AT[260] + 4])])
PLAY = (*GENERATE, "--max-new-tokens", "2", "--prompt", "a cab \u00e9")
COMMANDS = st.sampled_from([PLAY, (*PLAY, "--mmap"), (*RUN, "-p", "0.5", "-t", "1", "-s", "1")])
MANY = settings(max_examples=max(300, settings().max_examples))
FEW = settings(max_examples=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a test run."""
    return tmp_path_factory.mktemp("mutation")


def check(outcome: Outcome) -> None:
    """A run; or exit code 1, one line after warnings at most, and nothing on stdout.

    A weight that is not a number may show only when some of the text is out.
    """
    if outcome.code == 0:
        assert b"error" not in outcome.err
        return
    *before, last = outcome.err.decode().splitlines()
    assert outcome.code == 1, outcome
    assert last.startswith("pyllm2: error: ")
    assert all(line.startswith("pyllm2: warning: ") for line in before)
    assert outcome.out == b"" or "non-finite" in last


@MANY
@given(MODELS, COMMANDS)
def test_a_damaged_checkpoint_runs_or_is_refused(
    folder: Path, model: bytes, argv: tuple[str, ...]
) -> None:
    """Never another exception, never a second line."""
    lay_out(folder, {"m.bin": model})
    check(in_process(argv, folder))


@MANY
@given(VOCABULARIES, COMMANDS | st.just(TOKENIZE))
def test_a_damaged_vocabulary_works_or_is_refused(
    folder: Path, vocabulary: bytes, argv: tuple[str, ...]
) -> None:
    """Never another exception, never a second line."""
    lay_out(folder, {"t.bin": vocabulary})
    check(in_process(argv, folder))


@FEW
@given(MODELS)
def test_a_damaged_checkpoint_harms_no_process(folder: Path, model: bytes) -> None:
    """With little memory, and nobody to catch a signal."""
    lay_out(folder, {"m.bin": model})
    check(as_process(PLAY, folder))


@FEW
@given(VOCABULARIES)
def test_a_damaged_vocabulary_harms_no_process(folder: Path, vocabulary: bytes) -> None:
    """With little memory, and nobody to catch a signal."""
    lay_out(folder, {"t.bin": vocabulary})
    check(as_process(PLAY, folder))
