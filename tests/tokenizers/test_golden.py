"""Tokenizers of other libraries give the ids and texts that were recorded from those libraries."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyllm2.errors import FileError
from pyllm2.tokenizers import from_gguf, load_tokenizer
from pyllm2.tokenizers.pipeline import PipelineTokenizer
from pyllm2.tokenizers.stream import TextStream
from tests.support.gguf_metadata import metadata
from tests.support.golden import shared_folder

pytest.importorskip("regex")
FOUND = shared_folder()
GOLDEN = FOUND / "golden" / "real" if FOUND else Path("no golden files")
if not GOLDEN.is_dir():
    pytest.skip("no golden files of real models", allow_module_level=True)

TOKENIZERS = GOLDEN / "tokenizers"
TEXTS: list[str] = json.loads((TOKENIZERS / "texts.json").read_text())


def names(pattern: str) -> list[str]:
    return sorted(path.parent.name for path in TOKENIZERS.glob(pattern))


JSON = names("*/tokenizer.json")
MODELS = [name for name in names("spm-*/tokenizer.model") if name != "spm-unigram"]


def opened(path: Path) -> PipelineTokenizer:
    tokenizer = load_tokenizer(path)
    assert isinstance(tokenizer, PipelineTokenizer)
    return tokenizer


def read(*parts: str) -> Any:
    return json.loads(GOLDEN.joinpath(*parts).read_text())


@pytest.mark.parametrize("name", JSON)
def test_tokenizer_json(name: str) -> None:
    """Ids, with and without special tokens, and what they decode to."""
    tokenizer, recorded = (
        opened(TOKENIZERS / name / "tokenizer.json"),
        read("tokenizers", name, "cases.json"),
    )
    for text, case in zip(TEXTS, recorded["cases"], strict=True):
        assert tokenizer.encode(text) == case["ids"]
        assert tokenizer.encode_prompt(text) == case.get("ids_with_special", case["ids"])
        decoded = tokenizer.decode(case["ids"])
        said = text if case["decoded"] is None else case["decoded"]
        assert decoded.decode("utf-8", "replace") == said
        skipped = tokenizer.decode(case["ids"], skip_special=True).decode("utf-8", "replace")
        assert skipped == case.get("decoded_skip", said)
        words = case.get("words")
        assert words is None or list(words_of(tokenizer, text)) == words
    for case in recorded["random_ids"]:
        decoded = tokenizer.decode(case["ids"])
        if not (not_utf8(case) and name.startswith("json-")):
            assert decoded.decode("utf-8", "replace") == case["decoded"]


def not_utf8(case: dict[str, Any]) -> bool:
    """Whether byte tokens are no text: the library loses the whole run, here bytes are kept."""
    return "\ufffd" in (case["decoded"] or "")


def words_of(tokenizer: PipelineTokenizer, text: str) -> Iterator[str]:
    steps = tokenizer.steps
    for part, token, start in steps.added.cut(text):
        if token is None:
            normalized = steps.normalize(part, start == 0)
            yield from (w.encode().hex() for w in steps.split(normalized, start == 0))


@pytest.mark.parametrize("name", JSON)
def test_text_comes_out_as_it_is_complete(name: str) -> None:
    """Token by token, as the library's DecodeStream says, until that fails."""
    tokenizer, recorded = (
        opened(TOKENIZERS / name / "tokenizer.json"),
        read("tokenizers", name, "cases.json"),
    )
    for case in recorded["cases"] + recorded["random_ids"]:
        stream, said = TextStream(tokenizer), b""
        for i, expected in zip(case["ids"], case["stream"], strict=True):
            if isinstance(expected, dict) or (not_utf8(case) and name.startswith("json-")):
                break
            new = stream.push(i)
            assert new.decode("utf-8", "replace") == (expected or "")
            said += new
        else:
            assert said + stream.flush() == tokenizer.decode(case["ids"])


def test_added_tokens() -> None:
    """Those that take white space, stand alone, are normalised or not special."""
    tokenizer = opened(TOKENIZERS / "bl-llama3" / "tokenizer.json")
    for case in read("tokenizers", "bl-llama3", "added.json"):
        assert tokenizer.encode(case["text"]) == case["ids"]
        assert tokenizer.decode(case["ids"]).decode() == case["decoded"]
        assert tokenizer.decode(case["ids"], skip_special=True).decode() == case["decoded_skip"]


@pytest.mark.parametrize("name", MODELS)
def test_sentencepiece_model(name: str) -> None:
    """Ids and texts; bytes that are not UTF-8 are kept where there are byte pieces."""
    tokenizer, recorded = (
        opened(TOKENIZERS / name / "tokenizer.model"),
        read("tokenizers", name, "cases.json"),
    )
    for text, case in zip(TEXTS, recorded["cases"], strict=True):
        assert tokenizer.encode(text) == case["ids"]
        assert tokenizer.decode(case["ids"]).decode() == case["decoded"]
    for case in recorded["random_ids"]:
        # The library has one U+FFFD for each byte, Python for each run that could be a character.
        decoded = tokenizer.decode(case["ids"]).decode("utf-8", "surrogateescape")
        replaced = "".join("\ufffd" if "\udc80" <= c <= "\udcff" else c for c in decoded)
        assert replaced == case["decoded"]
    for case in recorded["invalid_utf8"]:
        data = bytes.fromhex(case["hex"])
        if name == "spm-nobyte":
            assert tokenizer.encode(data) == case["ids"]
        else:
            assert tokenizer.decode(tokenizer.encode(data)) == data


