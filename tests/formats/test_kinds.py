"""What a file is, by its first bytes."""

from __future__ import annotations

import pytest

from pyllm2.formats.kinds import JSON_TEXT, PLAIN_TEXT, is_sentencepiece, is_text, kind_of


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"GGUF\3\0\0\0", "a GGUF model"),
        (bytes(12) + b"<unk>", "a llama2.c tokenizer.bin, not a checkpoint"),
        (bytes(11) + b"<unk>", None),
        (b"\x80\x02}", "a Python pickle, which is never opened: it could run any code"),
        (b"\x80\x06}", None),
        (b"\x0a\x0e\x0a\x05<unk>", "a SentencePiece model, not a checkpoint"),
        (b"\x20\0\0\0\0\0\0\0{", "a safetensors file: name the folder that it is in, with its"),
        (b"\0\0\0\0\1\0\0\0{", None),  # a header of 4 GiB
        (b" \n<!DOCTYPE HTML>", "a web page: was the download link right?"),
        (b'{"a": 1}', JSON_TEXT),
        (b"[1]", JSON_TEXT),
        (b"{\0", None),
        (b"hello\t\xc3\xa9\r\n\f", PLAIN_TEXT),
        (b"\x1b[0m", None),
        (b"", None),
    ],
)
def test_a_kind_by_its_first_bytes(head: bytes, kind: str | None) -> None:
    found = kind_of(head)
    assert (found and found.startswith(kind)) if kind else found is None


def test_only_the_first_512_bytes_make_a_text() -> None:
    """What follows may be cut in a character, or be anything."""
    assert is_text(b"a" * 512 + b"\0")
    assert not is_text(b"a" * 511 + b"\0")
    assert not is_text(b"")
    assert [n for n in range(256) if is_text(bytes([n]))] == [9, 10, 12, 13, *range(32, 256)]


def test_the_first_piece_of_a_sentencepiece_model_is_short() -> None:
    """A text inside a record, both of at most 127 bytes."""
    for head, expected in (
        ((10, 14, 10, 5, 60), True),
        ((10, 127, 10, 126, 60), True),
        ((10, 128, 10, 5, 60), False),
        ((10, 14, 10, 14, 60), False),
        ((10, 14, 10, 0, 60), False),
        ((10, 14, 18, 5, 60), False),
        ((18, 14, 10, 5, 60), False),
        ((10, 14, 10, 5), False),
    ):
        assert is_sentencepiece(bytes(head)) == expected
