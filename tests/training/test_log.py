"""main.log: the original's lines, and reading what a killed and resumed run has left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyllm2.errors import FileError
from pyllm2.training.log import Log, read_log, training_line, validation_line


def test_the_lines() -> None:
    """Four decimals, six, two."""
    assert validation_line(0, 4.123456) == "s:0 tel:4.1235"
    assert training_line(0, 4.56789, 3e-4, 12.3456) == "s:0 trl:4.5679 lr:0.000300 norm:12.35"


def test_a_new_run_begins_with_an_empty_log(tmp_path: Path) -> None:
    """One that is resumed goes on with what is there."""
    path = tmp_path / "main.log"
    Log(path).add("a")
    Log(path, resume=True).add("b")
    assert path.read_bytes() == b"a\nb\n"
    Log(path).add("c")
    assert path.read_bytes() == b"c\n"


def test_the_originals_log_byte_for_byte(shared: Path, tmp_path: Path) -> None:
    """The recorded calls, without and with resume; multiple choice is not ours."""
    folder = shared / "golden" / "llmc" / "logger"
    calls = json.loads((folder / "calls.json").read_text())["calls"]
    lines = {"val": validation_line, "train": training_line}
    path = tmp_path / "main.log"
    path.write_text("what was there\n")
    for resume in (False, True):
        log = Log(path, resume)
        for kind, *values in calls:
            if kind in lines:
                log.add(lines[kind](*values))
    recorded = (folder / "main.log").read_bytes().splitlines()
    assert path.read_bytes().splitlines() == [line for line in recorded if b"eval" not in line]


def test_the_last_line_of_a_step_counts(tmp_path: Path) -> None:
    """A resumed run says its steps again; steps come back in order."""
    log = Log(tmp_path / "main.log")
    for step, loss in ((0, 9.0), (1, 8.0), (2, 7.0), (1, 6.0)):
        log.add(training_line(step, loss, 0.1, 1.0))
    log.add(validation_line(0, 5.0))
    assert read_log(log.path) == {"tel": {0: 5.0}, "trl": {0: 9.0, 1: 6.0, 2: 7.0}, "eval": {}}


def test_half_a_line_of_a_killed_run_is_ended_and_skipped(tmp_path: Path) -> None:
    """So that the next line is whole."""
    path = tmp_path / "main.log"
    path.write_bytes(b"s:0 trl:4.0000 lr:0.1 norm:1.00\ns:1 tr")
    Log(path, resume=True).add("s:1 trl:3.0000 lr:0.100000 norm:1.00")
    assert path.read_bytes().count(b"\n") == 3
    assert read_log(path)["trl"] == {0: 4.0, 1: 3.0}


@pytest.mark.parametrize("line", [b"", b"s:x trl:1", b"s:1 trl:abc", b"\xff\xfe", b"s:1 other:2"])
def test_lines_of_another_kind_are_skipped(line: bytes, tmp_path: Path) -> None:
    """Whatever has been written there."""
    path = tmp_path / "main.log"
    path.write_bytes(line + b"\ns:2 tel:1.5000\n")
    assert read_log(path) == {"tel": {2: 1.5}, "trl": {}, "eval": {}}


def test_a_log_that_cannot_be_written_or_read_is_one_line(tmp_path: Path) -> None:
    """The path and the system's reason."""
    (tmp_path / "main.log").mkdir()
    for act in (Log, read_log):
        with pytest.raises(FileError, match=r"main\.log: is a directory"):
            act(tmp_path / "main.log")