def test_rank_file_of_llama3() -> None:
    """Special tokens as text and parsed; bytes that are not UTF-8, as tiktoken does."""
    tokenizer = opened(TOKENIZERS / "tiktoken-llama3" / "tokenizer.model")
    recorded = read("tokenizers", "tiktoken-llama3", "cases.json")
    for text, i in recorded["special"].items():
        assert tokenizer.encode(text) == [i]
    assert tokenizer.vocab_size == recorded["base_tokens"] + recorded["n_special"]
    for text, case in zip(TEXTS, recorded["cases"], strict=True):
        assert tokenizer.encode(text, special=False) == case["ids"]
        assert tokenizer.encode(text) == case["ids_special"]
        assert [tokenizer.decode_one(i).hex() for i in case["ids"]] == case["token_bytes"]
        assert tokenizer.decode(case["ids_special"]) == text.encode()
    for case in recorded["invalid_utf8"]:
        assert tokenizer.encode(bytes.fromhex(case["hex"])) == case["ids"]


@pytest.mark.parametrize("name", read("tokenizers", "llamacpp.json"))
def test_tokenizer_in_gguf(name: str) -> None:
    """As llama.cpp; it removes spaces before some punctuation, which is not imitated."""
    tokenizer = from_gguf(metadata(GOLDEN / "gguf" / name), name)
    recorded = read("tokenizers", "llamacpp.json")[name]
    for text, case in zip(TEXTS, recorded["cases"], strict=True):
        assert tokenizer.encode(text) == case["special"]
        plain = case.get("bos_nospecial", case["special"])
        assert [*tokenizer.specials.front, *tokenizer.encode(text, special=False)] == plain
        assert [tokenizer.decode_one(i).hex() for i in case["special"]] == case["pieces"]
        if not text.startswith(("...", '"quoted"')):
            assert tokenizer.decode(case["special"]).hex() == case["detok"]
    for case in recorded["invalid_utf8"]:
        data = bytes.fromhex(case["hex"])
        if "unk_token" in tokenizer.special_tokens:  # "llama"
            assert tokenizer.encode(data) == case["ids"]
        else:  # "gpt2" has U+FFFD there
            assert tokenizer.decode(tokenizer.encode(data)) == data


@pytest.mark.parametrize("name", sorted(path.name for path in (GOLDEN / "hf").iterdir()))
def test_folder_of_hugging_face(name: str) -> None:
    """As AutoTokenizer, but for the texts where a tokenizer.model alone is read differently."""
    tokenizer, recorded = opened(GOLDEN / "hf" / name), read("hf", name, "tokens.json")
    only_model = not (GOLDEN / "hf" / name / "tokenizer.json").exists()
    for i, (text, ids) in enumerate(zip(TEXTS, recorded["ids"], strict=True)):
        if not only_model or i not in recorded.get("differs_from_sentencepiece_at", []):
            assert tokenizer.encode_prompt(text) == ids
    expected = read("hf", name, "expect.json")
    assert tokenizer.encode_prompt(expected["prompt"]) == expected["prompt_ids"]
    chat = GOLDEN / "hf" / name / "chat.json"
    for case in json.loads(chat.read_text()) if chat.exists() else []:
        assert tokenizer.encode(case["text"], special=True) == case["ids"]
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode_prompt(TEXTS[28]) == tokenizer.encode_prompt(TEXTS[28])
    assert again.special_tokens == tokenizer.special_tokens


def test_vocab_and_merges_are_the_same_tokenizer(tmp_path: Path) -> None:
    """GPT-2's two files, without tokenizer.json."""
    folder = GOLDEN / "hf" / "gpt2-f32"
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    both, whole = opened(tmp_path), opened(folder)
    for text in TEXTS:
        assert both.encode_prompt(text) == whole.encode_prompt(text)
    assert both.special_tokens == whole.special_tokens


@pytest.mark.parametrize("name", ["unigram", "wordpiece", "wordlevel"])
def test_other_models_are_refused_by_name(name: str) -> None:
    """In one line, with the type that was found."""
    path = TOKENIZERS / "refuse" / f"{name}.tokenizer.json"
    with pytest.raises(FileError, match=rf"(?i)model.type = '{name}': only BPE is supported"):
        load_tokenizer(path)


def test_unigram_models_are_refused_by_name() -> None:
    """A SentencePiece model of the other kind."""
    with pytest.raises(FileError, match="model_type = unigram: not a BPE model"):
        load_tokenizer(TOKENIZERS / "spm-unigram" / "tokenizer.model")


def test_unicode_classes_are_those_that_were_recorded() -> None:
    """For every code point: letters, numbers and white space as upstream's expressions see them."""
    from pyllm2.tokenizers import word_patterns

    newer = word_patterns._newer()
    for key, pattern in (("L", r"\p{L}"), ("N", r"\p{N}"), ("s", r"\s")):
        find = word_patterns.regex_package().compile(pattern).match
        ranges = read("tokenizers", "unicode.json")[key]
        expected = {c for first, last in ranges for c in range(first, last + 1)}
        found = {c for c in range(0x110000) if find(chr(c)) and not newer.match(chr(c))}
        assert found == expected
