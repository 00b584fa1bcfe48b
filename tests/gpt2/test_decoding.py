"""GPT-2 token by token: the logits of whole sequences, and the original's samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyllm2
from pyllm2.backends import Engine
from pyllm2.errors import ContextError, FileError, NotFiniteError, TokenizerError
from pyllm2.gpt2 import ops as specification
from pyllm2.gpt2.checkpoint import save_parameters
from pyllm2.gpt2.config import GPT2Config
from pyllm2.gpt2.initial import initial_parameters
from pyllm2.gpt2.model import GPT2
from pyllm2.gpt2.training import TrainableGPT2
from pyllm2.inference.session import Session
from pyllm2.parameters import Parameters
from pyllm2.tokenizers.byte_level import byte_tokenizer
from tests.support.profiles import few
from tests.support.tested import BACKENDS, engine_of

NUMPY = Engine(specification)
CONFIG = GPT2Config(
    max_seq_len=9, vocab_size=257, num_layers=2, num_heads=3, channels=12, padded_vocab_size=260
)


def random_gpt2(seed: int, engine: Engine, dtype: type = np.float32) -> GPT2:
    """Weights ten times the initial ones, so that every layer matters."""
    rng = np.random.default_rng(seed)
    numbers = rng.normal(0, 0.2, CONFIG.parameters()).astype(dtype)
    return GPT2(CONFIG, Parameters(CONFIG.shapes(), numbers), engine)


def logits_of_the_whole(gpt2: GPT2, ids: Any) -> Any:
    """Logits of all positions at once, as in training, without a cache. (T,)   ->   (T, V)"""
    acts = TrainableGPT2(CONFIG, gpt2.params, gpt2.engine).forward(ids[None], ids[None])
    return acts.logits[0, :, : CONFIG.vocab_size]


@few()
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, CONFIG.vocab_size - 1), min_size=1, max_size=CONFIG.max_seq_len),
    st.data(),
)
def test_pieces_of_a_text_give_the_logits_of_the_whole(
    seed: int, ids: list[int], data: st.DataObject
) -> None:
    """In float64, within a few roundings, however the text is cut."""
    gpt2 = random_gpt2(seed, NUMPY, np.float64)
    whole = logits_of_the_whole(gpt2, np.array(ids))
    session = Session(gpt2, len(ids), "numpy")
    pieces, left = [], ids
    while left:
        n = data.draw(st.integers(1, len(left)))
        pieces.append(session.feed(left[:n]))
        left = left[n:]
    assert np.abs(np.concatenate(pieces) - whole).max() <= 1e-13 * (1 + np.abs(whole).max())
    assert session.room == 0


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b.endswith("-strict")])
def test_strict_backends_give_the_same_bits_with_a_cache(backend: str) -> None:
    """The order of additions does not depend on the number of tokens per call."""
    gpt2 = random_gpt2(1, engine_of(backend, "gpt2"))
    ids = np.random.default_rng(2).integers(0, CONFIG.vocab_size, CONFIG.max_seq_len)
    whole = logits_of_the_whole(gpt2, ids.astype(np.int32))
    session = Session(gpt2, len(ids), backend)
    found = np.concatenate([session.feed([int(i)]) for i in ids])
    np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["small", "tiny"])
def test_the_originals_samples(backend: str, name: str, shared: Path) -> None:
    """The same tokens from one end-of-text, with the original's random numbers."""
    golden = shared / "golden" / "llmc"
    model = pyllm2.load(golden / "models" / name / "model.bin", backend=backend)
    text = (golden / f"generation_{name}.json").read_text()
    for sample in json.loads(text)["probs_sample_mult_state_carried"]["runs"][:1]:
        first, *expected = sample["tokens"]
        new = model.generate([first], len(expected), 1.0, 1.0, 1337)
        assert [token.id for token in new] == expected


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 over bytes."""
    path = tmp_path_factory.mktemp("gpt2")
    save_parameters(path / "bytes.bin", CONFIG, initial_parameters(CONFIG))
    return path


def test_load_recognises_a_gpt2_by_its_content(folder: Path) -> None:
    """A loaded GPT-2 has config, logits, generate, loss and gradients."""
    model = pyllm2.load(folder / "bytes.bin", tokenizer="bytes", backend="numpy")
    assert model.config == CONFIG
    assert model.logits([256, 65]).shape == (2, 257)
    tokens = list(model.generate("ab", max_new_tokens=3, temperature=0))
    assert [byte_tokenizer().decode([token.id]) for token in tokens] == [t.bytes for t in tokens]
    assert list(model.generate([256] * 9, max_new_tokens=5)) != []  # the context, and one more
    x, y = np.array([[1, 2, 3]]), np.array([[2, 3, 4]])
    loss, grads = model.loss_and_grads(x, y)
    assert loss == model.loss(x, y)
    assert {name: grads[name].shape for name in grads} == CONFIG.shapes()


def test_what_does_not_fit_is_refused(folder: Path) -> None:
    """Wrong ids, lengths, shapes and tokenizers raise an error of one line."""
    model = pyllm2.load(folder / "bytes.bin", backend="numpy")
    x = np.array([[1, 2, 257]])
    with pytest.raises(TokenizerError, match="token id 257: the model has ids 0 to 256"):
        model.loss(x, x)
    with pytest.raises(TokenizerError, match="token id 257"):
        model.logits([257])
    with pytest.raises(ContextError, match="10 tokens, context is 9"):
        model.loss(np.ones((1, 10), int), np.ones((1, 10), int))
    with pytest.raises(ValueError, match="two equal shapes"):
        model.loss(np.ones((1, 3), int), np.ones((1, 4), int))
    with pytest.raises(ContextError):
        model.logits([1] * 10)
    (folder / "few.tiktoken").write_text("YQ== 0\nYg== 1\n")
    with pytest.raises(FileError, match=r"few\.tiktoken: has 3 tokens, .*bytes\.bin expects 257"):
        pyllm2.load(folder / "bytes.bin", tokenizer=folder / "few.tiktoken", backend="numpy")


def test_a_nan_is_located() -> None:
    """The error names the first position and block."""
    gpt2 = random_gpt2(3, NUMPY)
    gpt2.params.fcb[1, 5] = np.inf
    with pytest.raises(
        NotFiniteError, match=r"at position 0 \(layer 1, feed-forward\), backend numpy"
    ):
        Session(gpt2, 4, "numpy").feed([1, 2])
    gpt2 = random_gpt2(3, NUMPY)
    gpt2.params.wpe[1, 0] = np.nan
    with pytest.raises(NotFiniteError, match=r"at position 1 \(encoder\), backend numpy"):
        Session(gpt2, 4, "numpy").feed([1, 2])


@few()
@given(st.integers(1, CONFIG.max_seq_len))
def test_a_cache_needs_the_memory_that_cache_nbytes_says(positions: int) -> None:
    """`cache_nbytes` is exact."""
    decoder = random_gpt2(0, NUMPY)
    assert decoder.new_cache(positions).qkv.nbytes == decoder.cache_nbytes(positions)


@few()
@given(data=st.data())
def test_the_first_token_and_block_that_are_not_finite(data: st.DataObject) -> None:
    """Of several bad tokens the first; a layer is named with what it did."""
    config = GPT2Config(8, 9, 2, 2, 8, 9)
    params = initial_parameters(config, data.draw(st.integers(0, 99)))
    tokens = data.draw(st.lists(st.integers(0, 8), min_size=1, max_size=8).map(np.array))
    place = data.draw(st.sampled_from(["encoder", "layer 1, attention", "layer 0, feed-forward"]))
    bad = data.draw(st.lists(st.sampled_from(tokens.tolist()), min_size=1, unique=True))
    first = min(tokens.tolist().index(i) for i in bad)
    if place == "encoder":
        params.wte[bad, 3] = data.draw(st.sampled_from([np.nan, np.inf]))
    else:
        (params.attprojb[1] if "attention" in place else params.fcprojb[0])[3] = np.nan
        first = 0
    model = GPT2(config, params, engine_of("numpy", "gpt2"))
    with np.errstate(all="ignore"):
        assert model.where_not_finite(tokens, 0, model.new_cache(8)) == (first, place)


def test_the_ops_can_be_exchanged() -> None:
    """Config and parameters are the same objects; every pass is composed of the new ops."""
    config = GPT2Config(8, 9, 2, 2, 8, 9)
    params = initial_parameters(config, 1)
    ops = engine_of("numpy", "gpt2").ops
    for kind in (GPT2, TrainableGPT2):
        model = kind(config, params, engine_of("numpy", "gpt2")).with_ops(ops)
        assert (type(model), model.config, model.params) == (kind, config, params)
        assert (model.ops, model.engine.forward, model.engine.add_gradient) == (ops, None, None)
