"""llm.c's files: the table of bad ones, and valid ones damaged at random."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given

from pyllm2.errors import FileError, PyLLM2Error
from pyllm2.training.loader import DataLoader
from tests.hostile.case import Case, entries
from tests.hostile.llmc_files import (
    EVAL,
    EVALUATION,
    GOOD,
    GPT2,
    LLMC_FILES,
    PREPARE,
    SHARD,
    SHARDS,
    VOCABULARY,
)
from tests.hostile.mutations import damaged
from tests.support.command import Outcome, in_process
from tests.support.forked import as_fork
from tests.support.llama2_files import lay_out
from tests.support.profiles import at_least

HEADER = range(0, 32, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a test run."""
    path = tmp_path_factory.mktemp("llmc")
    lay_out(path, GOOD)
    return path


@pytest.mark.parametrize("case", LLMC_FILES, ids=str)
def test_a_bad_input_is_refused_in_one_line(case: Case, tmp_path: Path) -> None:
    """Exit code and line as in the table, nothing on stdout, no new file."""
    case.prepare(tmp_path)
    before = entries(tmp_path)
    case.check(as_fork(case.argv, tmp_path))
    assert entries(tmp_path) == before


@pytest.mark.parametrize("case", LLMC_FILES, ids=str)
def test_a_bad_input_is_refused_without_asserts(case: Case, tmp_path: Path) -> None:
    """`python -O` changes nothing, for no validation is an assert."""
    case.prepare(tmp_path)
    case.check(as_fork(case.argv, tmp_path, flags=["-O"]))


@pytest.mark.parametrize(
    ("data", "vocab_size", "error"), [row[1:] for row in SHARDS], ids=[row[0] for row in SHARDS]
)
def test_a_bad_shard_is_refused_in_one_line(
    data: bytes, vocab_size: int | None, error: str, tmp_path: Path
) -> None:
    """The bad file is found before the first batch, though another comes first."""
    (tmp_path / "a.bin").write_bytes(SHARD if vocab_size is None else SHARD[:1024] + bytes(80))
    (tmp_path / "b.bin").write_bytes(data)
    with pytest.raises(FileError) as refused:
        DataLoader(tmp_path / "?.bin", 1, 1, vocab_size=vocab_size)
    assert str(refused.value) == f"{tmp_path}/b.bin: {error}"


def check(outcome: Outcome) -> None:
    """Exit code 0; or 1 (2: too little text), one line, and nothing on stdout."""
    lines = outcome.err.decode().splitlines()
    if outcome.code == 0:
        assert not any("error" in line for line in lines)
        return
    assert outcome.code in (1, 2), outcome
    assert outcome.out == b""
    assert len(lines) == 1
    assert lines[0].startswith("pyllm2: error: ")


@at_least(60)
@given(damaged([(GPT2, HEADER)]))
def test_a_damaged_checkpoint_runs_or_is_refused(folder: Path, data: bytes) -> None:
    """No other exception, no second line; non-finite weights are no error here."""
    lay_out(folder, {**GOOD, "g.bin": data})
    check(in_process(EVAL, folder))


@at_least(60)
@given(damaged([(EVALUATION, [*HEADER, *range(1024, 1060, 2)])]))
def test_damaged_examples_run_or_are_refused(folder: Path, data: bytes) -> None:
    """No other exception, no second line of error."""
    lay_out(folder, {**GOOD, "e.bin": data})
    check(in_process(EVAL, folder))


@at_least(60)
@given(damaged([(VOCABULARY, HEADER)]))
def test_a_damaged_vocabulary_works_or_is_refused(folder: Path, data: bytes) -> None:
    """No file is left where it is refused."""
    lay_out(folder, {**GOOD, "v.bin": data})
    before = entries(folder)
    outcome = in_process(PREPARE, folder)
    check(outcome)
    for name in ("train.bin", "val.bin", "tokenizer.bin", "."):
        path = folder / "d" / name
        if outcome.code == 0:
            path.rmdir() if path.is_dir() else path.unlink()
    assert entries(folder) == before


@at_least(60)
@given(damaged([(SHARD, HEADER)]))
def test_a_damaged_shard_is_read_or_refused(folder: Path, data: bytes) -> None:
    """Batches that are read hold ids of the vocabulary."""
    path = folder / "shard"
    path.write_bytes(data)
    try:
        loader = DataLoader(path, 2, 3, vocab_size=40)
        for _ in range(loader.num_batches + 1):
            x, y = loader.next_batch()
            assert 0 <= min(x.min(), y.min()) <= max(x.max(), y.max()) < 40
    except PyLLM2Error as error:
        one_line(error)


def one_line(error: PyLLM2Error) -> None:
    assert "\n" not in str(error)
