"""Llama-2 and what came after it in GGUF: architectures llama (Mistral's too), qwen2 and qwen3."""

from __future__ import annotations

import re
from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np

from pyllm2.errors import ConfigError, FormatError
from pyllm2.formats.gguf import Gguf
from pyllm2.formats.gguf_blocks import BY_NAME, PACKED
from pyllm2.formats.gguf_writer import NewTensor, kind_for, write_model
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.imported import WITHOUT_LAYERS, rotated_heads
from pyllm2.llama2.rope_scaling import RopeScaling, frequencies, yarn_attention_factor
from pyllm2.llama2.rotary_order import half_split, interleaved
from pyllm2.parameters import Array, Blocks, Bytes, Streamed, slices

Shape = tuple[int, ...]

ARCHITECTURES = ("llama", "qwen2", "qwen3")
HALF_SPLIT = ("qwen2", "qwen3")  # rows of queries and keys are in Hugging Face's order

# Ours, and GGUF's; {} is the layer.
NAMES = {
    "token_embedding": "token_embd.weight",
    "attention_norm": "blk.{}.attn_norm.weight",
    "wq": "blk.{}.attn_q.weight",
    "wk": "blk.{}.attn_k.weight",
    "wv": "blk.{}.attn_v.weight",
    "wo": "blk.{}.attn_output.weight",
    "ffn_norm": "blk.{}.ffn_norm.weight",
    "w1": "blk.{}.ffn_gate.weight",
    "w2": "blk.{}.ffn_down.weight",
    "w3": "blk.{}.ffn_up.weight",
    "final_norm": "output_norm.weight",
    "bq": "blk.{}.attn_q.bias",
    "bk": "blk.{}.attn_k.bias",
    "bv": "blk.{}.attn_v.bias",
    "bo": "blk.{}.attn_output.bias",
    "b1": "blk.{}.ffn_gate.bias",
    "b2": "blk.{}.ffn_down.bias",
    "b3": "blk.{}.ffn_up.bias",
    "q_norm": "blk.{}.attn_q_norm.weight",
    "k_norm": "blk.{}.attn_k_norm.weight",
    "classifier": "output.weight",
}
FREQUENCIES = "rope_freqs.weight"  # divisors of the frequencies: Llama-3's scaling
_IGNORED = re.compile(r"rope_freqs\.weight|blk\.\d+\.attn_rot_embd\.weight")  # the latter is old
# Fields of the config whose values are metadata, without the architecture before the dot.
KEYS = {
    "dim": "embedding_length",
    "hidden_dim": "feed_forward_length",
    "n_layers": "block_count",
    "n_heads": "attention.head_count",
    "n_kv_heads": "attention.head_count_kv",
    "vocab_size": "vocab_size",
    "seq_len": "context_length",
    "norm_epsilon": "attention.layer_norm_rms_epsilon",
    "rope_base": "rope.freq_base",
    "head_size": "attention.key_length",
    "factor": "rope.scaling.factor",
    "original": "rope.scaling.original_context_length",
    "attention_factor": "rope.scaling.attn_factor",
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
}
# Metadata that would change the computation, and the value that does not.
_NEUTRAL: dict[str, float] = {
    "expert_count": 0,
    "rope.scaling.yarn_ext_factor": 1,
    "rope.scaling.yarn_log_multiplier": 0,
}


def stream(gguf: Gguf) -> tuple[Streamed, list[str]]:
    """The model, float32 whatever the formats of its tensors, or in blocks, and warnings.

    Raises FileError or FormatError: which entry or tensor, what was found and expected.
    """
    config, notes = read_config(gguf)
    shapes = config.shapes(shared_classifier=NAMES["classifier"] not in gguf.tensors)
    tensors = slices(shapes, WITHOUT_LAYERS)
    gguf.require({NAMES[name].format(layer): s for (name, layer), s in tensors.items()}, _IGNORED)
    heads = rotated_heads(config) if gguf.metadata["general.architecture"] in HALF_SPLIT else {}

    def read(name: str, layer: int) -> Array:
        array = gguf.tensor(NAMES[name].format(layer))
        return interleaved(array, heads[name]) if name in heads else array

    def dtype(name: str, layer: int) -> str:
        return gguf.dtype(NAMES[name].format(layer))

    def blocks(name: str, layer: int) -> Blocks | None:
        tensor = NAMES[name].format(layer)
        kind, shape = gguf.kind(tensor), tensors[name, layer]
        if kind.id not in PACKED or len(shape) != 2:
            return None

        def rows() -> Bytes:
            found = gguf.blocks(tensor)
            return interleaved(found, heads[name]) if name in heads else found

        return Blocks(kind.id, kind.size(shape[1]), rows)

    return Streamed(gguf.path, config, shapes, read, dtype, blocks), notes


