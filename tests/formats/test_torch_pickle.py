"""PyTorch's files: numbers in, and nothing of what is in them runs."""

from __future__ import annotations

import struct
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pyllm2.errors import FileError, FormatError, PyLLM2Error
from pyllm2.formats.tensors import narrowed
from pyllm2.formats.torch_pickle import open_torch
from tests.support import torch_files as files
from tests.support.golden import shared_folder
from tests.support.profiles import writes_files

FLOATS = arrays(np.float32, array_shapes(min_dims=0, max_dims=3), elements=st.floats(width=32))
STORED = files.storage("0", "<f4", 6)
SIX = {"0": np.arange(6, dtype="<f4").tobytes()}


def written(folder: Path, data: bytes) -> Path:
    path = folder / "m.pth"
    path.write_bytes(data)
    return path


@writes_files
@given(array=FLOATS, dtype=st.sampled_from(["F32", "F16", "BF16"]), axes=st.randoms())
def test_a_tensor_of_any_layout_is_read_exactly(
    tmp_path: Path, array: np.ndarray, dtype: str, axes: object
) -> None:
    """Transposed ones too; numbers are those of the stored dtype, widened."""
    stored = narrowed(array, dtype).transpose(
        sorted(range(array.ndim), key=lambda _: axes.random())
    )
    path = written(tmp_path, files.torch_file({"w": stored}))
    found = open_torch(path)["w"].read("w")
    expected = stored
    if dtype == "BF16":
        expected = (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    np.testing.assert_array_equal(found, expected.astype(np.float32))
    assert found.dtype == np.float32


def test_tensors_share_a_storage_and_begin_anywhere_in_it(tmp_path: Path) -> None:
    """Offset and strides count numbers."""
    items = {
        "row": files.tensor(STORED, 3, [1, 3], [99, 1]),
        "column": files.tensor(STORED, 1, [3], [2]),
        "parameter": b"ctorch._utils\n_rebuild_parameter\n"
        + files.tuple_of(files.tensor(STORED, 0, [], []), b"\x88", files.ORDERED_DICT)
        + b"R",
    }
    found = open_torch(written(tmp_path, files.archive(files.dictionary(items), SIX)))
    assert found["row"].read("").tolist() == [[3, 4, 5]]
    assert found["column"].read("").tolist() == [1, 3, 5]
    assert found["parameter"].read("").tolist() == 0


WRONG = {
    "beyond its end": (files.tensor(STORED, 4, [3], [1]), "its storage has 6 numbers"),
    "far beyond its end": (files.tensor(STORED, 0, [2], [2**40]), "its storage has 6 numbers"),
    "expanded": (files.tensor(STORED, 0, [10**6, 10**6], [0, 0]), "its storage has 6 numbers"),
    "negative": (files.tensor(STORED, -1, [2], [1]), "not a pickle of tensors"),
    "negative stride": (files.tensor(STORED, 5, [2], [-1]), "not a pickle of tensors"),
    "many dimensions": (files.tensor(STORED, 0, [1] * 99, [1] * 99), "99 dimensions"),
    "shape and strides": (files.tensor(STORED, 0, [2], [1, 1]), "not a pickle of tensors"),
    "another storage": (files.tensor(files.storage("1", "<f4", 6), 0, [6], [1]), "is missing"),
    "longer storage": (files.tensor(files.storage("0", "<f4", 7), 0, [6], [1]), "has 24 bytes"),
    "no tensor": (files.integer(7), "is of the type int: expected tensors"),
    "nested": (b"}", "is of the type dict: expected tensors"),
    "a call": (b"cos\nsystem\n" + files.tuple_of(files.text("true")) + b"R", "calls 'os.system'"),
    "a name in parts": (b"\x8c\x02os\x8c\x06system\x93", "calls 'os.system'"),
    "an attribute": (b"ctorch._utils\n_rebuild_tensor_v2\n}b", "not a pickle of tensors"),
    "an instance": (b"(ios\nsystem\n", "instruction INST"),
    "a large memo": (b"K\x01r\xff\xff\xff\x7f0", "instruction POP"),
    "a long string": (b"\x8d" + struct.pack("<Q", 2**50) + b"a", "not a whole pickle"),
    "an empty stack": (b"RRR", "not a pickle of tensors"),
    "deep nesting": (b")" + b"\x85" * 10**5, "is of the type tuple"),
    "a deep name": (files.text("a") + b")" + b"\x85" * 10**5 + files.text("b"), "not a pickle"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_pickle_that_is_more_or_less_than_tensors_is_refused(tmp_path: Path, name: str) -> None:
    """In one line, before anything of it is allocated or called."""
    value, reason = WRONG[name]
    path = written(tmp_path, files.archive(files.dictionary({"w": value}), SIX))
    with pytest.raises(FormatError) as caught:
        open_torch(path)
    assert reason in str(caught.value)
    assert str(caught.value).isprintable()


def test_archives_that_torch_does_not_write_are_refused(tmp_path: Path) -> None:
    """Compressed ones (a bomb is one), big-endian ones, those with a file twice or none."""
    good = files.dictionary({"w": files.tensor(STORED, 0, [6], [1])})
    bomb = files.archive(good, {"0": bytes(10**6)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(FormatError, match="is compressed"):
        open_torch(written(tmp_path, bomb))
    with pytest.raises(FormatError, match="byteorder = 'big'"):
        open_torch(written(tmp_path, files.archive(good, SIX, byteorder=b"big")))
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = files.archive(good, SIX, **{"data/0": bytes(24)})
    with pytest.raises(FormatError, match="is there twice"):
        open_torch(written(tmp_path, twice))
    with pytest.raises(FormatError, match="0 files"):
        open_torch(written(tmp_path, files.archive(good, SIX).replace(b"data.pkl", b"data.pkx")))


@writes_files
@given(cut=st.floats(0, 1), at=st.floats(0, 1), byte=st.integers(0, 255))
def test_a_damaged_file_is_read_or_refused(
    tmp_path: Path, cut: float, at: float, byte: int
) -> None:
    """Cut anywhere, or with one byte changed."""
    data = files.torch_file({"w": np.arange(6, dtype="<f4"), "v": np.zeros((2, 2), "<u2")})
    changed = bytearray(data)
    changed[int(at * (len(data) - 1))] = byte
    for damaged in (data[: int(cut * len(data))], bytes(changed)):
        with suppress(PyLLM2Error):
            for name, place in open_torch(written(tmp_path, damaged)).items():
                place.read(name)


def test_the_recorded_bad_files_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """`evil.pth` would print; `legacy.pth` is of the time before the archives."""
    shared = shared_folder()
    if shared is None:
        pytest.skip("no golden files")
    folder = shared / "golden" / "real" / "refuse"
    with pytest.raises(FormatError, match=r"calls '__builtin__.print'"):
        open_torch(folder / "evil.pth")
    with pytest.raises(FileError, match=r"torch before 1\.6"):
        open_torch(folder / "legacy.pth")
    assert capsys.readouterr().out == ""
