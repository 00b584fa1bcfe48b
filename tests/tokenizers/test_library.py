"""Drawn files of tokenizer.json give the ids and texts of the tokenizers library."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pyllm2.tokenizers import alphabet, huggingface
from pyllm2.tokenizers.bpe import SPACE
from pyllm2.tokenizers.pipeline import PipelineTokenizer
from pyllm2.tokenizers.word_patterns import GPT2, LLAMA3, QWEN2
from tests.support.profiles import at_least

library = pytest.importorskip("tokenizers")
pytest.importorskip("regex")

LETTERS = "abé1 "
CONTENTS = ["<s>", "<x>", "ab", "a b", "<s>a", " 1"]
texts = st.lists(
    st.sampled_from(
        [*LETTERS, *CONTENTS, "  ", "\n", "'s", "e\u0301", "z", "\U0001f600", "12", SPACE]
    ),
    max_size=14,
).map("".join)


@st.composite
def models(draw: Any, letters: list[str], first: dict[str, int], **options: Any) -> dict[str, Any]:
    """A vocabulary and merges of what is there already; `first` are its first tokens."""
    known, merges = list(letters), []
    for _ in range(draw(st.integers(0, 10))):
        pair = [draw(st.sampled_from(known)), draw(st.sampled_from(known))]
        whole = "".join(pair)
        if len(whole) < 9 and pair not in merges:
            merges.append(pair)
            known += [] if whole in known else [whole]
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*first, *known]))}
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": draw(st.booleans()),
        "vocab": vocab,
        "merges": merges,
        **options,
    }


@st.composite
def byte_levels(draw: Any) -> dict[str, Any]:
    """In the manner of GPT-2, Llama 3 and Qwen 2."""
    symbols = {alphabet.from_bytes(bytes([i])): i for i in range(256)}
    letters = [alphabet.from_bytes(byte) for byte in (b"a", b"b", b"1", b" ", b"\xc3", b"\xa9")]
    model = draw(models(letters, symbols))
    flags = {"add_prefix_space": draw(st.booleans()), "trim_offsets": True}
    regex = draw(st.sampled_from([GPT2, LLAMA3, QWEN2, "digits", None]))
    steps = [{"type": "ByteLevel", **flags, "use_regex": regex in (GPT2, "digits")}]
    if regex == "digits":
        steps.insert(0, {"type": "Digits", "individual_digits": True})
    elif regex not in (GPT2, None):
        split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated"}
        steps.insert(0, {**split, "invert": False})
    pre = steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}
    return {
        "normalizer": draw(st.sampled_from([None, {"type": "NFC"}])),
        "pre_tokenizer": pre,
        "decoder": {"type": "ByteLevel", **flags, "use_regex": True},
        "model": model,
    }


@st.composite
def sentencepieces(draw: Any) -> dict[str, Any]:
    """In the manner of Llama 2: spaces escaped by a normalizer, or by a Metaspace."""
    specials = ["<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    model = draw(
        models(
            [SPACE, "a", "b", "é"],
            {token: i for i, token in enumerate(specials)},
            unk_token=draw(st.sampled_from(["<unk>", None])),
            fuse_unk=draw(st.booleans()),
            byte_fallback=draw(st.booleans()),
        )
    )
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    scheme = draw(st.sampled_from(["always", "first", "never"]))
    meta = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme}
    meta["split"] = draw(st.booleans())
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    if draw(st.booleans()):
        normalizers = draw(st.sampled_from([[prepend, replace], [replace], [replace, prepend]]))
        decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]
        kind = {
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": None,
            "decoder": {"type": "Sequence", "decoders": decoders[: draw(st.integers(3, 4))]},
        }
    else:
        kind = {"normalizer": None, "pre_tokenizer": meta, "decoder": meta}
    return {**kind, "model": model}


@st.composite
def documents(draw: Any) -> dict[str, Any]:
    """With added tokens of every kind, and some of them around a text."""
    document = draw(st.one_of(byte_levels(), sentencepieces()))
    vocab, added = document["model"]["vocab"], []
    following = len(vocab)
    for content in draw(st.lists(st.sampled_from(CONTENTS), unique=True, max_size=4)):
        i = vocab.get(content, following)
        following += i == following
        keys = "special", "normalized", "single_word", "lstrip", "rstrip"
        flags = {key: draw(st.sampled_from([False, False, True])) for key in keys}
        added.append({"id": i, "content": content, **flags})
    document["added_tokens"], processor = added, None
    if added and draw(st.booleans()):
        token = added[-1]["content"]
        text, one = (
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": token, "type_id": 0}},
        )
        single = draw(st.sampled_from([[one, text], [text, one], [one, one, text, one]]))
        known = {token: {"id": token, "ids": [added[-1]["id"]], "tokens": [token]}}
        processor = {"type": "TemplateProcessing", "single": single, "special_tokens": known}
        processor["pair"] = [*single, {"Sequence": {"id": "B", "type_id": 0}}]
    plain = {"version": "1.0", "truncation": None, "padding": None}
    return {**plain, **document, "post_processor": processor}


def opened(document: dict[str, Any]) -> tuple[PipelineTokenizer, Any]:
    """Ours and theirs."""
    text = json.dumps(document)
    return huggingface.from_document(json.loads(text), "x"), library.Tokenizer.from_str(text)


@at_least(150)
@given(documents(), texts)
def test_a_text_has_the_ids_of_the_library(document: dict[str, Any], text: str) -> None:
    """Without and with what the post-processor puts around it."""
    ours, theirs = opened(document)
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode_prompt(text) == theirs.encode(text).ids


@at_least(100)
@given(documents(), texts, st.lists(st.integers(0, 300), max_size=5), st.booleans())
def test_ids_have_the_text_of_the_library(
    document: dict[str, Any], text: str, more: list[int], skip: bool
) -> None:
    """Unless their bytes are no UTF-8, which the library replaces run by run."""
    ours, theirs = opened(document)
    ids = [*ours.encode(text), *(i for i in more if i < ours.vocab_size)]
    expected = theirs.decode(ids, skip_special_tokens=skip)
    assume("\ufffd" not in expected)
    assert ours.decode(ids, skip_special=skip).decode() == expected


@given(documents(), texts)
def test_a_pickled_tokenizer_is_the_same(document: dict[str, Any], text: str) -> None:
    """Also one that was filled up to the rows of a model."""
    ours = huggingface.from_document(document, "x")
    for tokenizer in (ours, ours.padded(ours.vocab_size + 3)):
        again = pickle.loads(pickle.dumps(tokenizer))
        assert again.encode_prompt(text) == tokenizer.encode_prompt(text)
        assert (again.pieces, again.specials) == (tokenizer.pieces, tokenizer.specials)


@pytest.mark.parametrize("special", [False, True])
def test_a_token_of_normalised_text_keeps_the_space_that_it_took(special: bool) -> None:
    """Its text is the normalised content, here with the prefix: so the space comes back."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    model: dict[str, Any] = dict.fromkeys("dropout unk_token continuing_subword_prefix".split())
    model |= {"type": "BPE", "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "pre_tokenizer": None,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace],
        },
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "Fuse"}]},
        "post_processor": None,
        "added_tokens": [{"id": 2, "content": "<s>", "special": special, **flags}],
        "model": {**model, "vocab": {SPACE: 0, "a": 1}, "merges": []},
    }
    ours, theirs = opened(document)
    ids = theirs.encode("a <s>", add_special_tokens=False).ids
    assert ours.encode("a <s>") == ids == [0, 1, 2]
    assert ours.decode(ids).decode() == theirs.decode(ids, skip_special_tokens=False) == " a <s>"
