"""`pyllm2 train text`: one command from a text to a model."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path

import pytest

from pyllm2.cli import train_run, train_text
from tests.support.command import in_process

pytest.importorskip("sentencepiece")

OUT = "run[1] of $HOME"  # neither a pattern nor a variable
TEXT = "\n\n".join(
    f"The {animal} saw a {thing}. It was a very {size} {thing}, and the {animal} was glad."
    for animal in ("cat", "dog", "bird", "mouse", "horse")
    for thing in ("ball", "tree", "house", "star", "boat")
    for size in ("big", "small", "red", "old")
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, the run made from it, and stderr in `said`."""
    path = tmp_path_factory.mktemp("text")
    (path / "animals.txt").write_text(TEXT)
    argv = ("train", "text", "animals.txt", "--out", OUT, "--minutes", "0.01")
    outcome = in_process((*argv, "--backend", "numpy"), path)
    assert outcome.code == 0, outcome.err.decode()
    (path / "said").write_bytes(outcome.err)
    return path


def test_it_says_what_it_chose(folder: Path) -> None:
    """stderr names the vocabulary, the size and the training command."""
    said = (folder / "said").read_text()
    assert "bytes of text: a vocabulary of" in said
    assert "0.01 minutes: a model of" in said
    assert "pyllm2: pyllm2 train llama2 --init dim=32,layers=3" in said
    assert f"--out {shlex.quote(OUT)}" in said
    assert f"another folder: --init {shlex.quote(OUT + '/model.bin')}" in said


def test_the_model_plays_with_its_own_tokenizer(folder: Path) -> None:
    """`generate` finds the tokenizer beside the model."""
    argv = ("generate", f"{OUT}/model.bin", "--backend", "numpy", "--max-new-tokens", "5")
    outcome = in_process((*argv, "--seed", "1", "--prompt", "The cat"), folder)
    assert outcome.code == 0, outcome.err.decode()
    assert outcome.out.startswith(b"The cat")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("animals.txt", "--out", OUT), f"{OUT}: already contains a run: --resume continues it"),
        (
            ("animals.txt", "--out", "said"),
            "said: already exists and is no run: choose a new folder",
        ),
        (("nowhere.txt", "--out", "x"), "nowhere.txt: no such file or directory"),
        (("few.txt", "--out", "x"), "few.txt: a text of at least"),
    ],
)
def test_what_cannot_be_is_refused(folder: Path, argv: tuple[str, ...], message: str) -> None:
    """One line, and no file is left."""
    (folder / "few.txt").write_text("Too short to learn from.\n" * 3)
    outcome = in_process(("train", "text", *argv, "--backend", "numpy"), folder)
    assert outcome.code == 1
    assert outcome.err.decode().splitlines()[-1].startswith(f"pyllm2: error: {message}")
    assert not (folder / "x").exists()


@pytest.mark.parametrize("existed", [True, False])
@pytest.mark.parametrize("where", ["_choose", "_tokenizer", "train"])
def test_an_interrupted_start_can_be_tried_again(
    where: str, existed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a checkpoint nothing is left of it, but for a folder that was there before."""
    (tmp_path / "animals.txt").write_text(TEXT)
    out = "x" if existed else "x/y/z"
    if existed:
        (tmp_path / "x").mkdir()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if where == "train":
        monkeypatch.setattr(train_run, "_trainer", interrupt)
    else:
        monkeypatch.setattr(f"pyllm2.cli.train_text.{where}", interrupt)
    argv = f"train text animals.txt --out {out} --minutes 0.01 --backend numpy".split()
    assert in_process(argv, tmp_path).code == 130
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == ["animals.txt", "x"][: 1 + existed]


def test_a_run_is_resumed_or_replaced_by_the_same_command(folder: Path) -> None:
    """`--resume` needs the folder only; `--force` trains anew, here with another seed."""
    again = f"train text --backend numpy --resume --out={OUT}".split(maxsplit=5)
    outcome = in_process(again, folder)
    assert outcome.code == 0, outcome.err.decode()
    assert b"resumed from" in outcome.err
    before = (folder / OUT / "model.bin").read_bytes()
    argv = ("train", "text", "animals.txt", "--out", OUT, "--minutes", "0.01", "--seed", "2")
    outcome = in_process((*argv, "--backend", "numpy", "--force"), folder)
    assert outcome.code == 0, outcome.err.decode()
    assert (folder / OUT / "model.bin").read_bytes() != before


def test_a_run_is_extended(folder: Path, tmp_path: Path) -> None:
    """`--extend N`: N updates after the newest checkpoint, then `--resume` knows the new end.

    Events are JSON lines.
    """
    out = tmp_path / "run"
    shutil.copytree(folder / OUT, out)
    last = max(int(path.stem[5:]) for path in out.glob("step_*"))
    argv = ("train", "text", "--out", "run", "--extend", "3", "--backend", "numpy", "--json")
    outcome = in_process(argv, tmp_path)
    assert outcome.code == 0, outcome.err.decode()
    events = [json.loads(line) for line in outcome.out.splitlines()]
    assert [e["step"] for e in events if e["event"] == "update"] == [last + i for i in (1, 2, 3)]
    assert events[-1]["event"] == "end"
    assert events[-1]["step"] == last + 3
    assert events[-1]["bits_per_byte"] > 0
    outcome = in_process(("train", "llama2", "--out", "run", "--resume"), tmp_path)
    assert outcome.code == 0, outcome.err.decode()
    assert (out / f"step_{last + 3:08d}.safetensors").exists()


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ("train text --out new --extend 5", 1, "new: has no checkpoint to go on from"),
        ("train llama2 --out new --extend 5", 1, "new: has no checkpoint to go on from"),
        ("train llama2 --out new --extend 5 --steps 9", 2, "--extend and --steps: expected one"),
        ("train text --out new --extend 0", 2, "--extend: "),
    ],
)
def test_what_cannot_be_extended(argv: str, code: int, message: str, tmp_path: Path) -> None:
    """One line, and no folder is made."""
    outcome = in_process(argv.split(), tmp_path)
    assert outcome.code == code
    assert outcome.err.decode().startswith(f"pyllm2: error: {message}")
    assert not (tmp_path / "new").exists()


def test_two_at_once(tmp_path: Path) -> None:
    """The second one says who is at work, and leaves the first one's files alone."""
    (tmp_path / "animals.txt").write_text(TEXT)
    argv = "train text animals.txt --out x --minutes 0.01 --backend numpy".split()
    with train_text._new_run(str(tmp_path / "x")):
        (tmp_path / "x" / "data").mkdir()
        before = sorted((tmp_path / "x").iterdir())
        outcome = in_process(argv, tmp_path)
        assert outcome.code == 1
        message = f"pyllm2: error: x: process {os.getpid()} is training into it\n"
        assert outcome.err.decode() == message
        assert sorted((tmp_path / "x").iterdir()) == before


def test_what_a_killed_start_has_left_is_replaced(tmp_path: Path) -> None:
    """Without a checkpoint, and with nothing that is not its own."""
    (tmp_path / "animals.txt").write_text(TEXT)
    (tmp_path / "x" / "data").mkdir(parents=True)
    for name in (".lock", ".pid", "tokenizer.bin"):
        (tmp_path / "x" / name).touch()
    argv = "train text animals.txt --out x --minutes 0.01 --backend numpy".split()
    (tmp_path / "x" / "mine").touch()
    assert in_process(argv, tmp_path).code == 1
    (tmp_path / "x" / "mine").unlink()
    outcome = in_process(argv, tmp_path)
    assert outcome.code == 0, outcome.err.decode()
