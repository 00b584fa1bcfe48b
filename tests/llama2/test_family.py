"""What training asks of Llama-2 as a family: files, memory, the model and its decoder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.errors import FileError, FormatError
from pyllm2.formats import llama2c
from pyllm2.gpt2 import family as gpt2_family
from pyllm2.llama2 import family
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.model import Weights
from pyllm2.loading import load_llama2
from pyllm2.testing import llama2_training_strategies as strategies
from tests.cli import tiny
from tests.tested import ops_of

CONFIG = Llama2Config(8, 12, 2, 4, 2, 13, 6)


def test_both_families_offer_the_same() -> None:
    """The trainer takes either for the other."""
    assert family.__all__ == gpt2_family.__all__
    for name in family.__all__:
        assert hasattr(family, name)


@given(config=strategies.trainable_configs(), seed=st.integers(0, 2**32 - 1))
def test_what_is_saved_is_what_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, config: Llama2Config, seed: int
) -> None:
    """Shape and every bit; and what is saved twice is the same file."""
    first, second = (tmp_path_factory.mktemp("saved") / "m.bin" for _ in range(2))
    params = strategies.random_parameters(config, seed)
    family.save_parameters(first, config, params)
    found_config, found = family.load_parameters(first)
    assert found_config == config == family.load_config(first)
    assert found.shapes == params.shapes
    np.testing.assert_array_equal(found.flat, params.flat)
    family.save_parameters(second, found_config, found)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("version", [0, 1])
def test_either_version_is_read(tmp_path: Path, version: int) -> None:
    """With the same numbers in the same places; version 0 is what is written."""
    params = strategies.random_parameters(CONFIG, 1)
    path, saved = tmp_path / "m.bin", tmp_path / "saved.bin"
    llama2c.write_checkpoint(path, dataclasses.asdict(CONFIG), params, version)
    config, found = family.load_parameters(path)
    assert config == CONFIG
    for name, array in params.items():
        np.testing.assert_array_equal(found[name], array, name)
    family.save_parameters(saved, config, found)
    assert (saved.read_bytes() == path.read_bytes()) == (version == 0)


def test_what_is_loaded_may_be_written_to(tmp_path: Path) -> None:
    """Memory of its own, one vector, and not the file."""
    path = tmp_path / "m.bin"
    family.save_parameters(path, CONFIG, strategies.random_parameters(CONFIG, 1))
    before = path.read_bytes()
    _, params = family.load_parameters(path)
    params.flat[...] = 0
    assert not params.wq.any()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tiny.quantized(), "is int8: training goes on from float32"),
        (tiny.quantized(shared=False), "is int8: training goes on from float32"),
        (tiny.checkpoint(0, shared=False), "is a model with a classifier of its own: "),
        (tiny.checkpoint(1, shared=False), "is a model with a classifier of its own: "),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    """In one line that names the file, by both ways in."""
    path = tmp_path / "m.bin"
    path.write_bytes(data)
    for load in (family.load_config, family.load_parameters):
        with pytest.raises(FileError, match=message) as refused:
            load(path)
        assert str(path) in str(refused.value)


@pytest.mark.parametrize("cut", [0, 20, 28, 100, -4])
def test_a_file_cut_short_is_refused(tmp_path: Path, cut: int) -> None:
    """Before its numbers are believed."""
    path = tmp_path / "m.bin"
    path.write_bytes(tiny.checkpoint()[:cut])
    with pytest.raises((FileError, FormatError)):
        family.load_parameters(path)


def test_a_new_vector_has_room_for_everything() -> None:
    """Zeros, as many as the shape says."""
    params = family.empty_parameters(CONFIG)
    assert params.flat.size == CONFIG.parameters()
    assert not params.flat.any()


@given(data=st.data())
def test_the_memory_of_a_forward_is_what_was_promised(data: st.DataObject) -> None:
    """Every array that a forward keeps is counted: all of it, and at most a few rows more."""
    model = data.draw(strategies.trainable_models(ops_of("numpy")))
    tokens, targets = data.draw(strategies.batches(model.config))
    B, T = tokens.shape
    acts = model.forward(tokens, targets)
    arrays = [acts.cos, acts.sin, acts.x, acts.final, acts.logits, acts.probs]
    for block in acts.blocks:
        fields = (getattr(block, field.name) for field in dataclasses.fields(block))
        arrays += [a for a in fields if isinstance(a, np.ndarray)]
    kept = sum(a.size for a in arrays)
    width = model.config.n_layers * (model.config.dim + model.config.hidden_dim)
    assert kept <= family.activations(model.config, B, T) <= kept + B * T * (width + 99)


def test_the_decoder_has_the_weights_themselves() -> None:
    """What is learned later is played later, without a copy."""
    model = family.build(CONFIG, strategies.random_parameters(CONFIG, 1), ops_of("numpy"), 0.2, 5)
    assert (model.config, model.dropout, model.seed) == (CONFIG, 0.2, 5)
    decoder = family.decoder(model)
    assert (decoder.config, decoder.ops) == (CONFIG, model.ops)
    names = {field.name for field in dataclasses.fields(Weights)} - {"classifier"}
    assert names == set(model.params)
    for name in names:
        assert np.shares_memory(getattr(decoder.weights, name), model.params[name])
    assert decoder.weights.classifier is None


def test_what_was_saved_is_played(tmp_path: Path) -> None:
    """By the loader of `generate`, with the logits of the decoder, to the bit."""
    model = family.build(CONFIG, strategies.random_parameters(CONFIG, 1), ops_of("numpy"))
    path = tmp_path / "m.bin"
    family.save_parameters(path, CONFIG, model.params)
    loaded = load_llama2(path, backend="numpy").model
    tokens = np.array([1, 5, 12, 5])
    logits = [m.forward(tokens, 0, m.new_cache(4)) for m in (loaded, family.decoder(model))]
    np.testing.assert_array_equal(*logits)


def test_a_tokenizer_is_read_from_its_file(tmp_path: Path) -> None:
    """As `generate` reads it."""
    (tmp_path / "t.bin").write_bytes(tiny.vocabulary())
    tokenizer = family.load_tokenizer(tmp_path / "t.bin")
    assert tokenizer.vocab_size == tiny.V
    assert tokenizer.begin == tiny.BOS
