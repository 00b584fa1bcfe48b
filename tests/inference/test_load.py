"""Loading: one file, opened once, of either family; options that mean something or are refused."""

from __future__ import annotations

import dataclasses
import errno
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyllm2
from pyllm2.errors import FileError, NotEnoughMemoryError
from pyllm2.formats import llmc
from pyllm2.formats.llmc_header import header_bytes
from pyllm2.gpt2.checkpoint import save_parameters
from pyllm2.gpt2.config import GPT2Config
from pyllm2.gpt2.initial import initial_parameters
from pyllm2.tokenizers.byte_level import byte_tokenizer
from tests.support import llama2_files
from tests.support.tested import BACKENDS

CONFIG = GPT2Config(
    max_seq_len=9, vocab_size=257, num_layers=2, num_heads=3, channels=12, padded_vocab_size=260
)
IDS = [256, 65, 66, 67]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each family, and their tokenizers."""
    path = tmp_path_factory.mktemp("load")
    params = initial_parameters(CONFIG)
    save_parameters(path / "gpt2.bin", CONFIG, params)
    upper = (params.flat.view(np.uint32) >> 16).astype("<u2")
    header = header_bytes(llmc.MAGIC, llmc.BFLOAT16, *dataclasses.astuple(CONFIG))
    (path / "bf16.bin").write_bytes(header + upper.tobytes())
    (path / "llama2.bin").write_bytes(llama2_files.checkpoint())
    (path / "int8.bin").write_bytes(llama2_files.quantized())
    (path / "tokenizer.bin").write_bytes(llama2_files.vocabulary())
    return path


def is_mapped(array: Any) -> bool:
    """Whether an array is a view of a mapped file."""
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, mmap.mmap) or isinstance(getattr(array, "obj", None), mmap.mmap)


@pytest.mark.parametrize("name", ["gpt2.bin", "bf16.bin", "llama2.bin", "int8.bin"])
def test_a_model_is_opened_once(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two openings another file could take its place."""
    opened, system_open = [], os.open

    def recording(path: Any, *arguments: Any, **named: Any) -> int:
        opened.append(os.fspath(path))
        return system_open(path, *arguments, **named)

    monkeypatch.setattr(os, "open", recording)
    pyllm2.load(folder / name, backend="numpy")
    assert opened.count(str(folder / name)) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mapped_gpt2_computes_the_same(backend: str, folder: Path) -> None:
    """The logits are the same bits, and the weights are pages of the file."""
    path = folder / "gpt2.bin"
    copied, mapped = (pyllm2.load(path, backend=backend, memory_map=m) for m in (False, True))
    weights = mapped.model.params.flat  # type: ignore[attr-defined]
    assert is_mapped(weights)
    assert not is_mapped(copied.model.params.flat)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(mapped.logits(IDS), copied.logits(IDS))


def test_writing_into_mapped_weights_leaves_the_file_alone(folder: Path) -> None:
    """Pages are copied when they are written to."""
    path = folder / "gpt2.bin"
    before = path.read_bytes()
    model: Any = pyllm2.load(path, backend="numpy", memory_map=True)
    model.model.params.flat[...] = 0
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "option", "error"),
    [
        ("bf16.bin", "memory_map", "is bfloat16, and only float32 can be memory-mapped"),
        ("gpt2.bin", "lenient", "is of llm.c: lenient is for llama2.c checkpoints only"),
    ],
)
def test_an_option_without_meaning_is_refused(
    name: str, option: str, error: str, folder: Path
) -> None:
    """The error is one line that names the file."""
    with pytest.raises(FileError) as refused:
        pyllm2.load(folder / name, backend="numpy", **{option: True})  # type: ignore[arg-type]
    assert str(refused.value) == f"{folder / name}: {error}"


def test_the_tokenizer_is_asked_for_after_the_model(tmp_path: Path, folder: Path) -> None:
    """A function is called only after the model has been read."""

    def never() -> str:
        raise AssertionError("asked although there is no model")

    (tmp_path / "README.md").write_text("# A model\n")
    for name in ("nosuch.bin", "README.md"):
        with pytest.raises(FileError, match=name):
            pyllm2.load(tmp_path / name, tokenizer=never, backend="numpy")
    model = pyllm2.load(folder / "gpt2.bin", tokenizer=lambda: "bytes", backend="numpy")
    assert model.tokenizer.vocab_size == 257


def test_a_tokenizer_of_another_size_is_refused(folder: Path) -> None:
    """So is one that has been loaded already."""
    for tokenizer in ("bytes", byte_tokenizer()):
        with pytest.raises(FileError, match=rf"bytes: has 257 tokens, .* expects {llama2_files.V}"):
            pyllm2.load(folder / "llama2.bin", tokenizer=tokenizer, backend="numpy")


@pytest.mark.parametrize("name", ["gpt2.bin", "llama2.bin"])
def test_a_model_that_does_not_fit_in_memory_is_refused(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused before it is read; mapped it needs no memory."""
    monkeypatch.setattr("pyllm2.memory.limit", lambda: 1000)
    with pytest.raises(NotEnoughMemoryError, match=r"^needs 0 MB for the parameters, but this "):
        pyllm2.load(folder / name, backend="numpy")
    pyllm2.load(folder / name, backend="numpy", memory_map=True)


@pytest.mark.parametrize("name", ["gpt2.bin", "llama2.bin"])
def test_a_mapping_that_fails_is_one_line(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has the reason of the operating system."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr("mmap.mmap", refuse)
    with pytest.raises(FileError, match=r"cannot be memory-mapped: cannot allocate memory$"):
        pyllm2.load(folder / name, backend="numpy", memory_map=True)
