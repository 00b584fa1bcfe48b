"""The table of bad inputs, run as a user would meet it: processes, little memory, a time limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..cli.program import as_process, in_process, without_asserts
from .case import RUN, Case, entries
from .model_files import MODEL_FILES
from .other_files import OTHER_FILES
from .requests import REQUESTS
from .tokenizer_files import TOKENIZER_FILES
from .weights import NOT_FINITE

TABLE = [*MODEL_FILES, *NOT_FINITE, *OTHER_FILES, *TOKENIZER_FILES, *REQUESTS]


@pytest.mark.parametrize("case", TABLE, ids=str)
def test_a_bad_input_is_refused_in_one_line(case: Case, tmp_path: Path) -> None:
    """Exit code, one line that names the fault, nothing on stdout, nothing left behind."""
    case.prepare(tmp_path)
    before = entries(tmp_path)
    case.check(as_process(case.argv, tmp_path))
    assert entries(tmp_path) == before


@pytest.mark.parametrize("case", [case for case in TABLE if case.run], ids=str)
def test_the_drop_in_refuses_it_in_the_same_words(case: Case, tmp_path: Path) -> None:
    """Where `run` promises no bytes of the original, its refusals are those of `generate`."""
    case.prepare(tmp_path)
    case.check(in_process(RUN, tmp_path))


@pytest.mark.parametrize("case", [c.for_tokenize() for c in TABLE if c.tokenize], ids=str)
def test_tokenize_refuses_a_bad_vocabulary(case: Case, tmp_path: Path) -> None:
    """A fault of the vocabulary is named without a model, too."""
    case.prepare(tmp_path)
    case.check(in_process(case.argv, tmp_path))


def test_every_row_is_refused_without_asserts(tmp_path: Path) -> None:
    """Row 68: `python -O` changes nothing, for no validation is an assert."""
    jobs = []
    for i, case in enumerate(TABLE):
        folder = tmp_path / str(i)
        folder.mkdir()
        case.prepare(folder)
        jobs.append((folder, case.argv))
    outcomes = without_asserts(jobs)
    assert len(outcomes) == len(TABLE)
    for case, outcome in zip(TABLE, outcomes, strict=True):
        case.check(outcome)