def read_config(gguf: Gguf) -> tuple[Llama2Config, list[str]]:
    """The config, and warnings. Raises FormatError naming an entry that is not supported."""
    arch = gguf.architecture(ARCHITECTURES)
    for key, neutral in _NEUTRAL.items():
        if gguf.value(f"{arch}.{key}", float, neutral) != neutral:
            raise gguf.error(f"{arch}.{key}", "is not supported")
    try:
        return _config(gguf, arch), _notes(gguf, arch)
    except ConfigError as error:
        key = f"{arch}.{KEYS.get(error.name, error.name)}"
        if key in gguf.metadata:
            raise gguf.error(key, error.expected) from None
        raise FormatError(gguf.path, str(error)) from None


def _config(gguf: Gguf, arch: str) -> Llama2Config:
    def whole(field: str, default: int | None = None) -> int:
        return gguf.constant(f"{arch}.{KEYS[field]}", default)

    first = {name: text.format(0) in gguf.tensors for name, text in NAMES.items()}
    rows = gguf.rows(NAMES["token_embedding"])
    V = whole("vocab_size", rows)
    if rows != V:
        raise gguf.error(f"{arch}.vocab_size", f"{NAMES['token_embedding']} has {rows} rows")
    values: dict[str, Any] = {
        "dim": whole("dim"),
        "hidden_dim": whole("hidden_dim"),
        "n_layers": whole("n_layers"),
        "n_heads": whole("n_heads"),
        "n_kv_heads": whole("n_kv_heads", whole("n_heads")),
        "vocab_size": V,
        "seq_len": whole("seq_len"),
        "norm_epsilon": gguf.value(f"{arch}.{KEYS['norm_epsilon']}", float),
        "rope_base": gguf.value(f"{arch}.{KEYS['rope_base']}", float, 10000.0),
        "rope_scaling": _rope_scaling(gguf, arch),
        "head_size": whole("head_size", 0),
        "qkv_bias": first["bq"],
        "output_bias": first["bo"],
        "ffn_bias": first["b1"],
        "head_norm": first["q_norm"],
    }
    config = Llama2Config(**values)
    if config.n_layers > len(gguf.tensors):  # before anything is listed layer by layer
        raise gguf.error(f"{arch}.block_count", f"the file has {len(gguf.tensors)} tensors")
    for key in (f"{arch}.attention.value_length", f"{arch}.rope.dimension_count"):
        if gguf.value(key, int, config.head_size) != config.head_size:
            raise gguf.error(key, f"must be the head size, {config.head_size}")
    return config


def _rope_scaling(gguf: Gguf, arch: str) -> RopeScaling | None:
    """By a tensor (Llama-3) or by metadata (linear, yarn)."""
    prefix = f"{arch}.rope.scaling"
    kind = gguf.value(f"{prefix}.type", str, "linear")
    if kind not in ("none", "linear", "yarn"):
        raise gguf.error(f"{prefix}.type", "supported are none, linear and yarn")
    old = gguf.value(f"{arch}.rope.scale_linear", float, 1.0)
    factor = gguf.value(f"{prefix}.factor", float, old) if kind != "none" else 1.0
    factor = factor or 1.0  # llama.cpp takes 0 for 1
    if FREQUENCIES in gguf.tensors:
        if factor != 1:
            raise gguf.error(f"{prefix}.type", f"cannot be combined with {FREQUENCIES}")
        divisors = gguf.tensor(FREQUENCIES).ravel().tolist()
        return RopeScaling("divisors", divisors=tuple(divisors))
    if kind == "yarn":
        context = gguf.constant(f"{arch}.context_length")
        attention_factor = gguf.value(f"{prefix}.attn_factor", float, 1.0)
        return RopeScaling(
            "yarn",
            factor=factor,
            original=gguf.value(f"{prefix}.original_context_length", int, context),
            beta_fast=gguf.value(f"{prefix}.yarn_beta_fast", float, 32.0),
            beta_slow=gguf.value(f"{prefix}.yarn_beta_slow", float, 1.0),
            attention_factor=attention_factor * yarn_attention_factor(factor),
        )
    return None if factor == 1 else RopeScaling("linear", factor=factor)


