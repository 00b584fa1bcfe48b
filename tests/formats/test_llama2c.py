"""Checkpoints and vocabularies: what is written is read back, from any memory layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import pyllm2
from pyllm2.formats.llama2c_q8 import quantize_weights
from pyllm2.formats.llama2c_vocabulary import read_vocabulary, write_vocabulary
from pyllm2.formats.reader import open_source
from pyllm2.llama2.checkpoint import save_parameters
from pyllm2.llama2.model import Weights
from pyllm2.testing import strategies
from pyllm2.testing.llama2.strategies import models
from tests.support.profiles import writes_files


def named(weights: Weights) -> dict[str, Any]:
    return {k: v for k, v in vars(weights).items() if v is not None}


@writes_files
@given(model=models(beyond=False), version=st.sampled_from([0, 1]), layout=st.integers(0, 3))
def test_a_written_model_is_read_back(
    tmp_path: Path, model: Any, version: int, layout: int
) -> None:
    """Every array comes back bit for bit, from any memory layout and byte order."""
    variants = [
        lambda a: a,
        np.asfortranarray,
        lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
        lambda a: a.astype(">f4"),
    ]
    path = tmp_path / "m.bin"
    tensors = {name: variants[layout](a) for name, a in named(model.weights).items()}
    save_parameters(path, model.config, tensors, version)
    loaded = pyllm2.load(path)
    assert loaded.config == model.config
    for name, array in named(model.weights).items():
        np.testing.assert_array_equal(getattr(loaded.model.weights, name), array, err_msg=name)
    assert (loaded.model.weights.classifier is None) == (model.weights.classifier is None)


@writes_files
@given(model=models(beyond=False))
def test_weights_are_views_of_one_read_only_buffer(tmp_path: Path, model: Any) -> None:
    """No array is a copy or writable, whether the file is read or mapped."""
    path = tmp_path / "m.bin"
    save_parameters(path, model.config, named(model.weights))
    for memory_map in (False, True):
        weights = named(pyllm2.load(path, memory_map=memory_map).model.weights)
        addresses = [a.__array_interface__["data"][0] for a in weights.values()]
        assert max(addresses) - min(addresses) < path.stat().st_size
        assert not any(a.flags.writeable or a.flags.owndata for a in weights.values())


@writes_files
@given(vocabulary=strategies.vocabularies())
def test_a_written_vocabulary_is_read_back(tmp_path: Path, vocabulary: Any) -> None:
    """Pieces and scores come back, without a warning."""
    pieces, scores = vocabulary
    write_vocabulary(tmp_path / "t.bin", pieces, scores)
    with open_source(tmp_path / "t.bin") as source:
        found = read_vocabulary(source, len(pieces))
    assert (found.pieces, found.scores, found.warnings) == (pieces, scores, [])


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 3))
def test_groups_of_zeros_are_zeros_in_int8(groups: int, size: int, rest: int) -> None:
    """Value and scale 0; and so are numbers after the last whole group."""
    flat = np.zeros(groups * size + min(rest, size - 1), np.float32)
    flat[:size], flat[groups * size :] = -2.0, 9.0
    values, scales = quantize_weights(flat, size)
    assert values.tolist() == [-127] * size + [0] * (len(flat) - size)
    assert scales.tolist() == [float(np.float32(2) / np.float32(127))] + [0.0] * (groups - 1)
