"""llm.c's files: what is written is read back, and the recorded files byte for byte."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pyllm2.formats import llmc, llmc_vocabulary
from pyllm2.formats.llmc_evaluation import Example, read_examples, write_examples
from pyllm2.formats.llmc_header import header_bytes
from pyllm2.formats.llmc_tokens import read_shard, write_shard
from pyllm2.formats.reader import open_source
from pyllm2.gpt2.checkpoint import load_parameters, save_parameters
from pyllm2.gpt2.config import GPT2Config
from pyllm2.parameters import Parameters
from tests.support.profiles import writes_files

LAYOUTS = [
    lambda a: a,
    np.asfortranarray,
    lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    lambda a: a.astype(">f4"),
]


@st.composite
def configs(draw: Any) -> GPT2Config:
    """Small configs, with and without padding of the vocabulary."""
    V, NH = draw(st.integers(1, 20)), draw(st.integers(1, 3))
    return GPT2Config(
        max_seq_len=draw(st.integers(1, 5)),
        vocab_size=V,
        num_layers=draw(st.integers(1, 3)),
        num_heads=NH,
        channels=NH * draw(st.integers(1, 3)),
        padded_vocab_size=V + draw(st.integers(0, 4)),
    )


def parameters(config: GPT2Config, seed: int) -> Parameters:
    """Random bit patterns, NaN among them."""
    words = np.random.default_rng(seed).integers(0, 2**32, config.parameters(), np.uint32)
    return Parameters(config.shapes(), words.view(np.float32))


def test_the_fields_are_those_of_the_model() -> None:
    """The config has the fields of the header in the same order."""
    assert tuple(field.name for field in dataclasses.fields(GPT2Config)) == llmc.FIELDS


@writes_files
@given(configs(), st.integers(0, 99), st.sampled_from(LAYOUTS))
def test_a_written_model_is_read_back(
    tmp_path: Path, config: GPT2Config, seed: int, layout: Any
) -> None:
    """Every bit comes back, from any memory layout, in writable memory."""
    path = tmp_path / "m.bin"
    params = parameters(config, seed)
    arrays = {name: layout(array) for name, array in params.items()}
    save_parameters(path, config, arrays)
    assert path.stat().st_size == 1024 + 4 * config.parameters()
    found_config, found = load_parameters(path)
    assert found_config == config
    np.testing.assert_array_equal(found.flat.view(np.uint32), params.flat.view(np.uint32))
    assert found.shapes == params.shapes
    assert found.flat.flags.writeable
    save_parameters(tmp_path / "again.bin", found_config, found)
    assert (tmp_path / "again.bin").read_bytes() == path.read_bytes()


@writes_files
@given(configs(), st.integers(0, 99))
def test_bfloat16_is_the_upper_half(tmp_path: Path, config: GPT2Config, seed: int) -> None:
    """A version 5 file of upper halves gives float32 numbers whose lower halves are zero."""
    params = parameters(config, seed)
    upper = (params.flat.view(np.uint32) >> 16).astype("<u2")
    header = header_bytes(llmc.MAGIC, 5, *dataclasses.astuple(config))
    (tmp_path / "m.bin").write_bytes(header + upper.tobytes())
    _, found = load_parameters(tmp_path / "m.bin")
    np.testing.assert_array_equal(found.flat.view(np.uint32), upper.astype(np.uint32) << 16)


def test_a_wrong_shape_is_not_written(tmp_path: Path) -> None:
    """It is a ValueError, and the old file is unchanged."""
    config = GPT2Config(2, 3, 1, 1, 2, 4)
    arrays = {**parameters(config, 1), "wpe": np.zeros((3, 2), np.float32)}
    (tmp_path / "m.bin").write_bytes(b"old")
    with pytest.raises(ValueError, match=r"wpe has shape \(3, 2\), expected \(2, 2\)"):
        save_parameters(tmp_path / "m.bin", config, arrays)
    assert (tmp_path / "m.bin").read_bytes() == b"old"


@writes_files
@given(configs(), st.integers(1, 3), st.integers(1, 3))
def test_a_debug_state_is_its_parts(tmp_path: Path, config: GPT2Config, B: int, T: int) -> None:
    """Tokens, targets, logits of V columns, loss and gradients follow each other without gaps."""
    V, n = config.vocab_size, config.parameters()
    ids = np.arange(2 * B * T, dtype="<i4")
    numbers = np.arange(B * T * V + 1 + n, dtype="<f4")
    header = header_bytes(20240327, 2, B, T)
    (tmp_path / "s.bin").write_bytes(header + ids.tobytes() + numbers.tobytes())
    found = llmc.read_debug_state(tmp_path / "s.bin", config.vocab_size, config.shapes())
    np.testing.assert_array_equal(found.tokens, ids[: B * T].reshape(B, T))
    np.testing.assert_array_equal(found.targets, ids[B * T :].reshape(B, T))
    np.testing.assert_array_equal(found.logits, numbers[: B * T * V].reshape(B, T, V))
    assert found.loss == numbers[B * T * V]
    flat = np.concatenate([array.ravel() for array in found.gradients.values()])
    np.testing.assert_array_equal(flat, numbers[B * T * V + 1 :])
    assert {name: a.shape for name, a in found.gradients.items()} == config.shapes()


@writes_files
@given(data=st.data(), width=st.sampled_from([2, 4]))
def test_a_written_shard_is_read_back(tmp_path: Path, data: Any, width: int) -> None:
    """Any range of ids comes back, up to the largest id that fits."""
    most = 2**16 - 1 if width == 2 else 2**31 - 1
    ids = data.draw(arrays(np.int64, st.integers(1, 40), elements=st.integers(0, most)))
    write_shard(tmp_path / "s.bin", ids, width)
    assert (tmp_path / "s.bin").stat().st_size == 1024 + width * len(ids)
    shard = read_shard(tmp_path / "s.bin")
    start = data.draw(st.integers(0, len(ids)))
    n = data.draw(st.integers(0, len(ids) - start))
    found = shard.read(start, n)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, ids[start : start + n])
    assert shard.count == len(ids)


def test_a_shard_is_written_and_checked_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size of a chunk changes no byte, and a bad id is found in any chunk."""
    ids = np.arange(1000)
    write_shard(tmp_path / "a.bin", ids)
    monkeypatch.setattr("pyllm2.formats.llmc_tokens._CHUNK", 7)
    write_shard(tmp_path / "b.bin", ids)
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()
    read_shard(tmp_path / "b.bin", vocab_size=1000)
    with pytest.raises(Exception, match="token 700 at index 700: vocabulary is 700"):
        read_shard(tmp_path / "b.bin", vocab_size=700)


