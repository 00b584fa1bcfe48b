"""A tokenizer written for other programs gives the same ids there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2 import stories
from pyllm2.errors import TokenizerError
from pyllm2.formats.sentencepiece_proto import parse_model
from pyllm2.tokenizers import documents, from_gguf, huggingface, load_tokenizer, sentencepiece_model
from pyllm2.tokenizers.added_tokens import AddedToken
from pyllm2.tokenizers.bpe import SPACE
from pyllm2.tokenizers.byte_level import ByteLevelTokenizer
from pyllm2.tokenizers.export import gguf_metadata, huggingface_files
from tests.support.protobuf import (
    CONTROL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
)
from tests.support.protobuf import (
    sentencepiece_model as model_of,
)

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


PIECES_OF_MODEL = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
PIECES_OF_MODEL += [(SPACE, -9.0, 1), ("a", -9.0, 1), ("aa", -2.0, 1), ("b c", -9.0, USER_DEFINED)]


def entries(tokenizer: Any) -> dict[str, Any]:
    """The metadata, without the prefix of their keys."""
    return {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in gguf_metadata(tokenizer).items()
    }


@pytest.mark.parametrize("pad", [-1, 2])
def test_the_metadata_of_a_sentencepiece_model(pad: int) -> None:
    """Added tokens and rows without a token behind the pieces; ids that are not there left out."""
    data = model_of(PIECES_OF_MODEL, {43: pad, 41: 1, 42: 2}, {4: 0})
    added = AddedToken(7, "<x>"), AddedToken(9, "<y>", special=False)
    style = sentencepiece_model.Style(added=added, back=True)
    tokenizer = sentencepiece_model.from_model(parse_model(data, "m"), "m", style).padded(11)
    found = entries(tokenizer)
    more = [("<x>", 0.0, CONTROL), ("[PAD8]", 0.0, UNUSED), ("<y>", 0.0, USER_DEFINED)]
    rows = [*PIECES_OF_MODEL[:-1], ("b c", -9.0, USER_DEFINED), *more, ("[PAD10]", 0.0, UNUSED)]
    tokens, scores, kinds = (list(column) for column in zip(*rows, strict=True))
    assert found == {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "scores": scores,
        "token_type": kinds,
        "add_space_prefix": True,
        "unknown_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "add_bos_token": True,
        "add_eos_token": True,
        **({"padding_token_id": 2} if pad == 2 else {}),
    }
    again = from_gguf(gguf_metadata(tokenizer), "x.gguf")
    for text in ("aaa <x>a", "a<y>", "", " aa"):
        assert again.encode_prompt(text) == tokenizer.encode_prompt(text, special=True)


@pytest.mark.parametrize("what", ["charsmap", "remove_extra_whitespaces"])
def test_what_the_metadata_of_gguf_cannot_say(what: str) -> None:
    normalizer = {2: b"\4\0\0\0" + bytes(5), 4: 0} if what == "charsmap" else {4: 1}
    model = parse_model(model_of(PIECES_OF_MODEL, {}, normalizer), "m")
    with pytest.raises(TokenizerError, match=f"m: has {what}, which the metadata of GGUF cannot"):
        gguf_metadata(sentencepiece_model.from_model(model, "m"))


@pytest.mark.parametrize(
    ("normalizer", "pre", "prefix"),
    [
        ([{"type": "Prepend", "prepend": SPACE}], None, True),
        ([], None, False),
        (None, "always", True),
        (None, "first", True),
        (None, "never", False),
    ],
)
def test_the_metadata_of_listed_pieces(normalizer: Any, pre: str | None, prefix: bool) -> None:
    """The score of a token is the rank of the first merge that makes it; the others come last."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    steps = None if normalizer is None else [*normalizer, replace]
    meta = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": pre, "split": False}
    vocab = {"<unk>": 0, "<0x61>": 1, SPACE: 2, "a": 3, "aa": 4, "aaa": 5, f"{SPACE}a": 6}
    document = {
        "normalizer": steps and {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": pre and meta,
        "post_processor": None,
        "decoder": meta if pre else {"type": "Sequence", "decoders": [{"type": "Fuse"}]},
        "added_tokens": [{"id": 7, "content": "<s>", "special": True, "normalized": False}],
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "vocab": vocab,
            "merges": ["a a", "aa a", "a aa", f"{SPACE} a"],
        },
    }
    tokenizer = huggingface.from_document(document, "m")
    found = entries(tokenizer)
    assert found["tokens"] == [*vocab, "<s>"]
    assert found["scores"] == [-4.0, -4.0, -4.0, -4.0, 0.0, -1.0, -3.0, -4.0]
    assert found["token_type"] == [UNKNOWN, 6, 1, 1, 1, 1, 1, CONTROL]
    assert (found["add_space_prefix"], found["unknown_token_id"]) == (prefix, 0)
    again = from_gguf(gguf_metadata(tokenizer), "x.gguf")
    # A Metaspace puts nothing in front of a space; GGUF cannot say so.
    for text in ("aaaa a", "a", *([] if pre else [" aa"])):
        assert again.encode(text) == tokenizer.encode(text)
