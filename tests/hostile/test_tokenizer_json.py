"""A tokenizer.json that is damaged, or asks for what is not supported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pyllm2.tokenizers.byte_level import byte_tokenizer
from pyllm2.tokenizers.documents import document_of
from tests.hostile.case import TOKENIZE
from tests.support.command import Outcome, in_process
from tests.support.llama2_files import lay_out

pytest.importorskip("regex")
VALID = json.dumps(document_of(byte_tokenizer()))


def with_part(name: str, value: Any) -> str:
    return json.dumps(json.loads(VALID) | {name: value})


def with_model(name: str, value: Any) -> str:
    document = json.loads(VALID)
    document["model"][name] = value
    return json.dumps(document)


def with_token(token: str, i: Any) -> str:
    return with_model("vocab", json.loads(VALID)["model"]["vocab"] | {token: i})


METASPACE = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first"}
BOMB = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}
CASES = {
    "deep": ('{"model": ' + "[" * 100_000, "not JSON that can be read: nested too deeply"),
    "no-model": ("{}", "not a tokenizer.json: `model` is missing"),
    "nan": ('{"model": NaN}', "model = nan: expected an object"),
    "id-too-large": (
        with_token("zz", 2**31),
        "model.vocab: 'zz' = 2147483648: expected 0 to 4194303",
    ),
    "id-negative": (with_token("zz", -1), "model.vocab: 'zz' = -1: expected 0 to 4194303"),
    "id-twice": (with_token("zz", 33), "model.vocab: 'zz' = 33: is the id of '!'"),
    "surrogate": (with_token("\ud800", 300), "model.vocab: '\\ud800' is not Unicode text"),
    "merge": (with_model("merges", ["a b"]), "model.merges[0]: 'ab' is not in the vocabulary"),
    "merge-of-one": (with_model("merges", ["a"]), "model.merges[0] = 'a': expected two tokens"),
    "dropout": (with_model("dropout", 0.1), "model.dropout = 0.1: not supported"),
    "unigram": (with_model("type", "Unigram"), "model.type = 'Unigram': only BPE is supported"),
    "regex-bomb": (
        with_part("pre_tokenizer", BOMB),
        "pre_tokenizer.pattern = {'Regex': '(a+)+$'}: not supported",
    ),
    "normalizer": (
        with_part("normalizer", {"type": "Lowercase"}),
        "normalizer.type = 'Lowercase': not supported",
    ),
    "post-processor": (
        with_part("post_processor", {"type": "BertProcessing"}),
        "post_processor.type = 'BertProcessing': not supported",
    ),
    "space": (
        with_part("pre_tokenizer", METASPACE | {"replacement": "__"}),
        "pre_tokenizer.replacement = '__': expected one character",
    ),
    "scheme": (
        with_part("pre_tokenizer", METASPACE | {"prepend_scheme": "last"}),
        "pre_tokenizer.prepend_scheme = 'last': not supported",
    ),
    "decoder": (
        with_part("decoder", METASPACE | {"replacement": ""}),
        "decoder.replacement = '': expected one character",
    ),
    "added-token": (with_part("added_tokens", [5]), "added_tokens[0] = 5: expected an object"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_tokenizer_json_is_one_line(name: str, tmp_path: Path) -> None:
    """Row 89: the field or component, and what was found."""
    data, error = CASES[name]
    lay_out(tmp_path, {"t.bin": data.encode()})
    outcome = in_process(TOKENIZE, tmp_path)
    assert outcome == Outcome(1, b"", f"pyllm2: error: t.bin: {error}\n".encode())


def test_the_valid_one_works(tmp_path: Path) -> None:
    """The cases differ from it in one thing each."""
    lay_out(tmp_path, {"t.bin": VALID.encode()})
    assert in_process(TOKENIZE, tmp_path) == Outcome(0, b"256 97 32 99 97 98\n", b"")
