"""GPT-2 as a folder of Hugging Face: architecture GPT2LMHeadModel.

Its matrices are stored transposed, (in, out), and with or without `transformer.` before each name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np

from pyllm2.errors import ConfigError, FormatError
from pyllm2.formats import huggingface
from pyllm2.formats.json_file import Settings
from pyllm2.formats.tensors import Tensors
from pyllm2.gpt2.config import GPT2Config
from pyllm2.gpt2.imported import WITHOUT_LAYERS, filled
from pyllm2.parameters import Array, Streamed, slices

Shape = tuple[int, ...]

ARCHITECTURES = {"GPT2LMHeadModel": "gpt2"}  # and its model_type
PREFIX = "transformer."

# Ours, and Hugging Face's; {} is the layer.
NAMES = {
    "wte": "wte.weight",
    "wpe": "wpe.weight",
    "ln1w": "h.{}.ln_1.weight",
    "ln1b": "h.{}.ln_1.bias",
    "qkvw": "h.{}.attn.c_attn.weight",
    "qkvb": "h.{}.attn.c_attn.bias",
    "attprojw": "h.{}.attn.c_proj.weight",
    "attprojb": "h.{}.attn.c_proj.bias",
    "ln2w": "h.{}.ln_2.weight",
    "ln2b": "h.{}.ln_2.bias",
    "fcw": "h.{}.mlp.c_fc.weight",
    "fcb": "h.{}.mlp.c_fc.bias",
    "fcprojw": "h.{}.mlp.c_proj.weight",
    "fcprojb": "h.{}.mlp.c_proj.bias",
    "lnfw": "ln_f.weight",
    "lnfb": "ln_f.bias",
}
TRANSPOSED = ("qkvw", "attprojw", "fcw", "fcprojw")
CLASSIFIER = "lm_head.weight"  # a copy of wte.weight, in some files
_MASKS = re.compile(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias")  # in old files
# Fields of the config, their keys and the values of keys that are absent.
KEYS = {
    "max_seq_len": "n_positions",
    "vocab_size": "vocab_size",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "channels": "n_embd",
}
DEFAULTS = {
    "n_positions": 1024,
    "vocab_size": 50257,
    "n_layer": 12,
    "n_head": 12,
    "n_embd": 768,
}
# Keys that would change the computation, and the value that does not.
NEUTRAL = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def stream(folder: str | PathLike[str]) -> tuple[Streamed, list[str]]:
    """The model of a folder, and warnings (there are none).

    A feed-forward block that is narrower than 4C is filled up with zeros: it adds gelu(0) · 0.

    Raises FileError or FormatError: which key or tensor, what was found and expected.
    """
    settings, tensors = huggingface.read_config(folder), huggingface.open_weights(folder)
    config = read_config(settings)
    if config.num_layers > len(tensors):  # before anything is listed layer by layer
        raise settings.error("n_layer", f"the folder has {len(tensors)} tensors")
    F, C = settings.whole("n_inner", 4 * config.channels), config.channels
    prefix = PREFIX if f"{PREFIX}{NAMES['wte']}" in tensors else ""
    of_width = {"fcw": (F, C), "fcb": (F,), "fcprojw": (C, F)}
    shapes = slices(config.shapes(), WITHOUT_LAYERS)
    stored = {key: _stored(key[0], of_width.get(key[0], shape)) for key, shape in shapes.items()}

    def place(name: str, layer: int) -> str:
        return prefix + NAMES[name].format(layer)

    expected = {place(*key): shape for key, shape in stored.items()}
    tensors.require(expected)
    others = {name for name in tensors if _MASKS.fullmatch(name)}
    tensors.refuse_others(expected.keys() | others | {CLASSIFIER})
    if not settings.flag("tie_word_embeddings", True):
        _require_shared(tensors, place("wte", 0))

    def read(name: str, layer: int) -> Array:
        found = tensors.read(place(name, layer), stored[name, layer])
        return filled(found.T if name in TRANSPOSED else found, shapes[name, layer])

    def dtype(name: str, layer: int) -> str:
        return tensors.dtype(place(name, layer))

    return Streamed(str(folder), config, config.shapes(), read, dtype), []


def read_config(settings: Settings) -> GPT2Config:
    """The config. Raises FormatError naming a key that is not supported."""
    for key, neutral in NEUTRAL.items():
        if settings.flag(key, neutral) != neutral:
            raise settings.error(key, "is not supported")
    activation = settings.text("activation_function", "gelu_new")
    if activation not in ("gelu_new", "gelu_pytorch_tanh"):  # two names of one formula
        raise settings.error("activation_function", "is not supported: expected 'gelu_new'")
    if abs(settings.number("layer_norm_epsilon", 1e-5) - 1e-5) > 1e-11:
        raise settings.error("layer_norm_epsilon", "is not supported: expected 1e-05")
    values = {field: settings.whole(key, DEFAULTS[key]) for field, key in KEYS.items()}
    try:
        config = GPT2Config(**values, padded_vocab_size=values["vocab_size"])
    except ConfigError as error:
        key = KEYS.get(error.name, error.name)
        raise FormatError(settings.path, f"{key} = {error.found}: {error.expected}") from None
    C = config.channels
    if not 1 <= settings.whole("n_inner", 4 * C) <= 4 * C:
        raise settings.error("n_inner", f"is not supported: expected 1 to 4 · n_embd = {4 * C}")
    return config


def _stored(name: str, shape: Shape) -> Shape:
    return shape[::-1] if name in TRANSPOSED else shape


def _require_shared(tensors: Tensors, embedding: str) -> None:
    """Raises FormatError if the classifier is not the embedding: llm.c's GPT-2 has one for both."""
    if CLASSIFIER not in tensors:
        what = "is missing, and tie_word_embeddings is false"
        raise FormatError(tensors.path, f"tensor {CLASSIFIER!r} {what}")
    shape = tensors[embedding].shape
    if (tensors.read(CLASSIFIER, shape) != tensors.read(embedding, shape)).any():
        raise FormatError(
            tensors.path,
            f"tensor {CLASSIFIER!r} is not that of the embedding: GPT-2 has one for both",
        )


