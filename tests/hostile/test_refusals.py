"""The table of bad inputs, run in processes with little memory and a time limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.case import RUN, Case, entries
from tests.hostile.folder_files import FOLDER_FILES
from tests.hostile.model_files import MODEL_FILES
from tests.hostile.other_files import OTHER_FILES
from tests.hostile.requests import REQUESTS
from tests.hostile.text_files import TEXT_FILES
from tests.hostile.tokenizer_files import TOKENIZER_FILES
from tests.hostile.weights import NOT_FINITE
from tests.support.command import in_process
from tests.support.forked import as_fork

TABLE = [*MODEL_FILES, *NOT_FINITE, *OTHER_FILES, *TOKENIZER_FILES, *TEXT_FILES, *REQUESTS]
TABLE += FOLDER_FILES


@pytest.mark.parametrize("case", TABLE, ids=str)
def test_a_bad_input_is_refused_in_one_line(case: Case, tmp_path: Path) -> None:
    """Exit code and line as in the table, nothing on stdout, no new file."""
    case.prepare(tmp_path)
    before = entries(tmp_path)
    case.check(as_fork(case.argv, tmp_path))
    assert entries(tmp_path) == before


@pytest.mark.parametrize("case", [case for case in TABLE if case.run], ids=str)
def test_the_drop_in_refuses_it_in_the_same_words(case: Case, tmp_path: Path) -> None:
    """`run` refuses in the words of `generate`."""
    case.prepare(tmp_path)
    case.check(in_process(RUN, tmp_path))


@pytest.mark.parametrize("case", [c.for_tokenize() for c in TABLE if c.tokenize], ids=str)
def test_tokenize_refuses_a_bad_vocabulary(case: Case, tmp_path: Path) -> None:
    """`tokenize` refuses a bad tokenizer without a model."""
    case.prepare(tmp_path)
    case.check(in_process(case.argv, tmp_path))


@pytest.mark.parametrize("case", TABLE, ids=str)
def test_a_bad_input_is_refused_without_asserts(case: Case, tmp_path: Path) -> None:
    """`python -O` changes nothing, for no validation is an assert."""
    case.prepare(tmp_path)
    case.check(as_fork(case.argv, tmp_path, flags=["-O"]))
