"""`llama2.family`: files, memory, the model to train and its decoder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.errors import FileError, FormatError
from pyllm2.gpt2 import family as gpt2_family
from pyllm2.inference.load import load_llama2
from pyllm2.llama2 import family
from pyllm2.llama2.checkpoint import save_parameters
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.model import Weights
from pyllm2.testing.llama2 import strategies
from tests.support import llama2_files
from tests.support.tested import engine_of

CONFIG = Llama2Config(8, 12, 2, 4, 2, 13, 6)


def test_both_families_offer_the_same() -> None:
    """The trainer can be given either family."""
    assert family.__all__ == gpt2_family.__all__
    for name in family.__all__:
        assert hasattr(family, name)


@given(config=strategies.trainable_configs(), seed=st.integers(0, 2**32 - 1))
def test_what_is_saved_is_what_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, config: Llama2Config, seed: int
) -> None:
    """Config and every bit; saving again gives the same file."""
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
    """Versions 0 and 1 give the same parameters; version 0 is written."""
    params = strategies.random_parameters(CONFIG, 1)
    path, saved = tmp_path / "m.bin", tmp_path / "saved.bin"
    save_parameters(path, CONFIG, params, version)
    config, found = family.load_parameters(path)
    assert config == CONFIG
    for name, array in params.items():
        np.testing.assert_array_equal(found[name], array, name)
    family.save_parameters(saved, config, found)
    assert (saved.read_bytes() == path.read_bytes()) == (version == 0)


def test_loaded_parameters_can_be_changed(tmp_path: Path) -> None:
    """Parameters are one vector in memory, not a mapped file."""
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
        (llama2_files.quantized(), "is int8: training needs float32"),
        (llama2_files.quantized(shared=False), "is int8: training needs float32"),
        (llama2_files.checkpoint(0, shared=False), "is a model with a classifier of its own: "),
        (llama2_files.checkpoint(1, shared=False), "is a model with a classifier of its own: "),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    """One line that names the file, from both loaders."""
    path = tmp_path / "m.bin"
    path.write_bytes(data)
    for load in (family.load_config, family.load_parameters):
        with pytest.raises(FileError, match=message) as refused:
            load(path)
        assert str(path) in str(refused.value)


@pytest.mark.parametrize("cut", [0, 20, 28, 100, -4])
def test_a_file_cut_short_is_refused(tmp_path: Path, cut: int) -> None:
    """The size is checked before any number is used."""
    path = tmp_path / "m.bin"
    path.write_bytes(llama2_files.checkpoint()[:cut])
    with pytest.raises((FileError, FormatError)):
        family.load_parameters(path)


def test_empty_parameters_have_every_shape() -> None:
    """As many zeros as the config has parameters."""
    params = family.empty_parameters(CONFIG)
    assert params.flat.size == CONFIG.parameters()
    assert not params.flat.any()


@given(data=st.data())
def test_activation_floats_bounds_what_a_forward_keeps(data: st.DataObject) -> None:
    """`activation_floats` counts every array that a forward keeps, and at most a few rows more."""
    model = data.draw(strategies.trainable_models(engine_of("numpy")))
    tokens, targets = data.draw(strategies.batches(model.config))
    B, T = tokens.shape
    acts = model.forward(tokens, targets)
    arrays = [acts.cos, acts.sin, acts.x, acts.final, acts.logits, acts.probs]
    for block in acts.blocks:
        fields = (getattr(block, field.name) for field in dataclasses.fields(block))
        arrays += [a for a in fields if isinstance(a, np.ndarray)]
    kept = sum(a.size for a in arrays)
    width = model.config.n_layers * (model.config.dim + model.config.hidden_dim)
    assert kept <= family.activation_floats(model.config, B, T) <= kept + B * T * (width + 99)


def test_a_larger_vocabulary_adds_logits_and_probabilities() -> None:
    """To what is kept, and as much to `activation_floats`."""
    tokens = np.array([[1, 5, 12], [5, 0, 2]])
    found = []
    for V in (20, 120):
        config = dataclasses.replace(CONFIG, vocab_size=V)
        model = family.build(config, strategies.random_parameters(config, 1), engine_of("numpy"))
        acts = model.forward(tokens, tokens)
        kept = acts.logits.size + acts.probs.size
        found.append(family.activation_floats(config, *tokens.shape) - kept)
    assert found[0] == found[1]


def test_the_decoder_shares_the_parameters() -> None:
    """They share memory, so that a later update changes the decoder."""
    model = family.build(
        CONFIG, strategies.random_parameters(CONFIG, 1), engine_of("numpy"), 0.2, 5
    )
    assert (model.config, model.dropout, model.seed) == (CONFIG, 0.2, 5)
    decoder = family.decoder(model)
    assert (decoder.config, decoder.engine) == (CONFIG, model.engine)
    fields = {field.name for field in dataclasses.fields(Weights)}
    names = {name for name in fields if getattr(decoder.weights, name) is not None}
    assert names == set(model.params)
    for name in names:
        assert np.shares_memory(getattr(decoder.weights, name), model.params[name])
    assert decoder.weights.classifier is None


def test_a_saved_model_gives_the_same_logits(tmp_path: Path) -> None:
    """A saved model, loaded again, gives the decoder's logits to the bit."""
    model = family.build(CONFIG, strategies.random_parameters(CONFIG, 1), engine_of("numpy"))
    path = tmp_path / "m.bin"
    family.save_parameters(path, CONFIG, model.params)
    loaded = load_llama2(path, backend="numpy").model
    tokens = np.array([1, 5, 12, 5])
    logits = [m.forward(tokens, 0, m.new_cache(4)) for m in (loaded, family.decoder(model))]
    np.testing.assert_array_equal(*logits)


def test_the_ops_can_be_exchanged() -> None:
    """Everything else of a model stays; every pass is composed of the new ops."""
    engine = engine_of("numpy")
    model = family.build(CONFIG, strategies.random_parameters(CONFIG, 1), engine, 0.2, 5)
    other = model.with_ops(engine.ops)
    for name in "config params dropout seed".split():
        assert getattr(other, name) is getattr(model, name)
    decoder = family.decoder(model)
    assert decoder.with_ops(engine.ops).weights is decoder.weights
    assert decoder.with_ops(engine.ops).config is decoder.config
