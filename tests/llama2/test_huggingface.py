"""Folders of Hugging Face by model_type: what is written is read; keys by example."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyllm2.errors import ConfigError, FormatError
from pyllm2.formats.json_file import Settings
from pyllm2.llama2 import gguf, huggingface
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.huggingface import read_config
from pyllm2.llama2.initial import random_weights
from pyllm2.llama2.rope_scaling import RopeScaling
from tests.support.streamed import streamed

SIZES = (16, 24, 3, 4, 2, 20, 32)
# Fields beyond run.c's; whose model computes that, in Hugging Face and in GGUF (None: nobody's).
KINDS: dict[str, tuple[dict[str, Any], str | None, str | None]] = {
    "llama": ({}, "llama", "llama"),
    "head size": ({"head_size": 6, "norm_epsilon": 1e-6, "rope_base": 5e5}, "llama", "llama"),
    "all biases": ({"qkv_bias": True, "output_bias": True, "ffn_bias": True}, "llama", "llama"),
    "feed-forward": ({"ffn_bias": True}, "llama", "llama"),
    "attention": ({"qkv_bias": True, "output_bias": True}, "llama", "llama"),
    "qkv": ({"qkv_bias": True}, "qwen2", "qwen2"),
    "qkv, feed-forward": ({"qkv_bias": True, "ffn_bias": True}, None, "llama"),
    "output": ({"output_bias": True}, None, "llama"),
    "head norm": ({"head_norm": True}, "qwen3", "qwen3"),
    "head norm, attention": (
        {"head_norm": True, "qkv_bias": True, "output_bias": True},
        "qwen3",
        None,
    ),
    "head norm, qkv": ({"head_norm": True, "qkv_bias": True}, None, None),
    "windows": ({"windows": (8, 8, 8)}, "mistral", None),
    "some windows": ({"windows": (0, 8, 0)}, None, None),
    "two widths": ({"windows": (8, 4, 8), "qkv_bias": True}, None, None),
    "windows, biases": (
        {"windows": (8, 8, 8), "qkv_bias": True, "output_bias": True},
        None,
        None,
    ),
    "windows, qkv": ({"windows": (0, 8, 8), "qkv_bias": True}, "qwen2", None),
    "windows, head norm": ({"windows": (0, 8, 0), "head_norm": True}, "qwen3", None),
    "rope": ({"rope_scaling": RopeScaling("linear", 2.5)}, "llama", "llama"),
}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_what_is_written_is_read(tmp_path: Path, name: str, shared: bool) -> None:
    """Config and every bit, under the model_type that computes it; or a refusal."""
    fields, kind, _ = KINDS[name]
    config = Llama2Config(*SIZES, **fields)
    weights = vars(random_weights(config, shared, 1))
    arrays = {n: array for n, array in weights.items() if array is not None}
    if kind is None:
        with pytest.raises(ConfigError, match="Hugging Face's"):
            huggingface.save(tmp_path, streamed(config, arrays), "f32")
        return
    huggingface.save(tmp_path, streamed(config, arrays), "f32")
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == kind
    found, notes = huggingface.stream(tmp_path)
    assert (found.config, notes, set(found.shapes)) == (config, [], set(arrays))
    for n, array in arrays.items():
        whole = array[None] if n in ("token_embedding", "final_norm", "classifier") else array
        for layer, part in enumerate(whole):
            np.testing.assert_array_equal(found.read(n, layer), part, n)


@pytest.mark.parametrize("name", KINDS)
def test_the_architecture_in_gguf(name: str) -> None:
    fields, _, arch = KINDS[name]
    config = Llama2Config(*SIZES, **fields)
    if arch is None:
        with pytest.raises(ConfigError, match="GGUF's"):
            gguf._architecture(config)
    else:
        assert gguf._architecture(config) == arch


def read(kind: str, **values: Any) -> Llama2Config:
    return read_config(Settings("config.json", {"model_type": kind, **values}))


@pytest.mark.parametrize(
    ("kind", "sizes", "more"),
    [
        ("llama", (4096, 11008, 32, 32, 32, 32000, 2048), {}),
        ("mistral", (4096, 14336, 32, 32, 8, 32000, 131072), {"windows": (4096,) * 32}),
        ("qwen2", (4096, 22016, 32, 32, 32, 151936, 32768), {"qkv_bias": True}),
        ("qwen3", (4096, 22016, 32, 32, 32, 151936, 32768), {"head_norm": True, "head_size": 128}),
    ],
)
def test_keys_that_are_absent(kind: str, sizes: tuple[int, ...], more: dict[str, Any]) -> None:
    """The defaults of transformers' classes, whose epsilon is 1e-6."""
    assert read(kind) == Llama2Config(*sizes, norm_epsilon=1e-6, rope_base=1e4, **more)


SMALL = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 3}
SMALL |= {"num_key_value_heads": 2, "max_position_embeddings": 32, "intermediate_size": 24}


@pytest.mark.parametrize(
    ("kind", "values", "windows"),
    [
        ("mistral", {"sliding_window": 8}, (8, 8, 8)),
        ("mistral", {"sliding_window": None}, ()),
        ("mistral", {"sliding_window": 31}, (31, 31, 31)),
        ("mistral", {"sliding_window": 32}, ()),  # as long as the context
        ("llama", {"sliding_window": 8}, ()),
        ("mistral", {"sliding_window": 8, "num_hidden_layers": 2**16}, ()),  # refused elsewhere
        ("qwen2", {"sliding_window": 8}, ()),
        (
            "qwen2",
            {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1},
            (0, 8, 8),
        ),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True}, ()),  # of the 29th layer on
        (
            "qwen3",
            {
                "sliding_window": 8,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            (8, 0, 8),
        ),
    ],
)
def test_windows(kind: str, values: dict[str, Any], windows: tuple[int, ...]) -> None:
    assert read(kind, **{**SMALL, **values}).windows == windows


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        ("mistral", {"sliding_window": 0}, "sliding_window = 0: must be at least 1"),
        (
            "qwen2",
            {"sliding_window": 8, "use_sliding_window": True, "layer_types": ["full_attention"]},
            "layer_types = .*: expected full_attention or sliding_attention for each layer",
        ),
        ("llama", {"num_experts": 2}, "num_experts = 2: is not supported: a mixture of experts"),
        ("qwen3", {"head_dim": 5}, "head_dim = 5: must be even"),
        ("qwen2", {"num_attention_heads": 5}, "hidden_size = 16: "),
    ],
)
def test_what_a_config_json_gets_wrong(kind: str, values: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError, match=words):
        read(kind, **{**SMALL, **values})


def test_a_dynamic_scaling_goes_beyond_the_positions() -> None:
    scaling = {"rope_type": "dynamic", "factor": 2.5}
    config = read("llama", **SMALL, rope_scaling=scaling)
    assert (config.seq_len, config.rope_scaling) == (80, RopeScaling("dynamic", 2.5, 32))
    assert not read("llama", **SMALL, num_experts=0).head_norm
    biases = read("qwen3", **SMALL, attention_bias=True, mlp_bias=True)
    assert (biases.qkv_bias, biases.output_bias, biases.ffn_bias) == (True, True, False)