@pytest.mark.parametrize(("ids", "width"), [([], 2), ([-1], 2), ([2**16], 2), ([2**32], 4)])
def test_ids_that_do_not_fit_are_not_written(ids: list[int], width: int, tmp_path: Path) -> None:
    """They are a ValueError."""
    with pytest.raises(ValueError, match="ids"):
        write_shard(tmp_path / "s.bin", np.array(ids, np.int64), width)
    assert not (tmp_path / "s.bin").exists()


pieces = st.lists(st.binary(min_size=1, max_size=255), min_size=1, max_size=30)


@writes_files
@given(pieces=pieces, data=st.data())
def test_a_written_vocabulary_is_read_back(tmp_path: Path, pieces: list[bytes], data: Any) -> None:
    """Any bytes and any id of end-of-text come back."""
    end_of_text = data.draw(st.integers(0, len(pieces) - 1))
    llmc_vocabulary.write_vocabulary(tmp_path / "t.bin", pieces, end_of_text)
    with open_source(tmp_path / "t.bin") as source:
        found = llmc_vocabulary.read_vocabulary(source)
    assert (found.pieces, found.end_of_text) == (pieces, end_of_text)


def test_version_1_is_gpt2s_vocabulary(tmp_path: Path) -> None:
    """The last of its 50257 ids is end-of-text, whatever the unused field holds."""
    header = struct.pack("<4i", 20240328, 1, 50257, 7).ljust(1024, b"\0")
    (tmp_path / "t.bin").write_bytes(header + b"\x01a" * 50257)
    with open_source(tmp_path / "t.bin") as source:
        assert llmc_vocabulary.read_vocabulary(source).end_of_text == 50256


@pytest.mark.parametrize("piece", [b"", b"x" * 256])
def test_a_piece_that_does_not_fit_is_not_written(piece: bytes, tmp_path: Path) -> None:
    """It is a ValueError."""
    with pytest.raises(ValueError, match=f"token 1 has {len(piece)} bytes"):
        llmc_vocabulary.write_vocabulary(tmp_path / "t.bin", [b"a", piece], 0)


ids = st.lists(st.integers(0, 65534), min_size=1, max_size=9)
examples = st.lists(
    st.builds(Example, st.integers(0, 3), ids, st.lists(ids, min_size=4, max_size=4)),
    min_size=1,
    max_size=9,
)


