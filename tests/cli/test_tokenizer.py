"""`pyllm2 tokenizer`: train one on a text, convert it to tokenizer.bin."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyllm2.tokenizers import load_tokenizer
from tests.support.command import in_process

sentencepiece = pytest.importorskip("sentencepiece")

TEXT = "the cat sat on the mat and the dog sat on the cat 1234\n\nwhere  spaces  run\n" * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text, a model trained on it, and its tokenizer.bin."""
    path = tmp_path_factory.mktemp("tokenizer")
    (path / "text.txt").write_text(TEXT)
    (path / "latin1.txt").write_bytes(b"caf\xe9")
    (path / "blank.txt").write_text("\n \n")
    train = ("tokenizer", "train", "text.txt", "--vocab-size", "300", "--out", "t.model")
    for argv in (train, ("tokenizer", "export", "t.model", "t.bin")):
        outcome = in_process(argv, path)
        assert (outcome.code, outcome.out) == (0, b""), outcome.err
    return path


def test_model_and_export_encode_alike(folder: Path) -> None:
    """Both give the same ids, fewer than bytes, that decode to the text with its runs of spaces."""
    of_model = load_tokenizer(folder / "t.model")
    of_bin = load_tokenizer(folder / "t.bin")
    ids = of_bin.encode(TEXT)
    assert ids == of_model.encode_prompt(TEXT)
    assert of_bin.decode(ids) == TEXT.encode()
    assert len(ids) < len(TEXT) * 2 / 3
    assert of_bin.vocab_size == of_model.vocab_size == 300


def test_every_digit_is_a_piece_of_its_own(folder: Path) -> None:
    """No piece has two digits."""
    tokenizer = load_tokenizer(folder / "t.bin")
    merged = [p for p in tokenizer.pieces[259:] if sum(c in b"0123456789" for c in p) > 1]
    assert not merged


def test_like_the_original_runs_of_spaces_are_one(folder: Path) -> None:
    """With --like-original a run of spaces is encoded as one."""
    argv = ("tokenizer", "train", "text.txt", "--vocab-size", "300", "--out", "o.model")
    assert in_process((*argv, "--like-original"), folder).code == 0
    ours, theirs = (
        sentencepiece.SentencePieceProcessor(model_file=str(folder / name))
        for name in ("t.model", "o.model")
    )
    assert ours.encode("a  b") != ours.encode("a b")
    assert theirs.encode("a  b") == theirs.encode("a b")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("train", "latin1.txt", "--out", "x"), "latin1.txt: byte 3: not UTF-8"),
        (("train", "blank.txt", "--out", "x"), "blank.txt: is blank"),
        (("train", "nowhere.txt", "--out", "x"), "nowhere.txt: no such file or directory"),
        (("train", "text.txt", "--out", "."), ".: is a folder, expected a file to write"),
        (("export", "text.txt", "x"), "text.txt: looks like plain text"),
    ],
)
def test_what_cannot_be_is_refused(folder: Path, argv: tuple[str, ...], message: str) -> None:
    """One line, exit code 1, and no file."""
    outcome = in_process(("tokenizer", *argv), folder)
    assert (outcome.code, outcome.out) == (1, b"")
    assert outcome.err.decode() == f"pyllm2: error: {message}\n"
    assert not (folder / "x").exists()


def test_a_vocabulary_holds_more_than_specials_and_bytes(folder: Path) -> None:
    """259 or fewer pieces are a usage error."""
    argv = ("tokenizer", "train", "text.txt", "--out", "x", "--vocab-size", "259")
    outcome = in_process(argv, folder)
    assert (outcome.code, b"need 260" in outcome.err) == (2, True)
