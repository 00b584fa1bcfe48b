"""The table of README.md and the tests speak of the same rows."""

from __future__ import annotations

import re
from pathlib import Path

from tests.hostile.llmc_files import LLMC_FILES
from tests.hostile.test_refusals import TABLE
from tests.hostile.test_training import REFUSALS

TESTS = Path(__file__).parents[1]


def numbers(text: str) -> set[int]:
    """5, and 34–44 or 34 to 44: every number of the range."""
    found = set()
    for first, last in re.findall(r"(\d+)(?:(?: to |–)(\d+))?", text):
        found |= set(range(int(first), int(last or first) + 1))
    return found


ROWS: set[int] = set()
for _line in (Path(__file__).parent / "README.md").read_text("utf-8").splitlines():
    if _row := re.match(r"\| ([\d–]+) \|", _line):
        ROWS |= numbers(_row[1])


def test_rows_are_numbered_without_a_gap() -> None:
    """From 1 on, each once."""
    assert set(range(1, len(ROWS) + 1)) == ROWS


def test_every_case_has_a_row() -> None:
    """And the rows of files and flags have cases."""
    cases = {case.row for case in (*TABLE, *LLMC_FILES, *REFUSALS)}
    assert cases <= ROWS
    assert set(range(1, 34)) - cases == {4, 22}  # accepted: test_accepted.py


def test_docstrings_name_rows_that_exist() -> None:
    """`Row 14: ...` in a docstring of any test is a row of the table."""
    for path in TESTS.rglob("*.py"):
        for words in re.findall(r'"""Rows? (\d[^:\n]*):', path.read_text("utf-8")):
            assert numbers(words) <= ROWS, path
