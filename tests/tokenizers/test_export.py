"""A tokenizer written for other programs gives the same ids there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2 import stories
from pyllm2.errors import TokenizerError
from pyllm2.tokenizers import documents, from_gguf, load_tokenizer
from pyllm2.tokenizers.byte_level import ByteLevelTokenizer
from pyllm2.tokenizers.export import gguf_metadata, huggingface_files

pytest.importorskip("regex")

PIECES = [*(bytes([i]) for i in range(256)), b"he", b"the", b" the", b" a", b"aa", b"aaa", b"  "]
RANKS = ByteLevelTokenizer([*PIECES, b"<|endoftext|>"], len(PIECES))
texts = st.text(st.sampled_from("the a\n0é日.'"), max_size=30)


@pytest.fixture(scope="module")
def ours() -> list[Any]:
    """A vocabulary of llama2.c and one of ranks."""
    return [load_tokenizer(stories.TOKENIZER), RANKS]


@given(text=texts)
def test_gguf_metadata_is_the_same_tokenizer(ours: list[Any], text: str) -> None:
    """Read back as llama.cpp would."""
    pytest.importorskip("tiktoken")
    for tokenizer in ours:
        again = from_gguf(gguf_metadata(tokenizer), "x.gguf")
        assert again.encode(text) == tokenizer.encode(text, bos=False)
        assert again.encode_prompt(text) == tokenizer.encode_prompt(text)


@given(text=texts)
def test_the_tokenizers_library_gives_the_same_ids(ours: list[Any], text: str) -> None:
    """From the tokenizer.json; optional, where the library is installed."""
    library = pytest.importorskip("tokenizers")
    pytest.importorskip("tiktoken")
    for tokenizer in ours:
        read = library.Tokenizer.from_str(huggingface_files(tokenizer)["tokenizer.json"].decode())
        assert read.encode(text, add_special_tokens=False).ids == tokenizer.encode(text, bos=False)
        assert read.encode(text).ids == tokenizer.encode_prompt(text)


def test_a_folder_of_ours_is_read_back(ours: list[Any], tmp_path: Path) -> None:
    """With the names of the special tokens."""
    pytest.importorskip("tiktoken")
    for tokenizer in ours:
        for name, data in huggingface_files(tokenizer).items():
            (tmp_path / name).write_bytes(data)
        again = load_tokenizer(tmp_path)
        assert again.encode_prompt("the aaaa\n") == tokenizer.encode_prompt("the aaaa\n")
        assert again.begin == tokenizer.begin
        assert again.end == tokenizer.end


def test_an_id_around_a_text_without_a_token_is_refused() -> None:
    """A damaged GGUF said so: the KeyError was a traceback."""
    with pytest.raises(TokenizerError, match="id 256 is put around a text, and is no token"):
        documents._template((256,), (), {1: "a"})
