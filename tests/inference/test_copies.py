"""A model is pickled and copied: what comes back says the same, on the same backend."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyllm2
from pyllm2.errors import FileError
from pyllm2.gpt2.checkpoint import save_parameters
from pyllm2.gpt2.config import GPT2Config
from pyllm2.gpt2.initial import initial_parameters
from pyllm2.inference.language_model import LanguageModel
from pyllm2.tokenizers.byte_level import byte_tokenizer
from tests.support import llama2_files
from tests.support.tested import BACKENDS, engine_of

IDS = [1, 5, 200, 7]


def through_pickle(protocol: int) -> Callable[[Any], Any]:
    return lambda x: pickle.loads(pickle.dumps(x, protocol))


WAYS = [copy.copy, copy.deepcopy, *map(through_pickle, range(pickle.HIGHEST_PROTOCOL + 1))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama-2 in float32 and int8, and a GPT-2 of bytes."""
    path = tmp_path_factory.mktemp("copies")
    llama2_files.lay_out(path, {"q8.bin": llama2_files.quantized()})
    config = GPT2Config(8, 257, 1, 2, 8, 257)
    save_parameters(path / "gpt2.bin", config, initial_parameters(config, 1))
    return path


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "tokenizer"), [("m.bin", "t.bin"), ("q8.bin", None), ("gpt2.bin", "bytes")]
)
def test_a_copy_says_the_same(
    folder: Path, name: str, tokenizer: str | None, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every way, in another folder, after the original has been used."""
    engine_of(backend)  # skips where it cannot run
    monkeypatch.chdir(folder)
    model = pyllm2.load(name, tokenizer=tokenizer, backend=backend, threads=1)
    expected = model.logits(IDS)
    os.chdir("/")
    for way in WAYS:
        again = way(model)
        assert isinstance(again, LanguageModel)
        assert (again.backend, again.config) == (model.backend, model.config)
        np.testing.assert_array_equal(again.logits(IDS), expected)
        if tokenizer is not None:
            text = [token.bytes for token in again.generate("a", 4, seed=1)]
            assert text == [token.bytes for token in model.generate("a", 4, seed=1)]


def test_a_missing_file_is_named(folder: Path, tmp_path: Path) -> None:
    """What was pickled is where to find the model."""
    (tmp_path / "m.bin").write_bytes((folder / "m.bin").read_bytes())
    pickled = pickle.dumps(pyllm2.load(tmp_path / "m.bin", backend="numpy"))
    assert len(pickled) < 1000
    (tmp_path / "m.bin").unlink()
    with pytest.raises(FileError, match=r"m\.bin: no such file"):
        pickle.loads(pickled)


def test_a_model_made_in_memory_is_refused(folder: Path) -> None:
    """In one line."""
    model = pyllm2.load(folder / "m.bin", backend="numpy")
    with pytest.raises(FileError, match=r"^the model: was not loaded from a file"):
        pickle.dumps(LanguageModel(model.model, None, "numpy"))


def test_a_tokenizer_is_copied_without_what_it_remembers() -> None:
    """The ids are the same."""
    for tokenizer in (pyllm2.load(backend="numpy").tokenizer, byte_tokenizer()):
        size = len(pickle.dumps(tokenizer))
        ids = tokenizer.encode("Once upon a time " * 100)
        assert len(pickle.dumps(tokenizer)) == size
        for way in WAYS:
            assert way(tokenizer).encode("Once upon a time " * 100) == ids
