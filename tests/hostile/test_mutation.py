"""A damaged file is refused in one line, or runs: property tests that flip, cut and extend."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hostile.case import GENERATE, RUN, TOKENIZE
from tests.hostile.mutations import damaged
from tests.hostile.tokenizer_files import AT, GOOD
from tests.support.command import Outcome, in_process
from tests.support.forked import as_fork
from tests.support.llama2_files import checkpoint, lay_out
from tests.support.profiles import at_least, few

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a test run."""
    return tmp_path_factory.mktemp("mutation")


def check(outcome: Outcome) -> None:
    """Exit code 0; or 1, one line after warnings at most, and nothing on stdout.

    A non-finite weight may show only after some text was written.
    """
    if outcome.code == 0:
        assert b"error" not in outcome.err
        return
    *before, last = outcome.err.decode().splitlines()
    assert outcome.code == 1, outcome
    assert last.startswith("pyllm2: error: ")
    assert all(line.startswith("pyllm2: warning: ") for line in before)
    assert outcome.out == b"" or "non-finite" in last


@at_least(300)
@given(MODELS, COMMANDS)
def test_a_damaged_checkpoint_runs_or_is_refused(
    folder: Path, model: bytes, argv: tuple[str, ...]
) -> None:
    """No other exception, no second line of error."""
    lay_out(folder, {"m.bin": model})
    check(in_process(argv, folder))


@at_least(300)
@given(VOCABULARIES, COMMANDS | st.just(TOKENIZE))
def test_a_damaged_vocabulary_works_or_is_refused(
    folder: Path, vocabulary: bytes, argv: tuple[str, ...]
) -> None:
    """No other exception, no second line of error."""
    lay_out(folder, {"t.bin": vocabulary})
    check(in_process(argv, folder))


@few(50)
@given(MODELS)
def test_a_damaged_checkpoint_harms_no_process(folder: Path, model: bytes) -> None:
    """In a process with little memory: no signal ends it."""
    lay_out(folder, {"m.bin": model})
    check(as_fork(PLAY, folder))


@few(50)
@given(VOCABULARIES)
def test_a_damaged_vocabulary_harms_no_process(folder: Path, vocabulary: bytes) -> None:
    """In a process with little memory: no signal ends it."""
    lay_out(folder, {"t.bin": vocabulary})
    check(as_fork(PLAY, folder))
