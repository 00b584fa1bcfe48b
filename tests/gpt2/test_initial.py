"""Untrained GPT-2s: configs by name, and initial weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.errors import ConfigError, NotEnoughMemoryError, UsageError
from pyllm2.gpt2.config import GPT2Config
from pyllm2.gpt2.initial import GPT2_SHAPES, GPT3_SHAPES, descriptor, initial_parameters
from pyllm2.mersenne import MersenneTwister
from tests.support.normals import NORMAL_BOUND

PARAMETERS = {  # padded, as published
    "d6": 30_357_504,
    "gpt2:d12": 124_475_904,
    "d24": 354_871_296,
    "d36": 774_090_240,
    "d48": 1_557_686_400,
    "d60": 2_754_259_200,
    "d72": 7_316_887_680,
    "gpt2:d84": 12_220_657_920,
    "gpt3:c768": 125_262_336,
}


@pytest.mark.parametrize(("name", "n"), PARAMETERS.items())
def test_names_have_the_published_numbers_of_parameters(name: str, n: int) -> None:
    """The padding rows are counted."""
    assert descriptor(name).parameters() == n


# Layers and heads by channels, from the papers and from llm.c.
SIZES = {
    "d6 d12 d24 d36 d48 d60 d72 d84": {
        384: (6, 6),
        768: (12, 12),
        1024: (24, 16),
        1280: (36, 20),
        1600: (48, 25),
        1920: (60, 30),
        2880: (72, 30),
        3456: (84, 36),
    },
    "gpt3": {
        384: (6, 6),
        768: (12, 12),
        1024: (24, 16),
        1536: (24, 16),
        2048: (24, 16),
        2560: (32, 32),
        4096: (32, 32),
        5120: (40, 40),
        12288: (96, 96),
    },
}


def test_names_have_the_published_sizes() -> None:
    for names, rows in SIZES.items():
        given = [f"gpt3:c{C}" for C in rows] if names == "gpt3" else names.split()
        for name, (C, (L, NH)) in zip(given, rows.items(), strict=True):
            found = descriptor(name)
            assert (found.channels, found.num_layers, found.num_heads) == (C, L, NH)


def test_gpt2_and_gpt3_differ_in_context(tmp_path: Path) -> None:
    """1024 and 2048; the vocabulary is 50257 padded to 50304 in both."""
    assert descriptor("d12") == GPT2Config(1024, 50257, 12, 12, 768, 50304)
    assert descriptor("gpt3:c768") == GPT2Config(2048, 50257, 12, 12, 768, 50304)
    assert descriptor("gpt3:c5120") == GPT2Config(2048, 50257, 40, 40, 5120, 50304)


@given(st.sampled_from([*(f"gpt3:c{C}" for C in GPT3_SHAPES), *(f"d{L}" for L in GPT2_SHAPES)]))
def test_every_name_is_a_model(name: str) -> None:
    """The sizes go together (ConfigError otherwise) and include the number in the name."""
    config = descriptor(name)
    said = int(re.sub("gpt3:c|d", "", name))
    assert said == (config.channels if "c" in name else config.num_layers)


@given(
    L=st.integers(1, 99),
    NH=st.integers(1, 9),
    hs=st.integers(1, 9),
    V=st.none() | st.integers(1, 10**6),
    S=st.none() | st.integers(1, 10**6),
    order=st.randoms(),
)
def test_any_other_shape_is_spelled_out(
    L: int, NH: int, hs: int, V: int | None, S: int | None, order: object
) -> None:
    """In any order; the vocabulary is padded to the next multiple of 128."""
    sizes = {"layers": L, "heads": NH, "channels": NH * hs, "vocab": V, "context": S}
    words = [f"{name}={value}" for name, value in sizes.items() if value is not None]
    order.shuffle(words)  # type: ignore[attr-defined]
    config = descriptor(",".join(words))
    assert (config.num_layers, config.num_heads, config.channels) == (L, NH, NH * hs)
    assert (config.vocab_size, config.max_seq_len) == (V or 50257, S or 1024)
    assert config.padded_vocab_size % 128 == 0
    assert 0 <= config.padded_vocab_size - config.vocab_size < 128


def test_the_vocabulary_of_a_tokenizer_replaces_gpt2s() -> None:
    """Unless the text has vocab=…."""
    assert descriptor("d6", 257) == GPT2Config(1024, 257, 6, 6, 384, 384)
    spelled = descriptor("layers=1,heads=1,channels=2,vocab=300", 257)
    assert (spelled.vocab_size, spelled.padded_vocab_size) == (300, 384)


EXPECTED = "expected d12, gpt3:c768, or layers=…,heads=…,channels=… (optional: vocab=…,context=…)"
SHAPES_OF_D = "expected d followed by 6, 12, 24, 36, 48, 60, 72 or 84"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", EXPECTED),
        ("124M", EXPECTED),
        ("d", EXPECTED),
        ("gpt3:d12", EXPECTED),
        ("gpt2:c768", EXPECTED),
        ("d\u0661\u0662", EXPECTED),
        ("layers=2,heads=2,channels=-4", EXPECTED),
        ("layers=2,heads=2,channels=4,", EXPECTED),
        ("layers=2, heads=2, channels=4", EXPECTED),
        ("d7", SHAPES_OF_D),
        ("d0", SHAPES_OF_D),
        (
            "gpt3:c5140",
            "expected gpt3:c followed by 384, 768, 1024, 1536, 2048, 2560, 4096, 5120 or 12288",
        ),
        ("layers=2,heads=2", "channels=… is missing"),
        ("vocab=2", "layers=… is missing"),
        ("layers=2,heads=2,channels=4,layers=2", "a size is given twice"),
    ],
)
def test_an_unknown_name_is_refused(text: str, fault: str) -> None:
    """The error says what is expected."""
    with pytest.raises(UsageError) as refused:
        descriptor(text)
    assert str(refused.value) == f"model {text!r}: {fault}"


def test_impossible_sizes_are_refused() -> None:
    """The error names size, value and rule; nothing is allocated for a model that is too large."""
    with pytest.raises(ConfigError, match=r"^channels = 5: must be a multiple of num_heads = 2$"):
        descriptor("layers=1,heads=2,channels=5")
    with pytest.raises(ConfigError, match=r"^num_layers = 0: must be at least 1$"):
        descriptor("layers=0,heads=2,channels=4")
    with pytest.raises(NotEnoughMemoryError, match="parameters"):
        initial_parameters(descriptor("layers=999999999,heads=1,channels=999999999"))


@given(
    L=st.integers(1, 3),
    C=st.integers(1, 6),
    V=st.integers(1, 40),
    S=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_weights_are_drawn_in_the_order_of_the_rules(
    L: int, C: int, V: int, S: int, seed: int
) -> None:
    """One call per array and layer; ones, zeros and padding rows are not drawn."""
    params = initial_parameters(GPT2Config(S, V, L, 1, C, V + 3), seed)
    rng = MersenneTwister(seed)
    sigma = float(np.float32(0.02 / np.sqrt(2 * L)))

    def drawn(*shape: int, std: float = 0.02) -> np.ndarray:  # type: ignore[type-arg]
        return rng.normal(int(np.prod(shape)), 0.0, std).reshape(shape)

    expected = {"wte": np.vstack([drawn(V, C), np.zeros((3, C))]), "wpe": drawn(S, C)}
    layers = [
        {
            "qkvw": drawn(3 * C, C),
            "attprojw": drawn(C, C, std=sigma),
            "fcw": drawn(4 * C, C),
            "fcprojw": drawn(C, 4 * C, std=sigma),
        }
        for _ in range(L)
    ]
    for name in layers[0]:
        expected[name] = np.array([layer[name] for layer in layers])
    for name, found in params.items():
        if name in expected:  # sigma may differ in its last bit: two float32 operations or one
            np.testing.assert_allclose(found, expected[name], rtol=3 * 2**-23)
        else:
            assert np.all(found == (1 if re.fullmatch("ln.w", name) else 0)), name


def test_the_initial_weights_are_nearly_the_recorded_ones(shared: Path) -> None:
    """At least 98 % are equal, the others within the error of normal variates."""
    config = descriptor("layers=2,heads=3,channels=48,vocab=97,context=32")
    params = initial_parameters(config)
    same = 0
    with np.load(shared / "golden/llmc/init/init_tiny.npz") as recorded:
        for name, found in params.items():
            np.testing.assert_allclose(found, recorded[name], rtol=NORMAL_BOUND + 2**-23)
            same += int((found == recorded[name]).sum())
    assert same >= 0.98 * config.parameters()


def test_d6_has_the_recorded_sums(shared: Path) -> None:
    """First and last number, sum and sum of squares of every array, of 30 million numbers."""
    rows = json.loads((shared / "golden/llmc/init/init.json").read_text())["d6"]["tensors"]
    params = initial_parameters(descriptor("d6"))
    for name, row in rows.items():
        array = params[name].ravel()
        np.testing.assert_allclose(array[:4], row["first4"], rtol=NORMAL_BOUND)
        np.testing.assert_allclose(array[-4:], row["last4"], rtol=NORMAL_BOUND)
        wide = array.astype(np.float64)
        difference = NORMAL_BOUND * np.abs(wide).sum()  # if all were as far off as they may be
        assert abs(wide.sum() - row["sum64"]) <= difference + 1e-9
        assert abs((wide**2).sum() - row["sumsq64"]) <= 2 * NORMAL_BOUND * row["sumsq64"] + 1e-9
