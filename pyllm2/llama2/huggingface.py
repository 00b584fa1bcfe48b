"""Llama-2 and what came after it as folders of Hugging Face: llama, mistral, qwen2 and qwen3.

A key that is absent from config.json has the default of its class, and the defaults differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from os import PathLike
from typing import Any

from pyllm2.errors import ConfigError, FormatError, printable
from pyllm2.formats import huggingface
from pyllm2.formats.json_file import Settings
from pyllm2.formats.tensors import Tensors
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.imported import WITHOUT_LAYERS, rotated_heads
from pyllm2.llama2.rope_settings import read_rope, rope_values
from pyllm2.llama2.rotary_order import half_split, interleaved
from pyllm2.parameters import Array, Streamed, slices

Shape = tuple[int, ...]

# Architectures, and their model_type.
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
_LAYER = "model.layers.{}."
# Ours, and Hugging Face's; {} is the layer.
NAMES = {
    "token_embedding": "model.embed_tokens.weight",
    "attention_norm": _LAYER + "input_layernorm.weight",
    "wq": _LAYER + "self_attn.q_proj.weight",
    "wk": _LAYER + "self_attn.k_proj.weight",
    "wv": _LAYER + "self_attn.v_proj.weight",
    "wo": _LAYER + "self_attn.o_proj.weight",
    "ffn_norm": _LAYER + "post_attention_layernorm.weight",
    "w1": _LAYER + "mlp.gate_proj.weight",
    "w2": _LAYER + "mlp.down_proj.weight",
    "w3": _LAYER + "mlp.up_proj.weight",
    "final_norm": "model.norm.weight",
    "bq": _LAYER + "self_attn.q_proj.bias",
    "bk": _LAYER + "self_attn.k_proj.bias",
    "bv": _LAYER + "self_attn.v_proj.bias",
    "bo": _LAYER + "self_attn.o_proj.bias",
    "b1": _LAYER + "mlp.gate_proj.bias",
    "b2": _LAYER + "mlp.down_proj.bias",
    "b3": _LAYER + "mlp.up_proj.bias",
    "q_norm": _LAYER + "self_attn.q_norm.weight",
    "k_norm": _LAYER + "self_attn.k_norm.weight",
    "classifier": "lm_head.weight",
}
_IGNORED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")  # in old files
# Fields of the config, and their keys.
KEYS = {
    "dim": "hidden_size",
    "hidden_dim": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "vocab_size": "vocab_size",
    "seq_len": "max_position_embeddings",
    "norm_epsilon": "rms_norm_eps",
    "head_size": "head_dim",
    "rope_base": "rope_theta",
    "windows": "sliding_window",
}
TIED = "tie_word_embeddings"
_COMMON = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
_QWEN = {"vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768}
_QWEN |= _COMMON | {"num_key_value_heads": 32}
# The values of keys that are absent. Without a head size there: hidden_size / heads.
DEFAULTS: dict[str, dict[str, int]] = {
    "llama": {
        **_COMMON,
        "vocab_size": 32000,
        "intermediate_size": 11008,
        "max_position_embeddings": 2048,
    },
    "mistral": {
        **_COMMON,
        "vocab_size": 32000,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    },
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "head_dim": 128},
}
_WINDOW = 4096  # sliding_window, where it is absent
_MIXTURE = "num_local_experts num_experts n_routed_experts moe_intermediate_size".split()


def stream(folder: str | PathLike[str]) -> tuple[Streamed, list[str]]:
    """The model of a folder, and warnings.

    Raises FileError or FormatError: which key or tensor, what was found and expected.
    """
    settings, tensors = huggingface.read_config(folder), huggingface.open_weights(folder)
    config = read_config(settings)
    if config.n_layers > len(tensors):  # before anything is listed layer by layer
        raise settings.error("num_hidden_layers", f"the folder has {len(tensors)} tensors")
    shapes = config.shapes(shared_classifier=_is_shared(settings, tensors))
    expected = {NAMES[n].format(i): s for (n, i), s in slices(shapes, WITHOUT_LAYERS).items()}
    tensors.require(expected)
    others = {name for name in tensors if _IGNORED.fullmatch(name)}
    tensors.refuse_others(expected.keys() | others | {NAMES["classifier"]})
    heads = rotated_heads(config)

    def read(name: str, layer: int) -> Array:
        place = NAMES[name].format(layer)
        array = tensors.read(place, expected[place])
        return interleaved(array, heads[name]) if name in heads else array

    def dtype(name: str, layer: int) -> str:
        return tensors.dtype(NAMES[name].format(layer))

    return Streamed(str(folder), config, shapes, read, dtype), []


def read_config(settings: Settings) -> Llama2Config:
    """The config. Raises FormatError naming a key that is not supported."""
    kind = huggingface.architecture(settings, ARCHITECTURES)
    for key in _MIXTURE:
        if settings.has(key) and settings.values[key] != 0:
            raise settings.error(key, "is not supported: a mixture of experts")
    if settings.text("hidden_act", "silu") not in ("silu", "swish"):
        raise settings.error("hidden_act", "is not supported: expected 'silu'")
    try:
        return _config(settings, kind)
    except ConfigError as error:
        key = KEYS.get(error.name, error.name)
        if not settings.has(key):
            raise FormatError(settings.path, f"{key} = {error.found}: {error.expected}") from None
        raise settings.error(key, error.expected) from None


def _config(settings: Settings, kind: str) -> Llama2Config:
    defaults = dict(DEFAULTS[kind])

    def whole(field: str) -> int:
        key = KEYS[field]
        return settings.whole(key, defaults.get(key, 0))

    heads = whole("n_heads")
    defaults.setdefault(KEYS["n_kv_heads"], heads)
    sizes = "dim hidden_dim n_layers n_heads n_kv_heads vocab_size seq_len".split()
    values: dict[str, Any] = {field: whole(field) for field in sizes}
    attention = kind in ("llama", "qwen3") and settings.flag("attention_bias", False)
    base, scaling = read_rope(settings, values["seq_len"])
    if scaling is not None and scaling.kind == "dynamic":  # it goes beyond what is said there
        values["seq_len"] = int(scaling.factor * scaling.original)
    values |= {
        "norm_epsilon": settings.number(KEYS["norm_epsilon"], 1e-6),
        "rope_base": base,
        "rope_scaling": scaling,
        "head_size": whole("head_size"),
        "qkv_bias": attention or kind == "qwen2",
        "output_bias": attention,
        "ffn_bias": kind == "llama" and settings.flag("mlp_bias", False),
        "head_norm": kind == "qwen3",
        "windows": _windows(settings, kind, values["n_layers"], values["seq_len"]),
    }
    return Llama2Config(**values)


def _windows(settings: Settings, kind: str, L: int, S: int) -> tuple[int, ...]:
    """Positions that each layer's attention sees, 0: all. Empty if that is so in every layer."""
    key = KEYS["windows"]
    if kind == "llama" or (kind != "mistral" and not settings.flag("use_sliding_window", False)):
        return ()
    if key in settings.values and settings.values[key] is None:
        return ()
    window = settings.whole(key, _WINDOW)
    if window < 1:
        raise settings.error(key, "must be at least 1")
    if window >= S or not 0 < L < 2**16:  # the number of layers is refused elsewhere
        return ()
    if kind == "mistral":
        return (window,) * L
    types = settings.values.get("layer_types")
    if types is None:
        first = settings.whole("max_window_layers", 28)
        types = ["full_attention" if i < first else "sliding_attention" for i in range(L)]
    known = {"full_attention": 0, "sliding_attention": window}
    if (
        not isinstance(types, list)
        or len(types) != L
        or not all(isinstance(t, str) and t in known for t in types)
    ):
        raise settings.error("layer_types", f"expected {' or '.join(known)} for each layer")
    windows = tuple(known[t] for t in types)
    return windows if any(windows) else ()


