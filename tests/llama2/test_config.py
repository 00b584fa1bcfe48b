"""Fields beyond llama2.c: what they must obey, and what has no place for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.errors import ConfigError, FileError
from pyllm2.inference.language_model import LanguageModel
from pyllm2.llama2.checkpoint import save_parameters
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.initial import random_weights
from pyllm2.llama2.model import Llama2
from pyllm2.llama2.rope_scaling import RopeScaling, frequencies, table_arguments
from pyllm2.llama2.training import TrainableLlama2
from pyllm2.parameters import Parameters, Quantized
from pyllm2.testing.llama2 import strategies
from tests.support.profiles import few
from tests.support.tested import BACKENDS, engine_of

SIZES = (8, 12, 2, 4, 2, 13, 6)
BEYOND: dict[str, Any] = {
    "norm_epsilon": 1e-6,
    "rope_base": 5e5,
    "rope_scaling": RopeScaling("linear", 2.0),
    "head_size": 4,
    "qkv_bias": True,
    "output_bias": True,
    "ffn_bias": True,
    "head_norm": True,
    "windows": (0, 3),
}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("norm_epsilon", 0.0, "must be finite, above 0"),
        ("norm_epsilon", float("nan"), "must be finite, above 0"),
        ("norm_epsilon", float("inf"), "must be finite, above 0"),
        ("rope_base", 1.0, "must be above 1"),
        ("rope_base", float("inf"), "must be above 1 and at most"),
        ("rope_base", 1.1e30, "must be above 1 and at most 1e30"),
        ("head_size", 3, "must be even"),
        ("head_size", -2, "must be even"),
        ("windows", (1,), "windows = 1: must be one per layer: 2"),
        ("windows", (4, -1), "windows = -1: must be at least 0"),
        ("rope_scaling", RopeScaling("divisors", divisors=(1.0, 2.0)), "one per pair: 1"),
    ],
)
def test_a_value_out_of_range_is_refused(name: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Llama2Config(*SIZES, **{name: value})


def test_the_defaults_are_those_of_run_c() -> None:
    """However they are said: windows of nothing, the head size that follows, a float32 epsilon."""
    plain = Llama2Config(*SIZES)
    said = Llama2Config(*SIZES, head_size=2, windows=(0, 0))
    assert plain == said
    assert (plain.head_size, plain.windows, plain.beyond_run_c) == (2, (), {})
    assert not Llama2Config(*SIZES, norm_epsilon=float(np.float32(1e-5))).beyond_run_c


def test_heads_need_not_divide_the_channels_where_their_size_is_given() -> None:
    config = Llama2Config(8, 12, 2, 3, 3, 13, 6, head_size=4)
    assert (config.query_dim, config.kv_dim) == (12, 12)
    assert config.shapes()["wo"] == (2, 8, 12)
    assert config.beyond_run_c == {"head_size": 4}


@given(strategies.configs(), st.booleans())
def test_a_model_has_an_array_for_every_shape(config: Llama2Config, shared: bool) -> None:
    """And no other; the parameters are counted once."""
    arrays = vars(random_weights(config, shared, 1))
    found = {name: array.shape for name, array in arrays.items() if array is not None}
    assert found == config.shapes(shared)
    assert config.parameters(shared) == sum(a.size for a in arrays.values() if a is not None)


@pytest.mark.parametrize("name", BEYOND)
def test_what_has_no_place_for_a_field_refuses_it_by_name(name: str, tmp_path: Path) -> None:
    """Training, the loss of a loaded model, files of llama2.c, int8."""
    config = Llama2Config(*SIZES, **{name: BEYOND[name]})
    assert list(config.beyond_run_c) == [name]
    weights = random_weights(config, True, 1)
    arrays = {n: a for n, a in vars(weights).items() if a is not None}
    for version in (0, 1, 2):
        with pytest.raises(ConfigError, match=f"^{name} = .*: llama2.c's files have no such"):
            save_parameters(tmp_path / "m.bin", config, arrays, version)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=f"^{name} = .*: cannot be trained"):
        TrainableLlama2(config, Parameters(config.shapes()), strategies.NUMPY)
    with pytest.raises(FileError, match=f"has {name} = .*: loss and gradients are those"):
        _ = LanguageModel(Llama2(config, weights, strategies.NUMPY), None, "numpy").trainable
    matrix = Quantized(np.zeros((2, 8, 8), np.int8), np.ones((2, 8), np.float32), 8)
    with pytest.raises(ConfigError, match=f"^{name} = .*: int8 models"):
        Llama2(config, replace(weights, wq=matrix), strategies.NUMPY)


# ---- rope ------------------------------------------------------------------------------------


@given(st.integers(1, 32).flatmap(lambda pairs: strategies.scalings(2 * pairs)), strategies.bases)
def test_divisors_give_the_frequencies(scaling: RopeScaling, base: float) -> None:
    """What the tables are made of is what transformers' formulas say."""
    hs = 2 * len(scaling.divisors)
    found, divisors, _ = table_arguments(hs, base, scaling)
    plain = frequencies(hs, found, None)
    assert divisors is not None
    ours = [f / d for f, d in zip(plain, divisors, strict=True)]
    np.testing.assert_allclose(ours, frequencies(hs, base, scaling), rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@few()
@given(cut=st.integers(1, 11), seed=st.integers(0, 99))
def test_dynamic_scaling_turns_by_the_length_of_the_text_so_far(
    backend: str, cut: int, seed: int
) -> None:
    """Up to the original context nothing changes; after it each call has its own base."""
    scaling = RopeScaling("dynamic", 2.0, original=6)
    config = Llama2Config(16, 12, 2, 2, 1, 13, 12, rope_scaling=scaling)
    plain = Llama2Config(16, 12, 2, 2, 1, 13, 12)
    weights = random_weights(config, True, seed)
    model, other = (Llama2(c, weights, engine_of(backend)) for c in (config, plain))
    tokens = np.random.default_rng(seed).integers(0, 13, 12)
    caches = [m.new_cache(12) for m in (model, other)]
    short = [m.forward(tokens[:6], 0, c) for m, c in zip((model, other), caches, strict=True)]
    np.testing.assert_array_equal(*short)

    cache = model.new_cache(12)
    model.forward(tokens[:cut], 0, cache)
    model.forward(tokens[cut:], cut, cache)
    for first, last in ((0, cut), (cut, 12)):
        base, *_ = table_arguments(8, 10000.0, scaling, last)
        cos, sin = model.ops.rope_tables(last, 8, base)
        np.testing.assert_allclose(cache.cos[first:last], cos[first:last], atol=1e-6)
        np.testing.assert_allclose(cache.sin[first:last], sin[first:last], atol=1e-6)