# ---- writing ---------------------------------------------------------------------------------


def save(
    folder: str | PathLike[str],
    source: Streamed,
    dtype: str | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write `config.json` and `model.safetensors` into a folder, one tensor at a time.

    dtype: f32, f16 or bf16 (None: of each tensor that which it has); the padding rows of wte are
    left out   more: further keys of the config

    Raises FileError from the operating system or for a number that the dtype cannot hold, and what
    `source.read` raises.
    """
    config = source.config
    ((architecture, model_type),) = ARCHITECTURES.items()
    values: dict[str, Any] = {"architectures": [architecture], "model_type": model_type}
    values |= {key: getattr(config, field) for field, key in KEYS.items()}
    values |= {"n_ctx": config.max_seq_len, "n_inner": None, "layer_norm_epsilon": 1e-5}
    values |= {"activation_function": "gelu_new", "tie_word_embeddings": True, **(more or {})}
    shapes = slices({**source.shapes, "wte": (config.vocab_size, config.channels)}, WITHOUT_LAYERS)
    places = {NAMES[name].format(layer): (name, layer) for name, layer in shapes}
    stored = {place: _stored(name, shapes[name, layer]) for place, (name, layer) in places.items()}

    def read(place: str) -> Array:
        name, layer = places[place]
        array = source.read(name, layer)[: shapes[name, layer][0]]
        return np.ascontiguousarray(array.T) if name in TRANSPOSED else array

    def kind(place: str) -> str:
        return source.dtype(*places[place])

    huggingface.write(folder, values, stored, read, dtype or kind)
