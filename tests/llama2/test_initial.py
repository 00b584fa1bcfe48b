"""Untrained Llama-2s: configs by name, and initial weights."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from pyllm2.errors import ConfigError, UsageError
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.initial import SHAPES, STD, descriptor, hidden_dim, initial_parameters
from pyllm2.testing.llama2 import strategies


@given(strategies.configs())
def test_the_arrays_are_as_many_numbers_as_the_config_says(config: Llama2Config) -> None:
    """`Llama2Config.shapes` and `Llama2Config.parameters` agree."""
    assert sum(math.prod(shape) for shape in config.shapes().values()) == config.parameters()


def test_widths_of_the_feed_forward_network(golden: Path) -> None:
    """The original's rule, on the original's examples."""
    for dim, multiple_of, expected in json.loads((golden / "train.json").read_text())[
        "hidden_dim_rule"
    ]["rows"]:
        assert hidden_dim(dim, multiple_of) == expected


@pytest.mark.parametrize("name", SHAPES)
def test_published_shapes_have_names(name: str) -> None:
    """The vocabulary size of a tokenizer replaces the published one."""
    assert descriptor(name) == SHAPES[name]
    assert descriptor(name, 777).vocab_size == 777
    dim, hidden = SHAPES[name].dim, SHAPES[name].hidden_dim
    assert hidden_dim(dim, 32 if dim % 32 == 0 and dim > 64 else 4) == hidden


def test_the_published_shapes() -> None:
    """As the README of llama2.c has them, and their numbers of parameters."""
    sizes = {
        "260K": (64, 172, 5, 8, 4, 512, 512),
        "15M": (288, 768, 6, 6, 6, 32000, 256),
        "42M": (512, 1376, 8, 8, 8, 32000, 1024),
        "110M": (768, 2048, 12, 12, 12, 32000, 1024),
    }
    assert {name: Llama2Config(*shape) for name, shape in sizes.items()} == SHAPES
    numbers = {name: shape.parameters() for name, shape in SHAPES.items()}
    assert numbers == {"260K": 260_032, "15M": 15_191_712, "42M": 41_689_600, "110M": 109_529_856}


def test_any_shape_in_words() -> None:
    """Sizes that are left out have defaults or follow from others."""
    assert descriptor("dim=36,layers=5,heads=6") == Llama2Config(36, 96, 5, 6, 6, 32000, 256)
    text = "dim=64,layers=5,heads=8,kv_heads=4,hidden=172,context=512,vocab=512"
    assert descriptor(text) == SHAPES["260K"]
    assert descriptor("dim=64,layers=1,heads=8", 300).vocab_size == 300
    assert descriptor("dim=64,layers=1,heads=8,vocab=400", 300).vocab_size == 400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("7B", "expected 260K, 15M"),
        ("dim=64,layers=1,kv_heads=2", "heads=… is missing"),
        ("dim=64", "layers=… is missing"),
        ("dim=64,layers=1,heads=8,dim=64", "given twice"),
        ("dim=64,layers=-1,heads=8", "expected 260K"),
        ("dim=64,layers=1,heads=٣", "expected 260K"),
    ],
)
def test_what_is_no_shape_is_refused(text: str, message: str) -> None:
    """One line that names the model and what is expected."""
    with pytest.raises(UsageError, match=message):
        descriptor(text)


def test_sizes_that_contradict_are_refused() -> None:
    """The config raises ConfigError."""
    with pytest.raises(ConfigError, match="must be a multiple of n_heads = 5"):
        descriptor("dim=64,layers=1,heads=5")


def test_weights_are_normal_with_the_originals_spread() -> None:
    """Norms are 1; the standard deviation is 0.02, and less with depth for wo and w3."""
    config = Llama2Config(64, 172, 8, 8, 4, 512, 32)
    params = initial_parameters(config)
    for name, array in params.items():
        if name.endswith("norm"):
            assert (array == 1).all()
            continue
        std = STD / math.sqrt(16) if name in ("wo", "w3") else STD
        n = array.size  # the spread of n draws is known to 1/√(2n); eight times that is certain
        assert abs(array.std() / std - 1) < 8 / math.sqrt(2 * n)
        assert abs(array.mean()) < 8 * std / math.sqrt(n)
    np.testing.assert_array_equal(initial_parameters(config).flat, params.flat)
    assert (initial_parameters(config, 1).flat != params.flat).any()
