"""`load_tokenizer`: every kind of file is recognised by its content, and every model can use it."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

import pyllm2
from pyllm2.errors import FileError, PyLLM2Warning
from pyllm2.llama2.checkpoint import save_parameters
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.initial import initial_parameters
from pyllm2.tokenizers import load_tokenizer
from pyllm2.tokenizers.byte_level import ByteLevelTokenizer, byte_tokenizer
from pyllm2.tokenizers.sentencepiece import SentencePieceTokenizer
from tests.support import llama2_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of each kind; the names say nothing."""
    path = tmp_path_factory.mktemp("tokenizers")
    (path / "1").write_bytes(llama2_files.vocabulary())
    byte_tokenizer().write_tokenizer(path / "2")
    lines = (base64.b64encode(bytes([i])) + b" %d\n" % i for i in range(256))
    (path / "3").write_bytes(b"".join(lines))
    return path


@pytest.mark.parametrize(
    ("name", "kind", "size"),
    [
        ("1", SentencePieceTokenizer, llama2_files.V),
        ("2", ByteLevelTokenizer, 257),
        ("3", ByteLevelTokenizer, 257),
        ("bytes", ByteLevelTokenizer, 257),
    ],
)
def test_each_kind_is_recognised(folder: Path, name: str, kind: type, size: int) -> None:
    """What it encodes comes back, and its own file is the same vocabulary."""
    tokenizer = load_tokenizer(name if name == "bytes" else folder / name)
    assert isinstance(tokenizer, kind)
    assert tokenizer.vocab_size == size
    ids = tokenizer.encode_prompt("a cab")
    assert ids[0] == tokenizer.begin
    assert ids == tokenizer.encode("a cab", bos=True)
    assert tokenizer.encode("a cab", bos=False, eos=True) == [*ids[1:], tokenizer.end]
    assert tokenizer.decode(ids[1:], at_start=True) == b"a cab"
    tokenizer.write_tokenizer(folder / "again")
    assert load_tokenizer(folder / "again").pieces == tokenizer.pieces


@pytest.mark.parametrize("name", ["2", "3", "bytes"])
def test_a_llama2_uses_any_tokenizer(folder: Path, name: str, tmp_path: Path) -> None:
    """If the sizes agree; generation ends at the tokenizer's own end of text."""
    config = Llama2Config(8, 12, 1, 2, 1, 257, 16)
    save_parameters(tmp_path / "m.bin", config, initial_parameters(config))
    tokenizer = name if name == "bytes" else folder / name
    model = pyllm2.load(tmp_path / "m.bin", tokenizer=tokenizer, backend="numpy")
    tokens = list(model.generate("ab", 5, seed=1))
    assert all(token.bytes == bytes([token.id]) for token in tokens)


def test_sizes_must_agree(folder: Path) -> None:
    """A larger vocabulary of llama2.c is cut, with a warning; any other difference is refused."""
    with pytest.warns(
        PyLLM2Warning, match=rf"has {llama2_files.V} tokens, m expects 260: the first"
    ):
        assert load_tokenizer(folder / "1", 260, "m").vocab_size == 260
    for name, found, wanted in (("1", llama2_files.V, 300), ("2", 257, 256), ("3", 257, 300)):
        with pytest.raises(FileError, match=rf"{name}: has {found} tokens, m expects {wanted}$"):
            load_tokenizer(folder / name, wanted, "m")
