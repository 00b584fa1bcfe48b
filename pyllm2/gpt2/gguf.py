"""GPT-2 in GGUF: architecture gpt2."""

from __future__ import annotations

import re
from collections.abc import Mapping
from os import PathLike
from typing import Any

from pyllm2.errors import ConfigError, FormatError
from pyllm2.formats.gguf import Gguf
from pyllm2.formats.gguf_writer import NewTensor, kind_for, write_model
from pyllm2.gpt2.config import GPT2Config
from pyllm2.gpt2.imported import WITHOUT_LAYERS, filled
from pyllm2.parameters import Array, Streamed, slices

Shape = tuple[int, ...]

ARCHITECTURES = ("gpt2",)

# Ours, and GGUF's; {} is the layer.
NAMES = {
    "wte": "token_embd.weight",
    "wpe": "position_embd.weight",
    "ln1w": "blk.{}.attn_norm.weight",
    "ln1b": "blk.{}.attn_norm.bias",
    "qkvw": "blk.{}.attn_qkv.weight",
    "qkvb": "blk.{}.attn_qkv.bias",
    "attprojw": "blk.{}.attn_output.weight",
    "attprojb": "blk.{}.attn_output.bias",
    "ln2w": "blk.{}.ffn_norm.weight",
    "ln2b": "blk.{}.ffn_norm.bias",
    "fcw": "blk.{}.ffn_up.weight",
    "fcb": "blk.{}.ffn_up.bias",
    "fcprojw": "blk.{}.ffn_down.weight",
    "fcprojb": "blk.{}.ffn_down.bias",
    "lnfw": "output_norm.weight",
    "lnfb": "output_norm.bias",
}
CLASSIFIER = "output.weight"  # a copy of token_embd.weight, in some files
# Fields of the config whose values are metadata, without the architecture before the dot.
KEYS = {
    "max_seq_len": "context_length",
    "vocab_size": "vocab_size",
    "num_layers": "block_count",
    "num_heads": "attention.head_count",
    "channels": "embedding_length",
}
EPSILON = "attention.layer_norm_epsilon"
FEED_FORWARD = "feed_forward_length"


def stream(gguf: Gguf) -> tuple[Streamed, list[str]]:
    """The model, float32 whatever the formats of its tensors, and warnings (there are none).

    A feed-forward block that is narrower than 4C is filled up with zeros: it adds gelu(0) · 0.

    Raises FileError or FormatError: which entry or tensor, what was found and expected.
    """
    config, notes = read_config(gguf)
    tensors = _tensors(config, gguf.constant(f"{ARCHITECTURES[0]}.{FEED_FORWARD}"))
    expected = {NAMES[name].format(layer): shape for (name, layer), shape in tensors.items()}
    gguf.require(expected, re.compile(re.escape(CLASSIFIER)))
    if CLASSIFIER in gguf.tensors:
        _require_shared(gguf)
    whole = _tensors(config, 4 * config.channels)

    def read(name: str, layer: int) -> Array:
        return filled(gguf.tensor(NAMES[name].format(layer)), whole[name, layer])

    def dtype(name: str, layer: int) -> str:
        return gguf.dtype(NAMES[name].format(layer))

    return Streamed(gguf.path, config, config.shapes(), read, dtype), notes


def read_config(gguf: Gguf) -> tuple[GPT2Config, list[str]]:
    """The config, and warnings (there are none).

    Raises FormatError naming an entry that is not supported.
    """
    arch = gguf.architecture(ARCHITECTURES)
    rows = gguf.rows(NAMES["wte"])
    values = {
        field: gguf.constant(f"{arch}.{key}", rows if field == "vocab_size" else None)
        for field, key in KEYS.items()
    }
    if values["vocab_size"] != rows:
        raise gguf.error(f"{arch}.vocab_size", f"{NAMES['wte']} has {rows} rows")
    epsilon = gguf.value(f"{arch}.{EPSILON}", float)
    if abs(epsilon - 1e-5) > 1e-11:
        raise gguf.error(f"{arch}.{EPSILON}", "must be 1e-5")
    try:
        config = GPT2Config(**values, padded_vocab_size=rows)
    except ConfigError as error:
        key = f"{arch}.{KEYS.get(error.name, error.name)}"
        if key in gguf.metadata:
            raise gguf.error(key, error.expected) from None
        raise FormatError(gguf.path, str(error)) from None
    if config.num_layers > len(gguf.tensors):  # before anything is listed layer by layer
        raise gguf.error(f"{arch}.block_count", f"the file has {len(gguf.tensors)} tensors")
    F, C = gguf.constant(f"{arch}.{FEED_FORWARD}"), config.channels
    if not 1 <= F <= 4 * C:
        raise gguf.error(f"{arch}.{FEED_FORWARD}", f"must be 1 to 4 · embedding_length = {4 * C}")
    return config, []


def _tensors(config: GPT2Config, F: int) -> dict[tuple[str, int], Shape]:
    """(name, layer) -> shape of one tensor, with a feed-forward block of width F."""
    C = config.channels
    of_width = {"fcw": (F, C), "fcb": (F,), "fcprojw": (C, F)}
    whole = slices(config.shapes(), WITHOUT_LAYERS)
    return {key: of_width.get(key[0], shape) for key, shape in whole.items()}


def _require_shared(gguf: Gguf) -> None:
    """Raises FormatError if the classifier is not the embedding: llm.c's GPT-2 has one for both."""
    raw = [gguf.tensors[name] for name in (CLASSIFIER, NAMES["wte"])]
    same = raw[0].shape == raw[1].shape
    if not same or (gguf.tensor(CLASSIFIER) != gguf.tensor(NAMES["wte"])).any():
        raise FormatError(
            gguf.path,
            f"tensor {CLASSIFIER!r} is not that of the embedding: GPT-2 has one for both",
        )


# ---- writing ---------------------------------------------------------------------------------


def save(
    path: str | PathLike[str],
    source: Streamed,
    dtype: str | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write a model, atomically, one tensor at a time; without the padding rows of wte.

    dtype: of the matrices, one of `gguf_writer.DTYPES` (None: what holds each of them exactly)
    more: metadata: name, tokenizer, template

    Raises FileError from the operating system, and what `source.read` raises.
    """
    config = source.config
    C, V = config.channels, config.vocab_size
    sizes: dict[str, Any] = {key: getattr(config, field) for field, key in KEYS.items()}
    sizes |= {FEED_FORWARD: 4 * C, EPSILON: 1e-5}

    def tensor(name: str, layer: int, shape: Shape) -> NewTensor:
        def numbers() -> Array:
            return source.read(name, layer)[: shape[0]]

        kind = kind_for("f32" if name == "wpe" else dtype or source.dtype(name, layer), shape)
        return NewTensor(NAMES[name].format(layer), shape, kind, numbers)

    tensors = _tensors(config, 4 * C) | {("wte", 0): (V, C)}
    rows = [tensor(name, layer, shape) for (name, layer), shape in tensors.items()]
    write_model(path, ARCHITECTURES[0], sizes, rows, dtype, more)
