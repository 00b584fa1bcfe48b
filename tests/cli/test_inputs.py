"""Long inputs: read whole or refused, and a prompt that cannot fit is refused at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given

import pyllm2
from pyllm2.cli import inputs
from pyllm2.errors import ContextError
from pyllm2.tokenizers import Tokenizer
from pyllm2.tokenizers.byte_level import byte_tokenizer
from tests.support.command import in_process
from tests.support.llama2_files import lay_out
from tests.tokenizers.test_sentencepiece import SentencePieceTokenizer, anything, tokenizers

GENERATE = ("generate", "m.bin", "--tokenizer", "t.bin", "--backend", "numpy")
CHAT = ("chat", "m.bin", "--tokenizer", "t.bin", "--backend", "numpy")
TOKENIZE = ("tokenize", "--tokenizer", "t.bin", "--text-file")


@pytest.mark.parametrize(
    ("argv", "stdin", "error"),
    [
        (
            (*TOKENIZE, "-"),
            b"a" * 101,
            "standard input: longer than 100 bytes, the",
        ),
        ((*TOKENIZE, "x.txt"), b"", "x.txt: 101 bytes, a text has at most 100"),
        ((*GENERATE, "--prompt-file", "-"), b"a" * 101, "standard input: longer than 100 bytes"),
        ((*GENERATE, "--prompt-file", "x.txt"), b"", "x.txt: 101 bytes, a text has at most 100"),
        (CHAT, b"a" * 101 + b"\n", "a line of standard input: longer than 100 bytes"),
    ],
)
def test_a_long_text_is_refused_and_not_cut(
    argv: tuple[str, ...], stdin: bytes, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One byte more than the most, from anywhere."""
    monkeypatch.setattr(inputs, "MAX_TEXT_BYTES", 100)
    lay_out(tmp_path, {"x.txt": b"a" * 101})
    outcome = in_process(argv, tmp_path, stdin)
    assert outcome.code == 1
    assert outcome.err.decode().startswith(f"pyllm2: error: {error}")
    assert outcome.err.count(b"\n") == 1


@pytest.mark.parametrize("argv", [(*TOKENIZE, "-"), (*TOKENIZE, "x.txt")])
def test_the_longest_text_is_read_whole(
    argv: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its last byte."""
    monkeypatch.setattr(inputs, "MAX_TEXT_BYTES", 100)
    text = b"a" * 99 + b"b"
    lay_out(tmp_path, {"x.txt": text})
    encoded = in_process(argv, tmp_path, text)
    decoded = in_process((*TOKENIZE[:3], "--decode", encoded.out), tmp_path)
    assert decoded.out == text


class Never:
    """A tokenizer that must not encode."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.at_least, self.vocab_size, self.stop = tokenizer.at_least, tokenizer.vocab_size, ()

    def encode_prompt(self, text: bytes) -> list[int]:
        raise AssertionError("the prompt was encoded")


def test_a_prompt_that_cannot_fit_is_not_encoded() -> None:
    """However large the context is, and as text or as bytes."""
    model = pyllm2.load(backend="numpy")
    longest = max(map(len, model.tokenizer.pieces[259:]))
    model = pyllm2.load(backend="numpy", tokenizer=Never(model.tokenizer))  # type: ignore[arg-type]
    for prompt in ("a" * (longest * 256 + 1), b" " * 10**7):
        with pytest.raises(ContextError, match=r"^prompt is at least \d+ tokens, context is 256$"):
            model.generate(prompt)
    with pytest.raises(ContextError, match=r"^prompt is at least 2 tokens, context is 1$"):
        model.generate("a" * (longest + 1), context=1)


@given(tokenizers(), anything)
def test_a_prompt_has_at_least_so_many_ids(t: SentencePieceTokenizer, data: bytes) -> None:
    """For every kind of tokenizer; a str is not longer than its bytes."""
    for tokenizer in (t, byte_tokenizer()):
        assert tokenizer.at_least(data) <= len(tokenizer.encode_prompt(data))
        text = data.decode("utf-8", "surrogateescape")
        assert tokenizer.at_least(text) <= tokenizer.at_least(data)


def test_a_chat_refuses_a_message_that_cannot_fit(tmp_path: Path) -> None:
    """Before it is encoded, as the first message or a later one."""
    lay_out(tmp_path)
    argv = (*CHAT, "--temperature", "0", "--max-new-tokens", "1")
    for before in (b"", b"a\n"):
        outcome = in_process(argv, tmp_path, before + b"a" * 10**6 + b"\n")
        assert (outcome.code, b"prompt is at least" in outcome.err) == (1, True)