def _notes(gguf: Gguf, arch: str) -> list[str]:
    key = f"{arch}.attention.sliding_window"
    window: Any = gguf.metadata.get(key)
    if not isinstance(window, int) or not 0 < window < gguf.constant(f"{arch}.context_length"):
        return []
    words = "ignored, as llama.cpp does: every token attends to all before it"
    return [f"{gguf.path}: {key} = {window}: {words}"]


# ---- writing ---------------------------------------------------------------------------------


def save(
    path: str | PathLike[str],
    source: Streamed,
    dtype: str | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write a model, atomically, one tensor at a time.

    dtype: of the matrices, one of `gguf_writer.DTYPES` (None: what holds each of them exactly)
    more: metadata: name, tokenizer, template

    Raises FileError from the operating system, ConfigError for what no architecture of GGUF has,
    and what `source.read` raises.
    """
    config = source.config
    arch = _architecture(config)
    sizes = _metadata(config)
    heads = rotated_heads(source.config) if arch in HALF_SPLIT else {}

    def tensor(name: str, layer: int, shape: Shape) -> NewTensor:
        def numbers() -> Array:
            array = source.read(name, layer)
            return half_split(array, heads[name]) if name in heads else array

        kind = kind_for(dtype or source.dtype(name, layer), shape)
        return NewTensor(NAMES[name].format(layer), shape, kind, numbers)

    tensors = [tensor(*key, shape) for key, shape in slices(source.shapes, WITHOUT_LAYERS).items()]
    divisors = _divisors(config)
    if divisors is not None:
        of_pairs = NewTensor(FREQUENCIES, divisors.shape, BY_NAME["F32"], lambda: divisors)
        tensors.insert(0, of_pairs)
    write_model(path, arch, sizes, tensors, dtype, more)


def _architecture(config: Llama2Config) -> str:
    """The architecture whose graph has the norms and biases of this model."""
    if any(config.windows):
        raise ConfigError("windows", max(config.windows), "GGUF's llama and qwen2 have no window")
    if config.head_norm:
        for field in ("qkv_bias", "output_bias", "ffn_bias"):
            if getattr(config, field):
                raise ConfigError(field, True, "GGUF's qwen3 has no biases")
        return "qwen3"
    return "qwen2" if config.qkv_bias and not (config.output_bias or config.ffn_bias) else "llama"


def _metadata(config: Llama2Config) -> dict[str, Any]:
    """The metadata, without the architecture in front. Raises ConfigError."""
    values: dict[str, Any] = {}
    for field in "n_layers seq_len dim hidden_dim n_heads n_kv_heads vocab_size".split():
        values[KEYS[field]] = getattr(config, field)
    values[KEYS["norm_epsilon"]] = float(config.norm_epsilon)
    values[KEYS["rope_base"]] = float(config.rope_base)
    values |= dict.fromkeys(("attention.key_length", "attention.value_length"), config.head_size)
    values["rope.dimension_count"] = config.head_size
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind in ("linear", "yarn"):
        values["rope.scaling.type"] = scaling.kind
        values[KEYS["factor"]] = float(scaling.factor)
    if scaling is not None and scaling.kind == "yarn":
        if not scaling.truncate:
            raise ConfigError("truncate", False, "GGUF's yarn always rounds to whole pairs")
        values[KEYS["original"]] = scaling.original
        values[KEYS["beta_fast"]] = float(scaling.beta_fast)
        values[KEYS["beta_slow"]] = float(scaling.beta_slow)
        implied = yarn_attention_factor(scaling.factor)
        if scaling.attention_factor != implied:
            values[KEYS["attention_factor"]] = scaling.attention_factor / implied
    if scaling is not None and scaling.kind == "dynamic":
        raise ConfigError("rope_type", scaling.kind, "GGUF has none, linear, yarn and llama3")
    return values


def _divisors(config: Llama2Config) -> Array | None:
    """rope_freqs.weight, (hs/2,): what the frequencies are divided by."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind not in ("llama3", "divisors"):
        return None
    plain = frequencies(config.head_size, config.rope_base, None)
    scaled = frequencies(config.head_size, config.rope_base, scaling)
    return np.divide(plain, scaled).astype(np.float32)
