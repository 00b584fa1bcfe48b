"""Our checks of a safetensors header give the verdict of the library."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pyllm2.errors import FileError, FormatError, PyLLM2Error
from pyllm2.formats.safetensors_file import (
    SafetensorsFile,
    open_safetensors,
    write_safetensors,
    write_weights,
)
from pyllm2.formats.tensors import narrowed, widened
from tests.support.golden import shared_folder
from tests.support.profiles import writes_files

library = pytest.importorskip("safetensors")
FLOATS = arrays(np.float32, array_shapes(min_dims=0, max_dims=3), elements=st.floats(width=32))


def verdict(path: Path) -> bool:
    """Whether the library opens the file."""
    try:
        with library.safe_open(path, framework="numpy"):
            return True
    except library.SafetensorError:
        return False


def ours(path: Path) -> bool:
    try:
        open_safetensors(path)
    except PyLLM2Error:
        return False
    return True


def test_the_recorded_headers_are_accepted_and_refused() -> None:
    """ok*.safetensors load, bad_*.safetensors do not."""
    shared = shared_folder()
    if shared is None:
        pytest.skip("no golden files")
    files = sorted((shared / "golden" / "real" / "refuse").glob("*.safetensors"))
    assert len(files) > 10
    for path in files:
        assert ours(path) == path.name.startswith("ok") == verdict(path), path.name


# Mostly right: one field of one tensor is another value.
VALUES = [
    *(0, 1, 2, 4, 8, 16, -1, 2**31, 2**62, 2**64, 1.0, True, None, "F32", "F33", "BF16", [], [2]),
    *([0, 8], [8, 16], [16, 8], [4, 12], [0, 2**63], [2, 2], [2**32, 2**32], [0], {}),
]


@writes_files
@given(
    change=st.none() | st.tuples(st.sampled_from("ab"), st.sampled_from(VALUES)),
    field=st.sampled_from(["dtype", "shape", "data_offsets", "more", None]),
    rest=st.sampled_from([0, 0, 0, 1, -1]),
    padding=st.integers(0, 3),
)
def test_a_false_header_is_refused_as_the_library_refuses_it(
    tmp_path: Path, change: Any, field: str | None, rest: int, padding: int
) -> None:
    """Fields of a wrong type or value, gaps, overlaps, bytes that are missing or left over."""
    header: dict[str, Any] = {
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "F16", "shape": [2, 2], "data_offsets": [8, 16]},
        "__metadata__": {"k": "v"},
    }
    if change is not None:
        name, value = change
        if field is None:
            header[name] = value
        else:
            header[name][field] = value
    text = json.dumps(header).encode() + b" " * padding
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16 + rest))
    assert ours(path) == verdict(path)


@writes_files
@given(array=FLOATS, dtype=st.sampled_from(["F32", "F16", "BF16"]))
def test_weights_are_written_to_the_nearest_number(
    tmp_path: Path, array: np.ndarray, dtype: str
) -> None:
    """And read back: bfloat16 by our own arithmetic, judged by the distance to both neighbours."""
    path = tmp_path / "w.safetensors"
    arguments = path, {"w": array.shape}, lambda _: array, {"w": dtype}, {"format": "pt"}
    if (np.isinf(widened(narrowed(array, dtype))) & np.isfinite(array)).any():
        with pytest.raises(FileError, match=f"too large for {dtype}, write f32"):
            write_weights(*arguments)
        return
    write_weights(*arguments)
    assert verdict(path)
    found = open_safetensors(path).read("w", array.shape)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(array))
    np.testing.assert_array_equal(found, widened(narrowed(found, dtype)).astype(np.float32))
    if dtype == "BF16":
        bits = np.array(narrowed(array, dtype), np.int64)
        with np.errstate(invalid="ignore"):
            error = np.abs(found.astype(float) - array)
            for step in (-1, 1):
                near = np.clip(bits + step, 0, 0xFFFF).astype("<u2")
                other = np.abs(widened(near).astype(float) - array)
                assert not np.any((error > other) & np.isfinite(found) & np.isfinite(other))


def test_an_array_that_is_not_the_expected_is_refused(tmp_path: Path) -> None:
    """By name, dtype or shape; None in a shape is any length."""
    path = tmp_path / "a.safetensors"
    arrays = {"x": np.zeros((2, 3), np.float32), "n": np.arange(4)}
    write_safetensors(path, arrays, {})
    file = SafetensorsFile(path)
    for shape in ((2, 3), (None, 3), (2, None), (None, None)):
        np.testing.assert_array_equal(file.read("x", np.float32, shape), arrays["x"])
    for wrong, words in (((2, 4), "(2, 4)"), ((None, 2), "(any, 2)"), ((2,), "(2)"), ((), "()")):
        with pytest.raises(FormatError, match=re.escape(f"'x': shape (2, 3), expected {words}")):
            file.read("x", np.float32, wrong)
    with pytest.raises(FormatError, match="tensor 'y' is missing"):
        file.read("y", np.float32, (2, 3))
    with pytest.raises(FormatError, match="tensor 'n': I64, expected F32"):
        file.read("n", np.float32, (4,))
    assert file.read_part("n", 1, 3).tolist() == [1, 2]