@writes_files
@given(examples)
def test_written_examples_are_read_back(tmp_path: Path, examples: list[Example]) -> None:
    """The header has their number and the size of the longest."""
    write_examples(tmp_path / "e.bin", examples)
    assert read_examples(tmp_path / "e.bin") == examples
    n, longest = struct.unpack_from("<2i", (tmp_path / "e.bin").read_bytes(), 8)
    sizes = [2 * (10 + len(e.context) + sum(map(len, e.completions))) for e in examples]
    assert (n, longest) == (len(examples), max(sizes))


@pytest.mark.parametrize(
    "bad",
    [
        [],
        [Example(0, [1], [[1]] * 3)],
        [Example(0, [65535], [[1]] * 4)],
        [Example(0, [1] * 32760, [[1]] * 4)],
    ],
    ids=["none", "three", "large-id", "long"],
)
def test_examples_that_do_not_fit_are_not_written(bad: Any, tmp_path: Path) -> None:
    """They are a ValueError."""
    with pytest.raises(ValueError, match="example"):
        write_examples(tmp_path / "e.bin", bad)


# ---- recorded files -------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["tiny", "small", "micro"])
def test_recorded_models_come_back_byte_for_byte(model: str, shared: Path, tmp_path: Path) -> None:
    """A model that is read and written is unchanged; its debug state has its gradients."""
    folder = shared / "golden/llmc/models" / model
    config, params = load_parameters(folder / "model.bin")
    save_parameters(tmp_path / "m.bin", config, params)
    assert (tmp_path / "m.bin").read_bytes() == (folder / "model.bin").read_bytes()
    V, shapes = config.vocab_size, config.shapes()
    state = llmc.read_debug_state(folder / "debug_state.bin", V, shapes)
    B, T = state.tokens.shape
    with np.load(folder / f"step_b{B}t{T}.npz") as step:
        np.testing.assert_array_equal(state.tokens, step["x"])
        np.testing.assert_array_equal(state.targets, step["y"])
        assert abs(state.loss - step["c_loss"]) < 2e-5
        np.testing.assert_allclose(state.gradients["wpe"], step["c_grad_wpe"], rtol=0, atol=1e-5)


def test_the_recorded_bfloat16_model_is_the_float32_one_rounded(shared: Path) -> None:
    """It is rounded to nearest, ties to even."""
    folder = shared / "golden/llmc/models/tiny"
    _, exact = load_parameters(folder / "model.bin")
    _, rounded = load_parameters(folder / "model_bf16.bin")
    words = exact.flat.view(np.uint32)
    expected = (words + 0x7FFF + (words >> 16 & 1)) & 0xFFFF0000
    np.testing.assert_array_equal(rounded.flat.view(np.uint32), expected)


def test_the_recorded_llama3_shard_is_read(shared: Path, tmp_path: Path) -> None:
    """Its 32-bit ids are the recorded ones, and are written to the same bytes."""
    folder = shared / "golden/llmc/formats"
    expected = json.loads((folder / "shard_llama3.json").read_text())["tokens"]
    shard = read_shard(folder / "shard_llama3.bin")
    found = shard.read(0, shard.count)
    assert found.tolist() == expected
    write_shard(tmp_path / "s.bin", found, 4)
    assert (tmp_path / "s.bin").read_bytes() == (folder / "shard_llama3.bin").read_bytes()


@pytest.mark.parametrize("name", ["tokenizer_v2_97", "tokenizer_v2_97_eot3"])
def test_recorded_tokenizers_come_back_byte_for_byte(
    name: str, shared: Path, tmp_path: Path
) -> None:
    """Their tokens are the recorded ones."""
    folder = shared / "golden/llmc/tokenizer"
    recorded = json.loads((folder / "tokenizer.json").read_text())
    (row,) = (r for r in recorded.values() if r.get("file") == f"{name}.bin")
    with open_source(folder / f"{name}.bin") as source:
        found = llmc_vocabulary.read_vocabulary(source)
    assert [piece.hex() for piece in found.pieces] == row["tokens_hex"]
    assert found.end_of_text == row["eot"]
    llmc_vocabulary.write_vocabulary(tmp_path / "t.bin", found.pieces, found.end_of_text)
    assert (tmp_path / "t.bin").read_bytes() == (folder / f"{name}.bin").read_bytes()


@pytest.mark.parametrize("name", ["eval_small.bin", "text_eval.bin"])
def test_recorded_examples_come_back_byte_for_byte(name: str, shared: Path, tmp_path: Path) -> None:
    """A file that is read and written is unchanged."""
    path = shared / "golden/llmc/evalloader" / name
    write_examples(tmp_path / "e.bin", read_examples(path))
    assert (tmp_path / "e.bin").read_bytes() == path.read_bytes()
