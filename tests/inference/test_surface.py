"""The surface in Python: text in one string, reprs, and one clear error per misuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import pyllm2
from pyllm2.errors import ContextError, TokenizerError
from pyllm2.inference.token import Token
from tests.support.command import in_process


@pytest.fixture(scope="module")
def model() -> Any:
    return pyllm2.load(backend="numpy")


def test_complete_is_the_text_of_generate(model: Any) -> None:
    """The same options give the same tokens."""
    options: dict[str, Any] = {"max_new_tokens": 6, "seed": 3}
    tokens = list(model.generate("Once upon", **options))
    assert model.complete("Once upon", **options) == "".join(token.text for token in tokens)
    assert Token(1, b"\xc3").text == "\ufffd"


def test_reprs_say_what_a_thing_is(model: Any) -> None:
    """A tokenizer its size, a session its position, a generation how far it is."""
    assert repr(model.tokenizer).startswith("<SentencePieceTokenizer ")
    assert repr(model.tokenizer).endswith(f": {model.config.vocab_size} tokens>")
    session = model.start(8)
    session.feed([1, 2])
    assert session.feed([]).shape == (0, model.config.vocab_size)
    assert repr(session).endswith(": 2 of 8 positions, backend 'numpy'>")
    generation = model.generate([1, 2], max_new_tokens=1)
    assert repr(generation) == "<Generation: 0 new tokens after 2, not finished>"
    list(generation)
    assert repr(generation) == "<Generation: 1 new tokens after 2, length>"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.generate("a", max_new_tokens=-1), ValueError, "max_new_tokens = -1: expected"),
        (lambda m: m.generate("a", context=999), ContextError, "context = 999: expected 1 to 256"),
        (lambda m: m.logits("Once"), TokenizerError, "found str .tokenizer.encode gives the ids"),
    ],
)
def test_a_misuse_is_one_clear_error(model: Any, call: Any, error: type, message: str) -> None:
    """Before anything is computed."""
    with pytest.raises(error, match=message):
        call(model)


def test_a_context_beyond_the_model_is_refused(tmp_path: Path) -> None:
    """It used to be cut to the model's in silence."""
    outcome = in_process("generate --context 5000 --backend numpy".split(), tmp_path)
    assert outcome.code == 2
    assert outcome.err == b"pyllm2: error: --context 5000: the model has 256 positions\n"
