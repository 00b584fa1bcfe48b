"""main.log: lines as llm.c writes them, also after a run was killed and resumed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pyllm2.errors import FileError
from pyllm2.training.folder import open_folder
from pyllm2.training.log import Log, read_log, training_line, validation_line


def test_lines_have_the_decimals_of_the_original() -> None:
    """Losses have four decimals, learning rates six, gradient norms two."""
    assert validation_line(0, 4.123456) == "s:0 tel:4.1235"
    assert training_line(0, 4.56789, 3e-4, 12.3456) == "s:0 trl:4.5679 lr:0.000300 norm:12.35"


def test_a_new_run_truncates_the_log(tmp_path: Path) -> None:
    """A resumed run appends to the log; a new run starts an empty one."""
    path = tmp_path / "main.log"
    Log(path).add("a")
    Log(path, resume=True).add("b")
    assert path.read_bytes() == b"a\nb\n"
    Log(path).add("c")
    assert path.read_bytes() == b"c\n"


def test_the_originals_log_byte_for_byte(shared: Path, tmp_path: Path) -> None:
    """The recorded calls give the recorded file, except for lines of multiple-choice evaluation."""
    folder = shared / "golden" / "llmc" / "logger"
    calls = json.loads((folder / "calls.json").read_text())["calls"]
    lines = {"val": validation_line, "train": training_line}
    path = tmp_path / "main.log"
    path.write_text("an older log\n")
    for resume in (False, True):
        log = Log(path, resume)
        for kind, *values in calls:
            if kind in lines:
                log.add(lines[kind](*values))
    recorded = (folder / "main.log").read_bytes().splitlines()
    assert path.read_bytes().splitlines() == [line for line in recorded if b"eval" not in line]


def test_the_last_line_of_a_repeated_step_counts(tmp_path: Path) -> None:
    """A resumed run repeats steps; `read_log` returns the last value of each, sorted by step."""
    log = Log(tmp_path / "main.log")
    for step, loss in ((0, 9.0), (1, 8.0), (2, 7.0), (1, 6.0)):
        log.add(training_line(step, loss, 0.1, 1.0))
    log.add(validation_line(0, 5.0))
    assert read_log(log.path) == {"tel": {0: 5.0}, "trl": {0: 9.0, 1: 6.0, 2: 7.0}, "eval": {}}


def test_a_partial_line_is_terminated_and_skipped(tmp_path: Path) -> None:
    """A resumed run ends the line that a killed run left incomplete."""
    path = tmp_path / "main.log"
    path.write_bytes(b"s:0 trl:4.0000 lr:0.1 norm:1.00\ns:1 tr")
    Log(path, resume=True).add("s:1 trl:3.0000 lr:0.100000 norm:1.00")
    assert path.read_bytes().count(b"\n") == 3
    assert read_log(path)["trl"] == {0: 4.0, 1: 3.0}


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"s:x trl:1", b"s:1 trl:abc", b"\xff\xfe", b"s:1 other:2"),
        *(b"s:1 trl:nan", b"s:1 tel:inf", b"s:1 tel:1e300", b"s:-1 tel:1"),
        *(b"s:" + b"9" * n + b" tel:1" for n in (19, 400, 5000)),
    ],
    ids=repr,
)
def test_lines_that_are_not_log_lines_are_skipped(line: bytes, tmp_path: Path) -> None:
    """`read_log` skips empty lines, other text, bytes that are not UTF-8 and unknown streams."""
    path = tmp_path / "main.log"
    path.write_bytes(line + b"\ns:2 tel:1.5000\n")
    assert read_log(path) == {"tel": {2: 1.5}, "trl": {}, "eval": {}}


def test_a_log_that_cannot_be_opened_is_a_file_error(tmp_path: Path) -> None:
    """Writing and reading report the path and the system's reason."""
    (tmp_path / "main.log").mkdir()
    for act in (Log, read_log):
        with pytest.raises(FileError, match=r"main\.log: is a directory"):
            act(tmp_path / "main.log")


@pytest.mark.parametrize("name", ["main.log", ".pid"])
def test_only_regular_files_are_written(tmp_path: Path, name: str) -> None:
    """A FIFO (opening would block) and a symlink (to a file elsewhere) are refused."""
    other = tmp_path / "other"
    other.write_bytes(b"precious")
    for place, make in (("a", os.mkfifo), ("b", lambda path: os.symlink(other, path))):
        (tmp_path / place).mkdir()
        make(str(tmp_path / place / name))
        with pytest.raises(FileError, match=name), open_folder(tmp_path / place, resume=False):
            raise AssertionError("opened")
    assert other.read_bytes() == b"precious"
