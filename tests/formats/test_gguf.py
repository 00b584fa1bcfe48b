"""GGUF: what was written is read, recorded files number by number, and lies are refused."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyllm2.errors import FileError
from pyllm2.formats import gguf as gguf_module
from pyllm2.formats.gguf import read_gguf
from tests.support import gguf_files as g
from tests.support.gguf_files import Row, gguf
from tests.support.golden import shared_folder

SHARED = shared_folder()
GOLDEN = SHARED / "golden" / "real" / "gguf" if SHARED else Path("nowhere")
WHOLE = sorted(path for path in GOLDEN.rglob("*.gguf") if path.with_suffix(".expect.json").exists())
BAD = sorted(GOLDEN.rglob("bad-*.gguf"))
DATA = np.arange(8, dtype="<f4").tobytes()


def write(folder: Path, data: bytes, name: str = "m.gguf") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.stem)
def test_recorded_files_have_the_recorded_tensors_and_metadata(path: Path) -> None:
    """Types, shapes, places and every number."""
    expected, found = json.loads(path.with_suffix(".expect.json").read_text()), read_gguf(path)
    assert list(found.tensors) == [row["name"] for row in expected["tensors"]]
    for row in expected["tensors"]:
        tensor = found.tensors[row["name"]]
        assert (tensor.kind.name, list(tensor.shape[::-1])) == (row["type"], row["ne"])
        assert (tensor.start, tensor.nbytes) == (row["offset"], row["nbytes"])
        numbers = found.tensor(row["name"])
        assert numbers.flags.c_contiguous
        assert numbers.shape == tensor.shape
        digest = hashlib.sha256(numbers.astype("<f4").tobytes()).hexdigest()
        assert digest == row["sha256_f32"]
    assert list(found.metadata) == list(expected["metadata"])
    for key, entry in expected["metadata"].items():
        value, recorded = found.metadata[key], entry["value"]
        if isinstance(recorded, dict):  # a long array
            assert len(value) == recorded["length"]
            value, recorded = value[: len(recorded["first"])], recorded["first"]
        assert (list(value) if isinstance(recorded, list) else value) == recorded


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_recorded_bad_files_are_refused_in_one_line(path: Path) -> None:
    with pytest.raises(FileError) as error:
        read_gguf(path)
    assert "\n" not in str(error.value)


def test_rows_are_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any piece size gives the same numbers, and rows can be read alone."""
    x = np.arange(5 * 64, dtype=np.float32).reshape(5, 64)
    path = write(tmp_path, gguf(tensors=[Row("a", (64, 5), g.F32, x.tobytes())]))
    monkeypatch.setattr(gguf_module, "PIECE", 100)
    found = read_gguf(path)
    assert (found.tensor("a") == x).all()
    out = np.zeros((2, 64), np.float32)
    found.read_into("a", out, first_row=3)
    assert (out == x[3:]).all()


def test_a_header_longer_than_one_read(tmp_path: Path) -> None:
    """Vocabularies are larger than the piece in which the header is read."""
    words = [f"word {i}" for i in range(20_000)]
    found = read_gguf(write(tmp_path, gguf([("w", g.ARRAY, (g.STRING, words)), ("n", g.U32, 7)])))
    assert found.metadata == {"w": words, "n": 7}


def test_a_header_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_module, "MAX_HEADER", 100)
    path = write(tmp_path, gguf([("key", g.STRING, "x" * 200)]))
    with pytest.raises(FileError, match="the header exceeds 100 bytes"):
        read_gguf(path)


