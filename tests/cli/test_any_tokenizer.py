"""Every command and every model takes every kind of tokenizer, by the same names."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

import pyllm2
from pyllm2.formats.sentencepiece_model import train_sentencepiece
from pyllm2.tokenizers import load_tokenizer
from pyllm2.tokenizers.byte_level import byte_tokenizer
from tests.support import llama2_files
from tests.support.command import in_process

tiktoken = pytest.importorskip("tiktoken")
pytest.importorskip("sentencepiece")

TEXT = "the cab, a cab\n\nhello: caf\u00e9 \u4e2d\n" * 40
RANKS = [*(bytes([byte]) for byte in range(256)), b"ca", b"cab", b" a", b"he"]
KINDS = ["llama2c.bin", "sentencepiece.model", "llmc.bin", "ranks", "bytes", "gpt2"]
SHAPES = {
    "llama2": "dim=8,layers=1,heads=2,context=16",
    "gpt2": "layers=1,heads=2,channels=8,context=16",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text and a file of each kind."""
    path = tmp_path_factory.mktemp("tokenizers")
    (path / "text.txt").write_text(TEXT)
    (path / "llama2c.bin").write_bytes(llama2_files.vocabulary())
    model = train_sentencepiece(TEXT.split("\n"), 300)
    (path / "sentencepiece.model").write_bytes(model.serialized_model_proto())
    byte_tokenizer().write_tokenizer(path / "llmc.bin")
    lines = (base64.b64encode(piece) + b" %d\n" % i for i, piece in enumerate(RANKS))
    (path / "ranks").write_bytes(b"".join(lines))
    return path


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library has a small vocabulary of the name gpt2."""
    ranks: Any = dict(zip(RANKS, range(len(RANKS)), strict=True))
    special = {"<|endoftext|>": len(RANKS)}
    encoding = tiktoken.Encoding("x", pat_str=".", mergeable_ranks=ranks, special_tokens=special)
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: encoding)


def run(folder: Path, *argv: str) -> bytes:
    outcome = in_process(argv, folder)
    assert outcome.code == 0, outcome.err.decode()
    return outcome.out


@pytest.mark.parametrize("kind", KINDS)
def test_tokenize(folder: Path, kind: str) -> None:
    """What it prints, it decodes."""
    argv = ("tokenize", "--tokenizer", kind)
    ids = run(folder, *argv, "--no-bos", "a cab caf\u00e9").decode().strip()
    assert run(folder, *argv, "--decode", ids).decode() == "a cab caf\u00e9"
    assert len(run(folder, *argv, "--pieces", "--no-bos", "a cab caf\u00e9").splitlines()) == len(
        ids.split()
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", SHAPES)
def test_prepare_train_generate_and_load(
    folder: Path, family: str, kind: str, tmp_path: Path
) -> None:
    """The model shows its text while it trains, and afterwards by itself."""
    data, out = str(tmp_path / "data"), str(tmp_path / "out")
    run(folder, "data", "prepare", "text.txt", "--tokenizer", kind, "--out", data,
        "--val-tokens", "100")  # fmt: skip
    outcome = in_process(
        ("train", family, "--init", SHAPES[family], "--train", f"{data}/train.bin", "--val",
         f"{data}/val.bin", "--tokenizer", kind, "--out", out, "--batch", "2", "--context", "8",
         "--steps", "1", "--warmup", "0", "--sample-every", "1", "--sample-tokens", "4",
         "--val-batches", "1", "--backend", "numpy"),
        folder,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err.decode()
    assert b"sample after 1 steps:\n" in outcome.err
    source = kind if kind in ("bytes", "gpt2") else str(folder / kind)
    written, read = (load_tokenizer(path) for path in (f"{out}/tokenizer.bin", source))
    assert written.encode_prompt(TEXT) == read.encode_prompt(TEXT)
    argv = ("generate", f"{out}/model.bin", "--prompt", "a cab", "--max-new-tokens", "4",
            "--temperature", "0", "--backend", "numpy")  # fmt: skip
    said = run(folder, *argv)
    assert said.startswith(b"a cab")
    assert run(folder, *argv, "--tokenizer", kind) == said
    model = pyllm2.load(f"{out}/model.bin", tokenizer=source, backend="numpy")
    tokens = model.generate("a cab", 4, temperature=0)
    assert b"a cab" + b"".join(token.bytes for token in tokens) + b"\n" == said
