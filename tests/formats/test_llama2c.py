"""Checkpoints and vocabularies: what is written is read back, from any memory layout."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pyllm2
from pyllm2.errors import FileError
from pyllm2.formats.llama2c import write_checkpoint
from pyllm2.formats.vocabulary import write_vocabulary
from pyllm2.formats.writer import atomic_write
from pyllm2.llama2.model import Weights
from pyllm2.llama2.tokenizer import from_vocabulary_file
from pyllm2.testing import strategies

writes_files = settings(
    max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def named(weights: Weights) -> dict[str, Any]:
    return {k: v for k, v in vars(weights).items() if v is not None}


@writes_files
@given(model=strategies.models(), version=st.sampled_from([0, 1]), layout=st.integers(0, 3))
def test_a_written_model_is_read_back(
    tmp_path: Path, model: Any, version: int, layout: int
) -> None:
    """Every tensor, bit for bit, whether it was C- or F-ordered, strided or big-endian."""
    variants = [
        lambda a: a,
        np.asfortranarray,
        lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
        lambda a: a.astype(">f4"),
    ]
    path = tmp_path / "m.bin"
    tensors = {name: variants[layout](a) for name, a in named(model.weights).items()}
    write_checkpoint(path, dataclasses.asdict(model.config), tensors, version)
    loaded = pyllm2.load(path)
    assert loaded.config == model.config
    for name, array in named(model.weights).items():
        np.testing.assert_array_equal(getattr(loaded.model.weights, name), array, err_msg=name)
    assert (loaded.model.weights.classifier is None) == (model.weights.classifier is None)


@writes_files
@given(model=strategies.models())
def test_weights_are_views_of_one_read_only_buffer(tmp_path: Path, model: Any) -> None:
    """Read or mapped: no tensor is a copy, none can be written."""
    path = tmp_path / "m.bin"
    write_checkpoint(path, dataclasses.asdict(model.config), named(model.weights))
    for memory_map in (False, True):
        weights = named(pyllm2.load(path, memory_map=memory_map).model.weights)
        addresses = [a.__array_interface__["data"][0] for a in weights.values()]
        assert max(addresses) - min(addresses) < path.stat().st_size
        assert not any(a.flags.writeable or a.flags.owndata for a in weights.values())


@writes_files
@given(vocabulary=strategies.vocabularies())
def test_a_written_vocabulary_is_read_back(tmp_path: Path, vocabulary: Any) -> None:
    """Pieces and scores, without a warning."""
    pieces, scores = vocabulary
    write_vocabulary(tmp_path / "t.bin", pieces, scores)
    found, notes = from_vocabulary_file(tmp_path / "t.bin", len(pieces))
    assert (found.pieces, found.scores, notes) == (pieces, scores, [])


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    """Whatever happens inside the block, the target is old or new and nothing lies beside it."""
    path = tmp_path / "m.bin"
    path.write_bytes(b"old")

    def write_half() -> None:
        with atomic_write(path) as file:
            file.write(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["m.bin"]


def test_a_folder_is_not_a_target(tmp_path: Path) -> None:
    """Refused before anything is written."""
    with pytest.raises(FileError, match="is a folder"), atomic_write(tmp_path) as file:
        file.write(b"x")
