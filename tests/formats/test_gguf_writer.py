"""GGUF as we write it: read again by us, and by the gguf package where it is installed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from pyllm2.errors import FileError
from pyllm2.formats.gguf import ALIGNMENT, read_gguf
from pyllm2.formats.gguf_blocks import BY_NAME
from pyllm2.formats.gguf_writer import DTYPES, NewTensor, kind_for, write_gguf, write_model
from tests.support.profiles import writes_files

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "text": "ünï\0code",
    "flag": True,
    "n": 2**32 - 1,
    "x": 1.5,
    "long": np.uint64(2**63),
    "small": np.int8(-3),
    "double": np.float64(0.1),
    "words": ["a", "", "ß"],
    "numbers": np.arange(5, dtype=np.int32),
    "floats": np.array([0.5, 0.25], np.float32),
    "flags": np.array([True, False]),
}


def tensor(name: str, numbers: np.ndarray, dtype: str) -> NewTensor:
    return NewTensor(name, numbers.shape, kind_for(dtype, numbers.shape), lambda: numbers)


def rounded(numbers: np.ndarray, kind: Any) -> np.ndarray:
    """What a format keeps of these numbers."""
    assert kind.quantize is not None
    blocks = kind.quantize(numbers.reshape(-1, kind.numbers))
    return kind.dequantize(blocks).reshape(numbers.shape)


@writes_files
@given(
    shapes=st.lists(array_shapes(max_dims=3, max_side=5), max_size=4),
    whole_blocks=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_what_is_written_is_read(
    tmp_path: Path, shapes: list[tuple[int, ...]], whole_blocks: bool, dtype: str
) -> None:
    """Metadata with their types, and every number that the format can hold."""
    rng, width = np.random.default_rng(1), 32 if whole_blocks else 1
    drawn = [rng.standard_normal((*s[:-1], width * s[-1])).astype(np.float32) for s in shapes]
    path = tmp_path / "m.gguf"
    write_gguf(path, METADATA, [tensor(f"t{i}", x, dtype) for i, x in enumerate(drawn)])
    found = read_gguf(path)
    assert path.stat().st_size % ALIGNMENT == 0
    assert list(found.metadata) == list(METADATA)
    for key, value in METADATA.items():
        assert np.array_equal(found.metadata[key], value), key
    for i, x in enumerate(drawn):
        kind = found.tensors[f"t{i}"].kind
        assert kind == kind_for(dtype, x.shape)
        assert np.array_equal(found.tensor(f"t{i}"), rounded(x, kind))


def test_the_gguf_package_reads_it(tmp_path: Path) -> None:
    """Types, shapes and numbers."""
    package = pytest.importorskip("gguf")
    path, rng = tmp_path / "m.gguf", np.random.default_rng(1)
    arrays = {d: rng.standard_normal((3, 64)).astype(np.float32) for d in DTYPES}
    write_gguf(path, METADATA, [tensor(d, x, d) for d, x in arrays.items()])
    reader = package.GGUFReader(path)
    assert reader.get_field("text").contents() == METADATA["text"]
    assert reader.get_field("words").contents() == METADATA["words"]
    assert reader.get_field("numbers").contents() == [0, 1, 2, 3, 4]
    for found in reader.tensors:
        kind = BY_NAME[found.name.upper()]
        assert (found.tensor_type.name, list(found.shape)) == (kind.name, [64, 3])
        numbers = package.quants.dequantize(found.data, found.tensor_type)
        expected = rounded(arrays[found.name], kind)
        assert np.array_equal(np.asarray(numbers, np.float32).reshape(3, 64), expected)


def test_vectors_are_f32_and_odd_rows_f16() -> None:
    assert kind_for("q8_0", (64,)).name == "F32"
    assert kind_for("q8_0", (2, 64)).name == "Q8_0"
    assert kind_for("q8_0", (2, 48)).name == "F16"


@pytest.mark.parametrize("dtype", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("value", [1e9, math.inf, math.nan])
def test_a_number_that_the_format_cannot_hold(tmp_path: Path, dtype: str, value: float) -> None:
    """Refused by the tensor's name, and no file is left."""
    x = np.full((1, 32), value, np.float32)
    found = "numbers up to" if math.isfinite(value) else f"a number that is {value}"
    with pytest.raises(FileError, match=f"tensor 'big' has {found}"):
        write_gguf(tmp_path / "m.gguf", {}, [tensor("big", x, dtype)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("dtype", "number"), [("f32", 0), ("f16", 1), ("q4_0", 2), ("q8_0", 7), ("bf16", 32)]
)
def test_the_file_type_is_llama_cpps_number(tmp_path: Path, dtype: str, number: int) -> None:
    """Given, or that of most matrices; vectors say nothing."""
    path, rng = tmp_path / "m.gguf", np.random.default_rng(1)
    matrix, vector = rng.standard_normal((2, 32)).astype(np.float32), np.ones(32, np.float32)
    rows = [tensor(f"m{i}", matrix, dtype) for i in range(2)] + [tensor("x", matrix, "f32")]
    rows += [tensor(f"v{i}", vector, "f32") for i in range(9)]
    for said in (dtype, None):
        write_model(path, "llama", {"block_count": 3}, rows, said, {"general.name": "n"})
        assert dict(read_gguf(path).metadata) == {
            "general.architecture": "llama",
            "general.name": "n",
            "llama.block_count": 3,
            "general.file_type": number,
            "general.quantization_version": 2,
        }
