"""Row 79: a disk that cannot be read (EIO) is one line, at whichever read it happens."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import in_process
from tests.support.llama2_files import lay_out
from tests.support.toy_training import TRAIN, write_shards

COMMANDS = {
    "generate": "generate m.bin --tokenizer t.bin --max-new-tokens 2 --backend numpy".split(),
    "prompt": "generate m.bin --tokenizer t.bin --prompt-file short.txt --backend numpy".split(),
    "run": "run m.bin -z t.bin -n 3 --backend numpy".split(),
    "chat": "chat m.bin --tokenizer t.bin --prompt a --backend numpy --max-new-tokens 1".split(),
    "tokenize": "tokenize --tokenizer t.bin --text-file text.txt".split(),
    "model": "tokenize --tokenizer text.model a".split(),
    "ranks": "tokenize --tokenizer ranks.txt 97 --decode".split(),
    "export": "export m.bin out.bin --format v1".split(),
    "quantize": "quantize m.bin out.bin --group-size 4 --report".split(),
    "tokenizer": "tokenizer export t.bin out.bin".split(),
    "prepare": "data prepare text.txt --tokenizer bytes --val-tokens 9 --out new".split(),
    "vocabulary": "tokenizer train text.txt --vocab-size 280 --out out.model".split(),
    "train": list(TRAIN),
    "resume": [*TRAIN, "--resume"],
}
NEEDS = {"model": "sentencepiece", "vocabulary": "sentencepiece"}
MOST = 300  # reads of the longest command, and some


class Reads:
    """Counts reads; the one of that number fails, and so do those after it."""

    def __init__(self, bad: int) -> None:
        self.bad, self.done = bad, 0

    def one(self) -> None:
        self.done += 1
        if self.done >= self.bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, bad: int) -> Iterator[Reads]:
    """Reads of inputs fail from number `bad` on."""
    reads = Reads(bad)

    class File(FileIO):
        def read(self, n: int = -1, /) -> bytes:  # type: ignore[override]
            reads.one()
            return super().read(n) or b""

        def readinto(self, data: Any, /) -> int:  # type: ignore[override]
            reads.one()
            return super().readinto(data) or 0

    fdopen, pread = os.fdopen, os.pread

    def opened(descriptor: int, mode: str = "r", buffering: int = -1, **more: Any) -> Any:
        if mode == "rb" and buffering == 0:
            return File(descriptor, mode)
        return fdopen(descriptor, mode, buffering, **more)

    def read_at(*arguments: int) -> bytes:
        reads.one()
        return pread(*arguments)

    def log(path: str, mode: str, **more: Any) -> Any:
        return File(path, mode) if mode == "rb" else open(path, mode, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", opened)
        patch.setattr(os, "pread", read_at)
        patch.setattr("pyllm2.training.log.open", log, raising=False)
        yield reads


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All files that a command reads, with a run that has been stopped after its first half."""
    folder = tmp_path_factory.mktemp("inputs")
    lay_out(folder)
    write_shards(folder)
    (folder / "text.txt").write_text("one two three four five six seven eight nine\n" * 20)
    (folder / "short.txt").write_text("one")
    (folder / "ranks.txt").write_text("".join(f"{r}\n" for r in map(_rank, range(256))))
    vocabulary = "tokenizer train text.txt --vocab-size 280 --out text.model"
    in_process(vocabulary.split(), folder)
    in_process([*TRAIN, "--save-every", "6"], folder)
    for path in (folder / "out").glob("step_00000012*"):
        path.unlink()
    return folder


def _rank(byte: int) -> str:
    import base64

    return f"{base64.b64encode(bytes([byte])).decode()} {byte}"


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.usefixtures("no_plots")
def test_a_read_error_is_one_line_with_the_file(
    name: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every read until the command succeeds; no output is left, and no old one lost."""
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    bad = 0
    while True:
        bad += 1 + bad // 10
        assert bad < MOST
        folder = tmp_path / str(bad)
        shutil.copytree(inputs, folder)
        if name != "resume":
            shutil.rmtree(folder / "out")
        before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
        with failing(monkeypatch, bad) as reads:
            outcome = in_process(COMMANDS[name], folder)
        if reads.done < bad:
            assert outcome.code == 0, outcome.err
            assert bad > 1
            break
        *said, last = outcome.err.decode().splitlines()
        assert outcome.code == 1, outcome.err.decode()
        assert not any("Traceback" in line for line in said), outcome.err.decode()
        file = last.removeprefix("pyllm2: error: ").partition(": ")[0]
        assert last.endswith(": input/output error"), last
        assert (folder / file).exists(), last
        after = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
        assert {name: after.get(name) for name in before} == before
        assert not list(folder.rglob(".pyllm2-*"))
        shutil.rmtree(folder)
