"""Protocol Buffers by worked examples, and the fields of a SentencePiece model."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.errors import FileError, FormatError
from pyllm2.formats.protobuf import BYTES, EIGHT, FOUR, VARINT, WireError, fields
from pyllm2.formats.sentencepiece_proto import byte_of, parse_model
from tests.support.protobuf import BYTE, CONTROL, UNKNOWN, field, sentencepiece_model, varint


def read(data: bytes) -> list[Any]:
    return list(fields(memoryview(data), 0, len(data)))


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ("08 96 01", (1, VARINT, 150, 0)),  # the example of the format's documentation
        ("12 07 74 65 73 74 69 6e 67", (2, BYTES, 2, 9)),
        ("08 ff ff ff ff ff ff ff ff ff 01", (1, VARINT, 2**64 - 1, 0)),
        ("c8 02 00", (41, VARINT, 0, 0)),
        ("25 00 00 80 3f", (4, FOUR, 1, 5)),
        ("19 00 00 00 00 00 00 f0 3f", (3, EIGHT, 1, 9)),
    ],
)
def test_a_field_is_read(data: str, found: tuple[int, ...]) -> None:
    assert read(bytes.fromhex(data)) == [found]


@given(st.lists(st.integers(0, 2**64 - 1)), st.binary(max_size=300))
def test_many_fields_are_read(numbers: list[int], data: bytes) -> None:
    """Numbers of every length, then bytes, then one more number."""
    message = b"".join(field(7, n) for n in numbers) + field(2, data) + field(100, 5)
    *first, (number, wire, begin, end), last = read(message)
    assert [value for _, _, value, _ in first] == numbers
    assert (number, wire, message[begin:end]) == (2, BYTES, data)
    assert last[:3] == (100, VARINT, 5)


@pytest.mark.parametrize(
    ("data", "at", "words"),
    [
        ("08 96", 1, "a number that is cut off"),
        ("12 03 61", 0, "3 bytes, but 1 are left"),
        ("25 00 00 80", 0, "4 bytes, but 3 are left"),
        ("0b", 0, "wire type 3"),
        ("08" + " ff" * 10, 1, "a number of more than ten bytes"),
    ],
)
def test_what_is_no_message_is_refused(data: str, at: int, words: str) -> None:
    with pytest.raises(WireError) as refused:
        read(bytes.fromhex(data))
    assert refused.value.args == (at, words)


PIECES = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
PIECES += [("<0x0A>", -0.5, BYTE), ("a", -1.5, 1)]


def test_every_field_of_a_model_is_read() -> None:
    """Each with a value of its own, none the default."""
    trainer = {35: 1, 40: 0, 41: 2, 42: 1, 43: 4, 44: b" ?? "}
    normalizer = {2: b"map", 3: 0, 4: 0, 5: 0}
    data = sentencepiece_model(PIECES, trainer, normalizer)
    model = parse_model(data, "m")
    assert list(zip(model.pieces, model.scores, model.kinds, strict=True)) == PIECES
    assert (model.model_type, model.byte_fallback, model.unk_surface) == (2, True, " ?? ")
    assert (model.unk_id, model.bos_id, model.eos_id, model.pad_id) == (0, 2, 1, 4)
    assert (model.charsmap, model.raw) == (b"map", data)
    assert not model.add_dummy_prefix
    assert not model.remove_extra_whitespaces
    assert not model.escape_whitespaces


def test_fields_that_are_absent_have_their_defaults() -> None:
    model = parse_model(sentencepiece_model(PIECES), "m")
    assert (model.byte_fallback, model.unk_surface) == (False, " \u2047 ")
    assert (model.unk_id, model.bos_id, model.eos_id, model.pad_id) == (0, 1, 2, -1)
    assert (model.charsmap, model.add_dummy_prefix) == (b"", True)
    assert model.remove_extra_whitespaces
    assert model.escape_whitespaces
    assert parse_model(sentencepiece_model(PIECES, {41: -1}), "m").bos_id == -1


def test_fields_of_other_wire_types_say_nothing() -> None:
    """As the format has it: unknown fields are skipped."""
    others = varint(8 * 3 + 1) + bytes(8) + varint(8 * 44) + varint(9)
    odd = field(3, b"\x02") + field(2, b"1234") + field(1, 5) + field(9, 1)
    piece = field(1, field(1, b"b") + field(2, -2.0) + odd)
    normalizer = field(3, varint(8 * 3 + 5) + struct.pack("<f", 0) + field(2, 7) + field(5, b""))
    trainer = field(2, field(3, 2) + others + field(35, b"\1"))
    plain = sentencepiece_model(PIECES)
    model = parse_model(plain + piece + trainer + normalizer + field(1, 0) + field(2, 1.0), "m")
    expected = parse_model(plain, "m")
    assert (model.pieces[5:], model.scores[5:], model.kinds[5:]) == (["b"], [-2.0], [1])
    for name in "byte_fallback unk_surface add_dummy_prefix escape_whitespaces charsmap".split():
        assert getattr(model, name) == getattr(expected, name)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (sentencepiece_model(PIECES, {3: 1}), "model_type = unigram: not a BPE model"),
        (sentencepiece_model(PIECES, {3: 9}), "model_type = 9: not a BPE model"),
        (sentencepiece_model(PIECES, {44: b"\xff"}), r"unk_surface \(byte \d+\): is not UTF-8"),
        (sentencepiece_model(PIECES, {43: 5}), "pad_id = 5: expected -1 to 4"),
        (sentencepiece_model(PIECES, {43: -2}), "pad_id = -2: expected -1 to 4"),
        (sentencepiece_model([*PIECES, ("b", 0.0, 7)]), r"type of piece 5 = 7 .*: expected 1 to 6"),
        (sentencepiece_model([*PIECES, ("b", 0.0, 0)]), r"type of piece 5 = 0 .*: expected 1 to 6"),
        (sentencepiece_model([*PIECES, ("", 0.0, 1)]), "piece 5 is empty"),
        (
            sentencepiece_model([*PIECES, ("b", 0.0, BYTE)]),
            "piece 5: 'b' is not the name of a byte",
        ),
        (sentencepiece_model(PIECES[1:]), "0 pieces of type unknown: expected 1"),
        (sentencepiece_model([]), "not a SentencePiece model: 0 pieces"),
    ],
)
def test_a_model_that_is_not_right_is_refused(data: bytes, words: str) -> None:
    with pytest.raises((FileError, FormatError), match=f"m: .*{words}"):
        parse_model(data, "m")


def test_names_of_bytes() -> None:
    assert [byte_of(f"<0x{n:02X}>") for n in range(256)] == list(range(256))
    assert byte_of("<0xab>") == 0xAB
    for name in ("<0x1>", "<0x100>", "<0xG0>", "<1x00>", "<0x00)", "a"):
        assert byte_of(name) == -1
