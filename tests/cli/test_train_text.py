"""`pyllm2 train text`: one command, and a model that plays."""

from __future__ import annotations

from pathlib import Path

import pytest

from .program import in_process

pytest.importorskip("sentencepiece")
pytest.importorskip("safetensors")

TEXT = "\n\n".join(
    f"The {animal} saw a {thing}. It was a very {size} {thing}, and the {animal} was glad."
    for animal in ("cat", "dog", "bird", "mouse", "horse")
    for thing in ("ball", "tree", "house", "star", "boat")
    for size in ("big", "small", "red", "old")
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text, and what was made of it."""
    path = tmp_path_factory.mktemp("text")
    (path / "animals.txt").write_text(TEXT)
    argv = ("train", "text", "animals.txt", "--out", "made", "--minutes", "0.01")
    outcome = in_process((*argv, "--backend", "numpy"), path)
    assert outcome.code == 0, outcome.err.decode()
    (path / "said").write_bytes(outcome.err)
    return path


def test_it_says_what_it_chose(folder: Path) -> None:
    """Vocabulary, size, and the command that a person could type."""
    said = (folder / "said").read_text()
    assert "bytes of text: a vocabulary of" in said
    assert "0.01 minutes: a model of" in said
    assert "pyllm2: pyllm2 train llama2 --init dim=32,layers=3" in said


def test_the_model_plays_with_its_own_tokenizer(folder: Path) -> None:
    """Which lies beside it."""
    argv = ("generate", "made/model.bin", "--backend", "numpy", "--max-new-tokens", "5")
    outcome = in_process((*argv, "--seed", "1", "--prompt", "The cat"), folder)
    assert outcome.code == 0, outcome.err.decode()
    assert outcome.out.startswith(b"The cat")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("animals.txt", "--out", "made"), "made: has a run already: name another folder"),
        (("animals.txt", "--out", "said"), "said: is there already: name a new folder"),
        (("nowhere.txt", "--out", "x"), "nowhere.txt: no such file or directory"),
        (("few.txt", "--out", "x"), "few.txt: a text of at least"),
    ],
)
def test_what_cannot_be_is_refused(folder: Path, argv: tuple[str, ...], message: str) -> None:
    """One line, and nothing is left behind."""
    (folder / "few.txt").write_text("Too short to learn from.\n" * 3)
    outcome = in_process(("train", "text", *argv, "--backend", "numpy"), folder)
    assert outcome.code == 1
    assert outcome.err.decode().splitlines()[-1].startswith(f"pyllm2: error: {message}")
    assert not (folder / "x").exists()
