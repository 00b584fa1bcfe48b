"""Scaled frequencies of RoPE as the papers define them; `config.json` and `params.json` say them.

Expectations count turns: a pair of frequency f turns original · f / (2π) times in the original
context. llama3 and yarn are then straight lines, which `np.interp` draws.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pyllm2.errors import ConfigError, FormatError
from pyllm2.formats.json_file import Settings
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.rope_scaling import (
    RopeScaling,
    frequencies,
    table_arguments,
    yarn_attention_factor,
)
from pyllm2.llama2.rope_settings import read_rope, rope_values

head_sizes = st.sampled_from([2, 4, 8, 64, 128])
bases = st.sampled_from([2.0, 100.0, 1e4, 5e5, 1e6])
factors = st.floats(1, 64)
originals = st.sampled_from([8, 100, 2048, 8192])


def plain(hs: int, base: float) -> np.ndarray:
    return np.float64(base) ** -(np.arange(0, hs, 2) / hs)


def near(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-11)


@given(head_sizes, bases, factors)
def test_linear_divides_every_frequency(hs: int, base: float, factor: float) -> None:
    near(frequencies(hs, base, None), plain(hs, base))
    near(frequencies(hs, base, RopeScaling("linear", factor)), plain(hs, base) / factor)


@given(head_sizes, bases, factors, originals, st.floats(0, 9))
def test_dynamic_slows_the_last_pair_and_leaves_the_first(
    hs: int, base: float, factor: float, original: int, times: float
) -> None:
    """Still powers of one number; the last is divided by factor · s/M - (factor - 1)."""
    length = int(original * times)
    found = frequencies(hs, base, RopeScaling("dynamic", factor, original), length)
    by = factor * max(length / original, 1) - (factor - 1)
    last = plain(hs, base)[-1] / (by if hs > 2 else 1)
    near(found, np.geomspace(1, last, hs // 2))


@given(head_sizes, bases, factors, originals, st.floats(0.5, 2), st.floats(1.1, 8))
def test_llama3_is_a_straight_line_in_the_turns(
    hs: int, base: float, factor: float, original: int, low: float, more: float
) -> None:
    """Divided by the factor up to `low` turns, unchanged from `high` turns on."""
    high, f = low * more, plain(hs, base)
    turns = original * f / (2 * math.pi)
    expected = f * np.interp(turns, [low, high], [1 / factor, 1])
    near(frequencies(hs, base, RopeScaling("llama3", factor, original, low, high)), expected)


@given(head_sizes, bases, factors, originals, st.floats(0.3, 2), st.floats(2, 60), st.booleans())
def test_yarn_is_a_straight_line_in_the_pairs(
    hs: int, base: float, factor: float, original: int, slow: float, more: float, truncate: bool
) -> None:
    """Unchanged up to the pair of `beta_fast` turns, divided from the one of `beta_slow` on.

    The pair where a number of turns is reached: the logarithm of the turns falls evenly.
    """
    fast, pairs = slow * more, np.arange(hs)  # pairs behind the last limit the ramp, too
    turns = np.log(original / (2 * math.pi)) - pairs * 2 / hs * np.log(base)
    assume(turns[-1] <= np.log(fast))  # else both limits lie behind the ramp
    assume(np.log(slow) <= turns[0])
    lo, hi = (np.interp(np.log(t), turns[::-1], pairs[::-1]) for t in (fast, slow))
    if truncate:
        lo, hi = np.floor(lo), np.ceil(hi)
    if lo == hi:
        hi += 0.001
    f, ramp = plain(hs, base), np.interp(np.arange(hs // 2), [lo, hi], [0, 1])
    scaling = RopeScaling(
        "yarn", factor, original, beta_fast=fast, beta_slow=slow, truncate=truncate
    )
    near(frequencies(hs, base, scaling), f * (ramp / factor + 1 - ramp))


def test_yarn_without_a_ramp_divides_all_but_the_first_pair() -> None:
    """No pair turns once within 6 positions: both limits are 0."""
    found = frequencies(8, 1e4, RopeScaling("yarn", 4.0, original=6))
    near(found, [1, 0.1 / 4, 0.01 / 4, 0.001 / 4])


def test_the_attention_factor_of_yarn() -> None:
    """0.1 ln s + 1, and the quotient of two such where a file has both scales."""
    near(yarn_attention_factor(math.e**10), 2)
    near(yarn_attention_factor(math.e**10, 2.0, 0.5), 3 / 1.5)
    near(yarn_attention_factor(math.e**10, 2.0, 0.0), 2)
    assert yarn_attention_factor(0.5) == yarn_attention_factor(0.5, 2.0, 3.0) == 1
    scaling = RopeScaling("yarn", 4.0, original=6, attention_factor=1.5)
    assert table_arguments(8, 1e4, scaling)[2] == 1.5
    assert table_arguments(8, 1e4, replace(scaling, kind="llama3"))[2] == 1


# ---- config.json -----------------------------------------------------------------------------

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.5, "high_freq_factor": 3}
ORIGINAL = {"original_max_position_embeddings": 50}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, (1e4, None)),
        ({"rope_theta": 5e5, "rope_scaling": None}, (5e5, None)),
        ({"rope_scaling": {"type": "linear", "factor": 2.5}}, (1e4, RopeScaling("linear", 2.5))),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": 7}},
            (7.0, RopeScaling("linear", 2.0)),
        ),
        ({"rope_scaling": {"rope_type": "default", "factor": 2}}, (1e4, None)),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 3}},
            (1e4, RopeScaling("dynamic", 3.0, 100)),
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", **LLAMA3, **ORIGINAL}},
            (1e4, RopeScaling("llama3", 8.0, 50, 1.5, 3.0)),
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            (1e4, RopeScaling("llama3", 8.0, 100, 1.5, 3.0)),
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 8, "attention_factor": 0.7}},
            (1e4, RopeScaling("yarn", 8.0, 100, attention_factor=0.7)),
        ),
        (  # the factor follows from the two contexts, 100 and 50
            {"rope_scaling": {"rope_type": "yarn", **ORIGINAL}},
            (1e4, RopeScaling("yarn", 2.0, 50, attention_factor=0.1 * math.log(2) + 1)),
        ),
        (
            {
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": math.e,
                    "mscale": 5,
                    "mscale_all_dim": 10,
                    "beta_fast": 30,
                    "beta_slow": 2,
                    "truncate": False,
                }
            },
            (
                1e4,
                RopeScaling(
                    "yarn",
                    math.e,
                    100,
                    beta_fast=30.0,
                    beta_slow=2.0,
                    attention_factor=1.5 / 2,
                    truncate=False,
                ),
            ),
        ),
    ],
)
def test_what_a_config_json_says(values: dict[str, Any], expected: Any) -> None:
    """A model of 100 positions."""
    assert read_rope(Settings("config.json", values), 100) == expected


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"rope_type": "yarn", "factor": 2, "attention_factor": "x"},
            "attention_factor = 'x': exp",
        ),
        ({"rope_type": "llama3", "factor": 2, "low_freq_factor": 1}, "high_freq_factor is missing"),
        ({"rope_type": "linear", "factor": 2, "partial_rotary_factor": 0.5}, "_factor = 0.5: is n"),
    ],
)
def test_what_a_config_json_cannot_say(values: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError, match=words):
        read_rope(Settings("config.json", {"rope_scaling": values}), 100)


SCALINGS = [
    None,
    RopeScaling("linear", 2.5),
    RopeScaling("dynamic", 3.0, 40),
    RopeScaling("llama3", 8.0, 50, 1.5, 3.0),
    RopeScaling(
        "yarn", 2.0, 50, beta_fast=20.0, beta_slow=2.0, attention_factor=1.3, truncate=False
    ),
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: s.kind if s else "none")
def test_what_is_written_is_read(scaling: RopeScaling | None) -> None:
    config = Llama2Config(16, 12, 1, 2, 2, 13, 100, rope_base=300.0, rope_scaling=scaling)
    values = rope_values(config)
    positions = values.pop("max_position_embeddings", 100)
    assert read_rope(Settings("config.json", values), positions) == (300.0, scaling)


def test_divisors_of_a_gguf_become_llama3() -> None:
    """As Llama-3's files have them, in float32; other ones are refused."""
    scaling = RopeScaling("llama3", 8.0, 8192)
    _, found, _ = table_arguments(128, 5e5, scaling)
    divisors = tuple(float(np.float32(d)) for d in found or ())
    config = Llama2Config(
        256,
        12,
        1,
        2,
        2,
        13,
        100,
        rope_base=5e5,
        rope_scaling=RopeScaling("divisors", divisors=divisors),
    )
    values = rope_values(config)
    assert read_rope(Settings("config.json", values), 100) == (5e5, scaling)
    odd = RopeScaling("divisors", divisors=(1.0, 9.0, *divisors[2:]))
    with pytest.raises(ConfigError, match="no rope_type of Hugging Face gives these divisors"):
        rope_values(replace(config, rope_scaling=odd))