# Name of the lie, the file, and what the error says.
LIES: list[tuple[str, bytes, str]] = [
    ("empty", b"", "is no GGUF file"),
    ("four bytes", b"GGUF", r"version \(byte 4\): needs 4 bytes, the file has 0 left"),
    ("version 4", gguf(version=4), r"version = 4 \(byte 4\): 2 and 3 are supported"),
    ("big-endian", gguf(version=3 << 24), "is a big-endian GGUF file"),
    ("tensors", gguf(n_tensors=2**60), r"number of tensors = 1152921504606846976 \(byte 8\)"),
    ("entries", gguf(n_entries=2**63), r"number of metadata entries = \d+ \(byte 16\): needs"),
    ("key twice", gguf([("k", g.U32, 1), ("k", g.U32, 1)]), r"key 'k' \(byte 41\): is there twice"),
    ("key not UTF-8", gguf([(b"\xff", g.U32, 1)]), r"key 0 of the metadata \(byte 32\): .*UTF-8"),
    ("value not UTF-8", gguf([("k", g.STRING, b"a\xff")]), r"k \(byte 46\): expected UTF-8"),
    ("type 13", gguf([("k", g.U32, 1)]).replace(b"k\4", b"k\r"), r"type of k = 13 \(byte 33\)"),
    (
        "array of arrays",
        gguf([("k", g.ARRAY, (g.ARRAY, [(g.U32, [1])]))]),
        r"type of the elements of k = 9 \(byte 37\): nested",
    ),
    (
        "long array",
        gguf([("k", g.ARRAY, (g.U32, []))])[:41] + struct.pack("<Q", 2**62),
        r"length of k = 4611686018427387904 \(byte 41\): needs",
    ),
    (
        "long string",
        gguf([("k", g.STRING, "")])[:37] + struct.pack("<Q", 2**40) + b"x" * 9,
        r"length of k = 1099511627776 \(byte 37\): needs",
    ),
    (
        "alignment 24",
        gguf([("general.alignment", g.U32, 24)]),
        r"general.alignment = 24 \(byte 53\): must be a power of two",
    ),
    ("alignment 0", gguf([("general.alignment", g.U32, 0)]), "must be a power of two ≥ 8"),
    ("alignment i32", gguf([("general.alignment", g.I32, 32)]), "must be a u32"),
    ("long name", gguf(tensors=[Row("x" * 65, (8,), data=DATA)]), "its name exceeds 64 bytes"),
    (
        "name twice",
        gguf(tensors=[Row("a", (8,), data=DATA), Row("a", (8,), data=DATA)]),
        "tensor 'a' .*: is there twice",
    ),
    (
        "overlap",
        gguf(tensors=[Row("a", (16,), data=2 * DATA), Row("b", (8,), data=DATA, offset=32)]),
        "tensor 'b' .*: overlaps tensor 'a'",
    ),
    ("offset 8", gguf(tensors=[Row("a", (4,), data=DATA, offset=8)]), "must be a multiple of 32"),
    (
        "offset beyond the end",
        gguf(tensors=[Row("a", (8,), data=DATA, offset=2**40)]),
        "bytes, but tensor 'a' ends at byte",
    ),
    (
        "product of the sizes",
        gguf(tensors=[Row("a", (2**32, 2**32, 2**32), data=DATA)]),
        "tensor 'a' ends at byte 316912650057057350374175801440",
    ),
    ("no dimensions", gguf(tensors=[Row("a", ())]), "number of dimensions of tensor 'a' = 0"),
    (
        "five dimensions",
        gguf(tensors=[Row("a", (1, 1, 1, 1, 1), data=DATA)]),
        "dimensions of tensor 'a' = 5",
    ),
    ("size 0", gguf(tensors=[Row("a", (8, 0), data=DATA)]), r"ne of tensor 'a' = \[8, 0\]"),
    (
        "half a block",
        gguf(tensors=[Row("a", (48,), g.Q8_0, b"x" * 51)]),
        r"ne\[0\] of tensor 'a' = 48 .*: must be a multiple of 32 \(Q8_0\)",
    ),
    (
        "IQ2_XS",
        gguf(tensors=[Row("a", (256,), 17, b"x" * 74)]),
        r"type of tensor 'a' = 17 \(IQ2_XS\) \(byte \d+\): supported are F32, F16",
    ),
    ("type 99", gguf(tensors=[Row("a", (8,), 99, DATA)]), r"type of tensor 'a' = 99 \(byte"),
    ("split.count", gguf([("split.count", g.ARRAY, (g.U32, [1, 2]))]), "must be a whole number"),
    ("cut data", gguf(tensors=[Row("a", (8,), data=DATA)])[:-1], "download incomplete"),
    ("a pointer", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
]


@pytest.mark.parametrize(("data", "words"), [lie[1:] for lie in LIES], ids=[lie[0] for lie in LIES])
def test_a_lie_is_refused_by_name(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(FileError, match=words) as error:
        read_gguf(write(tmp_path, data))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("version", [2, 3])
def test_no_cut_of_a_file_is_accepted(tmp_path: Path, version: int) -> None:
    """Every prefix of a small file is refused."""
    data = gguf(
        [("k", g.ARRAY, (g.STRING, ["a", "b"])), ("f", g.FLOAT, 1.5)],
        [Row("a", (8,), data=DATA)],
        version,
    )
    read_gguf(write(tmp_path, data))
    for n in range(len(data)):
        with pytest.raises(FileError):
            read_gguf(write(tmp_path, data[:n]))


# ---- several files ---------------------------------------------------------------------------


def parts(tmp_path: Path, **changes: Any) -> Path:
    """Two parts with a tensor each. changes: no, count, names, total of the second or of both."""
    names = changes.get("names", ("a", "b"))
    for i, name in enumerate(names):
        entries: list[g.Entry] = [
            ("split.no", g.U16, changes.get("no", i) if i else 0),
            ("split.count", g.U16, changes.get("count", 2) if i else 2),
            ("split.tensors.count", g.I32, changes.get("total", 2)),
        ]
        data = gguf(entries, [Row(name, (8,), data=DATA)])
        write(tmp_path, data, f"m-{i + 1:05}-of-00002.gguf")
    return tmp_path / "m-00001-of-00002.gguf"


def test_parts_are_one_model(tmp_path: Path) -> None:
    found = read_gguf(parts(tmp_path))
    assert sorted(found.tensors) == ["a", "b"]
    assert found.tensor("b").tolist() == list(range(8))
    assert len(found.paths) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"no": 5}, "is not part 2 of 2 by its split.no"),
        ({"count": 3}, "is not part 2 of 2"),
        ({"names": ("a", "a")}, "tensor 'a' .*: is in .*00001-of-00002.gguf too"),
        ({"total": 3}, "split.tensors.count = 3 .*: the 2 parts have 2 tensors"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(FileError, match=words):
        read_gguf(parts(tmp_path, **changes))


def test_a_missing_part_and_a_wrong_name(tmp_path: Path) -> None:
    first = parts(tmp_path)
    second = tmp_path / "m-00002-of-00002.gguf"
    with pytest.raises(FileError, match="is part 2 of 2 of a model: name the first"):
        read_gguf(second)
    second.unlink()
    with pytest.raises(FileError, match=r"m-00002-of-00002\.gguf: no such file"):
        read_gguf(first)
    with pytest.raises(FileError, match=r"expected …-00001-of-00002\.gguf"):
        read_gguf(first.rename(tmp_path / "model.gguf"))
