"""The files beside a tokenizer: names of special tokens, added tokens, flags."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pyllm2.errors import FileError, FormatError
from pyllm2.formats.tokenizer_json import checked_vocab
from pyllm2.tokenizers import load_tokenizer
from pyllm2.tokenizers.bpe import SPACE
from pyllm2.tokenizers.folder import has_tokenizer, tokenizer_file
from pyllm2.tokenizers.pipeline import PipelineTokenizer
from tests.support.protobuf import CONTROL, UNKNOWN, sentencepiece_model

pytest.importorskip("regex")

PIECES = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
PIECES += [(SPACE, -1.0, 1), ("a", -1.0, 1), ("b", -1.0, 1)]
CONFIG = "tokenizer_config.json"


def opened(folder: Path, **files: Any) -> PipelineTokenizer:
    """Of a folder with a SentencePiece model, which keeps spaces, and these files (.json)."""
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(PIECES, {}, {4: 0}))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    found = load_tokenizer(folder)
    assert isinstance(found, PipelineTokenizer)
    return found


@pytest.mark.parametrize(
    ("config", "ids"),
    [
        ({}, [1, 3, 4]),
        ({"add_bos_token": None, "add_eos_token": True}, [1, 3, 4, 2]),
        ({"add_bos_token": False}, [3, 4]),
    ],
)
def test_what_belongs_around_a_prompt(tmp_path: Path, config: Any, ids: list[int]) -> None:
    assert opened(tmp_path, tokenizer_config=config).encode_prompt("a") == ids


@pytest.mark.parametrize("older", [False, True])
def test_added_tokens(tmp_path: Path, older: bool) -> None:
    """Behind the pieces; those of the config, with their flags, before those of the older file."""
    decoder = {
        "6": {"content": "<x>", "special": True, "lstrip": True},
        "7": {"content": "<y>", "single_word": True},
        "1": {"content": "<s>"},
    }
    config = {} if older else {"added_tokens_decoder": decoder}
    found = opened(tmp_path, tokenizer_config=config, added_tokens={"<x>": 6, "<z>": 8})
    assert found.encode("a <x>b", special=True) == (
        [3, 4, 3, 6, 3, 5] if older else [3, 4, 6, 3, 5]
    )
    assert found.encode("<z>", special=True)[-1:] == ([8] if older else [0])
    assert found.encode("<y>", special=False)[:1] == ([3] if older else [7])
    assert found.decode([4, 6]) == b"a<x>"
    assert found.vocab_size == (9 if older else 8)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        (CONFIG, {"add_bos_token": 1}, "add_bos_token = 1: expected true or false or null"),
        (CONFIG, {"added_tokens_decoder": []}, r"added_tokens_decoder = \[\]: expected an object"),
        (
            CONFIG,
            {"added_tokens_decoder": {"x": {"content": "<x>"}}},
            r"added_tokens_decoder\['x'\]: id -1: expected 0 to 4194303",
        ),
        (
            CONFIG,
            {"added_tokens_decoder": {"4194304": {"content": "<x>"}}},
            "id 4194304: expected 0 to 4194303",
        ),
        (
            CONFIG,
            {"added_tokens_decoder": {"9": {"content": "\ud800"}}},
            r"added_tokens_decoder\['9'\]: '\\ud800' is not Unicode text",
        ),
        (CONFIG, {"added_tokens_decoder": {"9": {}}}, r"\['9'\].content is missing"),
        (CONFIG, {"bos_token": 5}, "bos_token = 5: expected text or null"),
        ("added_tokens.json", {"<x>": "6"}, "'<x>': id -1: expected 0 to 4194303"),
        ("special_tokens_map.json", {"pad_token": "\ud800"}, r"pad_token: '\\ud800' is not Unic"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, file: str, content: Any, words: str) -> None:
    with pytest.raises(FormatError, match=f"{file}: .*{words}"):
        opened(tmp_path, **{file.removesuffix(".json"): content})


def test_names_of_special_tokens(tmp_path: Path) -> None:
    """Those of the class, then of the older file, then of the config, where null takes one away."""
    found = opened(
        tmp_path,
        tokenizer_config={"eos_token": {"content": "b"}, "pad_token": None},
        special_tokens_map={"bos_token": "a", "eos_token": "a", "pad_token": "b"},
    )
    assert found.special_tokens == {"bos_token": "a", "eos_token": "b", "unk_token": "<unk>"}
    assert (found.begin, found.end, found.stop) == (4, 5, (5,))


# ---- vocab.json and merges.txt ---------------------------------------------------------------

VOCAB = {"a": 0, "b": 1, "Ġ": 2, "Ġa": 3, "ab": 4, "<|endoftext|>": 5, "1": 6, "11": 7}
MERGES = "#version: 0.2\nĠ a\na b\r\n\n1 1\n"


def written(folder: Path, merges: str = MERGES, vocab: Any = VOCAB, **config: Any) -> Path:
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text(merges, newline="")
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def test_two_files_are_a_tokenizer(tmp_path: Path) -> None:
    """GPT-2's way to cut, unless the class is Qwen's, where every digit is a word."""
    gpt2 = load_tokenizer(written(tmp_path))
    assert gpt2.encode("ab a11<|endoftext|>") == [4, 3, 7, 5]
    assert gpt2.end == 5
    assert load_tokenizer(written(tmp_path, add_prefix_space=True)).encode("a") == [3]
    qwen = load_tokenizer(written(tmp_path, tokenizer_class="Qwen2TokenizerFast"))
    assert qwen.encode("a11") == [0, 6, 6]
    assert qwen.special_tokens == {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}


@pytest.mark.parametrize(
    ("vocab", "merges", "words"),
    [
        (VOCAB, "a b\na\n", r"merges.txt: line 2: expected two tokens and a space between them"),
        (VOCAB, "a b\nb a\n", r"merges.txt: merges\[1\]: 'ba' is not in the vocabulary"),
        (VOCAB, " a\n", r"merges.txt: merges\[0\]: .*"),
        ({}, "", "vocab.json: vocabulary is empty"),
        ({"a": 4194304}, "", "vocab.json: vocabulary: 'a' = 4194304: expected 0 to 4194303"),
        ({"a": True}, "", "vocab.json: vocabulary: 'a' = True: expected 0"),
        ({"a": 0, "b": 0}, "", "vocab.json: vocabulary: 'b' = 0: is the id of 'a'"),
        ({"\ud800": 0}, "", r"vocab.json: vocabulary: '\\ud800' is not Unicode text"),
    ],
)
def test_what_two_files_get_wrong(tmp_path: Path, vocab: Any, merges: str, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        load_tokenizer(written(tmp_path, merges, vocab))


def test_the_largest_id() -> None:
    """4194303; one more is refused above."""
    assert checked_vocab({"a": 4194303}, "vocab.json", "vocabulary") == {"a": 4194303}


def test_which_file_holds_the_tokenizer(tmp_path: Path) -> None:
    """tokenizer.json before tokenizer.model before vocab.json before tokenizer.bin."""
    assert not has_tokenizer(str(tmp_path))
    with pytest.raises(FileError, match=r"has no tokenizer: expected tokenizer\.json, token"):
        tokenizer_file(str(tmp_path))
    for name in ("tokenizer.bin", "vocab.json", "tokenizer.model", "tokenizer.json"):
        (tmp_path / name).write_bytes(b"")
        assert tokenizer_file(str(tmp_path)) == str(tmp_path / name)
        assert has_tokenizer(str(tmp_path))