def _is_shared(settings: Settings, tensors: Tensors) -> bool:
    """Whether the classifier is the embedding. Raises FormatError if it is nowhere."""
    if settings.flag(TIED, False):
        return True
    name = NAMES["classifier"]
    if name not in tensors:
        words = f"{TIED} is not true in {huggingface.CONFIG}"
        raise FormatError(printable(tensors.path), f"tensor {name!r} is missing, and {words}")
    return False


# ---- writing ---------------------------------------------------------------------------------


def save(
    folder: str | PathLike[str],
    source: Streamed,
    dtype: str | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write `config.json` and `model.safetensors` into a folder, one tensor at a time.

    dtype: f32, f16 or bf16 (None: of each tensor that which it has)   more: keys of the config

    Raises FileError from the operating system or for a number that the dtype cannot hold,
    ConfigError for what no architecture has, and what `source.read` raises.
    """
    config = source.config
    places = {
        NAMES[name].format(layer): (name, layer, shape)
        for (name, layer), shape in slices(source.shapes, WITHOUT_LAYERS).items()
    }
    heads = rotated_heads(config)

    def read(place: str) -> Array:
        name, layer, _ = places[place]
        array = source.read(name, layer)
        return half_split(array, heads[name]) if name in heads else array

    def kind(place: str) -> str:
        return source.dtype(*places[place][:2])

    values = {**_values(config, "classifier" not in source.shapes), **(more or {})}
    shapes = {place: shape for place, (_, _, shape) in places.items()}
    huggingface.write(folder, values, shapes, read, dtype or kind)


def _values(config: Any, shared_classifier: bool) -> dict[str, Any]:
    """The keys of config.json. Raises ConfigError for what no architecture has."""
    kind = _kind(config)
    (architecture,) = (name for name, found in ARCHITECTURES.items() if found == kind)
    values: dict[str, Any] = {"architectures": [architecture], "model_type": kind}
    for field in "dim hidden_dim n_layers n_heads n_kv_heads vocab_size seq_len".split():
        values[KEYS[field]] = getattr(config, field)
    values[KEYS["norm_epsilon"]] = config.norm_epsilon
    values[KEYS["head_size"]] = config.head_size
    values |= {"hidden_act": "silu", TIED: shared_classifier, **rope_values(config)}
    if kind in ("llama", "qwen3"):
        values["attention_bias"] = config.output_bias
    if kind == "llama":
        values["mlp_bias"] = config.ffn_bias
    windows = config.windows or (0,)
    if kind == "mistral":
        values[KEYS["windows"]] = max(windows) or None
    elif kind != "llama":
        values |= {"use_sliding_window": any(windows), KEYS["windows"]: max(windows) or None}
        if any(windows):
            types = ["sliding_attention" if window else "full_attention" for window in windows]
            values |= {"layer_types": types, "max_window_layers": config.n_layers}
    return values


def _kind(config: Any) -> str:
    """The model_type whose class computes what this model does. Raises ConfigError."""
    windows = set(config.windows) or {0}
    if len(windows - {0}) > 1:
        raise ConfigError("windows", config.windows, "Hugging Face's models have one width")
    if config.head_norm:
        kind, biases = "qwen3", config.qkv_bias == config.output_bias and not config.ffn_bias
    elif config.qkv_bias and not config.output_bias:
        kind, biases = "qwen2", not config.ffn_bias
    elif windows == {0}:
        kind, biases = "llama", config.qkv_bias == config.output_bias
    else:
        kind, biases = "mistral", not (config.qkv_bias or config.output_bias or config.ffn_bias)
        if 0 in windows:
            expected = "Hugging Face's mistral has the same in all layers"
            raise ConfigError("windows", config.windows, expected)
    if not biases:
        found = [n for n in ("qkv_bias", "output_bias", "ffn_bias") if getattr(config, n)]
        raise ConfigError(
            found[0], True, f"Hugging Face's {kind} has no such combination of biases"
        )
    return kind
