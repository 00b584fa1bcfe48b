"""Llama-2 and Llama-3 as Meta's folders: params.json and consolidated.NN.pth.

Queries and keys are interleaved, as in llama2.c, and the classifier is always a matrix of its own.
"""

from __future__ import annotations

import math
import re
from os import PathLike

from pyllm2.errors import ConfigError, FormatError
from pyllm2.formats import meta
from pyllm2.formats.json_file import Settings
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.imported import WITHOUT_LAYERS
from pyllm2.llama2.rope_scaling import RopeScaling
from pyllm2.parameters import Array, Streamed, slices

# Ours, and Meta's; {} is the layer.
NAMES = {
    "token_embedding": "tok_embeddings.weight",
    "attention_norm": "layers.{}.attention_norm.weight",
    "wq": "layers.{}.attention.wq.weight",
    "wk": "layers.{}.attention.wk.weight",
    "wv": "layers.{}.attention.wv.weight",
    "wo": "layers.{}.attention.wo.weight",
    "ffn_norm": "layers.{}.ffn_norm.weight",
    "w1": "layers.{}.feed_forward.w1.weight",
    "w2": "layers.{}.feed_forward.w2.weight",
    "w3": "layers.{}.feed_forward.w3.weight",
    "final_norm": "norm.weight",
    "classifier": "output.weight",
}
KEYS = {
    "dim": "dim",
    "n_layers": "n_layers",
    "n_heads": "n_heads",
    "n_kv_heads": "n_kv_heads",
    "vocab_size": "vocab_size",
    "norm_epsilon": "norm_eps",
    "rope_base": "rope_theta",
}
_IGNORED = re.compile(r"rope\.freqs|layers\.\d+\.attention\.(inner_attention\.)?rope\.freqs")
_REFUSED = re.compile(r"quantization_args|lora_args|vision_.*|moe_args")
# What `use_scaled_rope` stands for; the numbers are in no file.
SCALED = RopeScaling("llama3", factor=8.0, original=8192, low=1.0, high=4.0)


def stream(folder: str | PathLike[str]) -> tuple[Streamed, list[str]]:
    """The model of a folder, and warnings.

    Raises FileError or FormatError: which key or tensor, what was found and expected.
    """
    settings, tensors = meta.read_params(folder), meta.open_weights(folder)
    config, notes = read_config(settings, tensors)
    if config.n_layers > len(tensors.files[0]):  # before anything is listed layer by layer
        raise settings.error("n_layers", f"a file has {len(tensors.files[0])} tensors")
    shapes = config.shapes(shared_classifier=False)
    expected = {NAMES[n].format(i): s for (n, i), s in slices(shapes, WITHOUT_LAYERS).items()}
    tensors.require(expected)
    others = {name for name in tensors.files[0] if _IGNORED.fullmatch(name)}
    tensors.refuse_others(expected.keys() | others)

    def read(name: str, layer: int) -> Array:
        place = NAMES[name].format(layer)
        return tensors.read(place, expected[place])

    def dtype(name: str, layer: int) -> str:
        return tensors.files[0].dtype(NAMES[name].format(layer))

    return Streamed(str(folder), config, shapes, read, dtype), notes


def read_config(settings: Settings, tensors: meta.SlicedTensors) -> tuple[Llama2Config, list[str]]:
    """The config, and warnings. Raises FormatError naming a key that is not supported.

    The vocabulary and the feed-forward width are those of the tensors.
    """
    for key in settings.values:
        if _REFUSED.fullmatch(key) and settings.has(key):
            raise settings.error(key, "is not supported")
    dim, heads = settings.whole("dim"), settings.whole("n_heads")
    scaled = settings.flag("use_scaled_rope", False)
    base = settings.number("rope_theta", 10000.0)
    try:
        config = Llama2Config(
            dim=dim,
            hidden_dim=_hidden_dim(settings, tensors, dim),
            n_layers=settings.whole("n_layers"),
            n_heads=heads,
            n_kv_heads=settings.whole("n_kv_heads", heads),
            vocab_size=_vocab_size(settings, tensors, dim),
            seq_len=settings.whole("max_seq_len", _positions(base, scaled)),
            norm_epsilon=settings.number("norm_eps", 1e-5),
            rope_base=base,
            rope_scaling=SCALED if scaled else None,
        )
    except ConfigError as error:
        key = KEYS.get(error.name, error.name)
        raise FormatError(settings.path, f"{key} = {error.found}: {error.expected}") from None
    notes = []
    if not settings.has("max_seq_len"):
        of = "use_scaled_rope" if scaled else f"rope_theta = {base:g}"
        words = f"no max_seq_len: {config.seq_len} tokens are taken, as usual with {of}"
        notes.append(f"{settings.path}: {words} (--context N: another)")
    if scaled:
        words = f"RoPE is scaled with factor {SCALED.factor:g}, which is in no file"
        notes.append(f"{settings.path}: use_scaled_rope: {words} (Hugging Face's Llama-3.2 has 32)")
    return config, notes


def _positions(base: float, scaled: bool) -> int:
    """The context that a model was trained with, which is in no file: known by its base of RoPE."""
    if scaled:
        return 131072
    return {500000.0: 8192, 1000000.0: 16384}.get(base, 4096)


def _slice(tensors: meta.SlicedTensors, name: str) -> tuple[int, ...]:
    """The shape of a slice of a matrix. Raises FormatError."""
    found = tensors.slice_shape(name)
    if found is None or len(found) != 2:
        words = "is missing" if found is None else f"has {len(found)} dimensions, expected 2"
        raise FormatError(tensors.path, f"tensor {name!r} {words}")
    return found


def _vocab_size(settings: Settings, tensors: meta.SlicedTensors, dim: int) -> int:
    """The rows of the embedding, which is cut along channels (Llama-2) or along them (Llama-3).

    Raises FormatError if params.json says otherwise; there, -1 is "as the tokenizer has".
    """
    rows, columns = _slice(tensors, NAMES["token_embedding"])
    V = rows if columns != dim else rows * len(tensors.files)
    if settings.whole("vocab_size", -1) not in (-1, V):
        raise settings.error("vocab_size", f"{NAMES['token_embedding']} has {V} rows")
    return V


def _hidden_dim(settings: Settings, tensors: meta.SlicedTensors, dim: int) -> int:
    """The rows of w1. Raises FormatError if the rule of params.json gives another number.

    F = int(2 · 4 dim / 3), times ffn_dim_multiplier, rounded up to multiple_of
    """
    name = NAMES["w1"].format(0)
    F = _slice(tensors, name)[0] * len(tensors.files)
    step = settings.whole("multiple_of", 256)
    if step < 1:
        raise settings.error("multiple_of", "must be at least 1")
    wanted = int(int(2 * 4 * dim / 3) * settings.number("ffn_dim_multiplier", 1.0))
    wanted = step * math.ceil(wanted / step)
    if wanted != F:
        rule = "dim, multiple_of and ffn_dim_multiplier"
        hint = ": is a consolidated.NN.pth missing?" if wanted > F and wanted % F == 0 else ""
        raise FormatError(settings.path, f"{rule} give {wanted}: {name} has {F} rows{hint}")
    return F
