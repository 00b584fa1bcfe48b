"""Commands called from Python, where the standard streams may be of any kind, as in a notebook."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from pyllm2.cli import main
from tests.hostile.case import CHAT, GENERATE, RUN
from tests.support.command import in_process
from tests.support.llama2_files import byte_id, lay_out, saying
from tests.support.toy_training import TRAIN, write_shards

EURO = "\u20ac"
COMMANDS: dict[str, tuple[str, ...]] = {
    "generate": (*map(str, GENERATE), "--prompt", "ab" + EURO),
    "run": tuple(map(str, RUN)),
    "stdin": (*map(str, GENERATE), "--prompt-file", "-"),
    "chat": (*map(str, CHAT), "--max-new-tokens", "2"),
    "run chat": ("run", "m.bin", "-z", "t.bin", "-m", "chat", "-n", "20", "--backend", "numpy"),
    "tokenize": ("tokenize", "--tokenizer", "t.bin", "--text-file", "-"),
    "decode": ("tokenize", "--tokenizer", "t.bin", "--decode", str(byte_id(0xE2)) + " 133 175"),
    "export": ("export", "m.bin", "out.bin", "--format", "v1"),
    "prepare": tuple("data prepare - --tokenizer bytes --val-tokens 9 --out data".split()),
    "train": tuple(TRAIN),
    "help": ("--help",),
    "usage": ("generate", "--nothing"),
    "bad": ("generate", "none.bin"),
}
TYPED = f"a b\n{EURO}\n" * 10


class Notebook:
    """A stream with nothing but `write`, such as a notebook may have."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def getvalue(self) -> str:
        return self.text


def call(
    argv: Sequence[str], folder: Path, monkeypatch: pytest.MonkeyPatch, out: Any, err: Any
) -> int:
    monkeypatch.chdir(folder)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO(TYPED))
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        return main(list(argv))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lay_out(tmp_path, {"m.bin": saying(EURO.encode())})
    write_shards(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", [io.StringIO, Notebook])
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.usefixtures("no_plots")
def test_a_stream_of_text_gets_the_same_text(
    name: str, kind: Any, folder: Path, tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code and characters are those of a stream of bytes; stdin too may be text only."""
    other = tmp_path_factory.mktemp("other")
    for path in folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    argv = [*COMMANDS[name], *(["--seed", "1"] if name in ("generate", "stdin", "chat") else [])]
    usual = in_process(argv, other, TYPED.encode())
    assert usual.code in (0, 1, 2)
    assert b"Traceback" not in usual.err
    out, err = kind(), kind()
    code = call(argv, folder, monkeypatch, out, err)
    assert (code, "Traceback" in err.getvalue()) == (usual.code, False), err.getvalue()
    assert out.getvalue() == usual.out.decode("utf-8", "replace")


@pytest.mark.parametrize("name", ["generate", "tokenize", "chat"])
def test_a_closed_stdin_is_one_line(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of commands that need it; exit code 1."""
    argv = {**COMMANDS, "generate": COMMANDS["stdin"]}[name]
    closed, out, err = io.StringIO(), io.StringIO(), io.StringIO()
    closed.close()
    monkeypatch.chdir(folder)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", closed)
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        assert main(list(argv)) == 1
    assert err.getvalue().endswith("pyllm2: error: standard input: is closed\n")


@pytest.mark.usefixtures("no_plots")
def test_training_runs_in_a_thread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Python cannot handle signals."""
    codes: list[int] = []
    monkeypatch.chdir(folder)
    thread = Thread(target=lambda: codes.append(main(list(TRAIN))))
    thread.start()
    thread.join()
    assert codes == [0]
