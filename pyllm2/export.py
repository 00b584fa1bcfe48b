"""Checkpoints from one layout to another, and what quantising costs.

float32 is the common ground: whatever is read becomes float32 tensors, and is written from them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from pyllm2.formats import llama2c, llama2c_q8
from pyllm2.formats.reader import open_source
from pyllm2.language_model import LanguageModel
from pyllm2.llama2 import ops
from pyllm2.llama2.config import Llama2Config
from pyllm2.loading import check_config

Array = NDArray[np.float32]
FORMATS = ("v0", "v1", "v2")


def read_float32(
    path: str | os.PathLike[str],
) -> tuple[Llama2Config, dict[str, Array], list[str]]:
    """Config, float32 tensors (int8 ones expanded) and warnings; no classifier if it is shared.

    Raises FileError or FormatError.
    """
    with open_source(path) as source:
        header = llama2c.read_header(source)
        config = check_config(source, header)
        if header.version != 2:
            tensors, notes = llama2c.read_tensors(source, header)
            return config, tensors, notes
        found, notes = llama2c_q8.read_q8_tensors(source, header)
    expanded = {}
    for name, array in found.items():
        if name.endswith("_scales"):
            continue
        scales = found.get(f"{name}_scales")
        if scales is None:
            expanded[name] = array
            continue
        layers = [
            ops.dequantize(array[layer], scales[layer], header.group_size)
            for layer in range(len(array))
        ]
        single = name in ("token_embedding", "classifier")
        expanded[name] = layers[0] if single else np.stack(layers)
    return config, expanded, notes


def export(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    to: str,
    group_size: int = llama2c_q8.DEFAULT_GROUP_SIZE,
    like_original: bool = False,
) -> tuple[int, list[str]]:
    """Write a checkpoint in another format; the group size used (0 for float32) and warnings.

    to: v0, v1 or v2. For v2 the group size is halved until it divides both widths; with
    `like_original` until it divides dim, as the original does, which may lose inputs of w2.

    Raises FileError or FormatError.
    """
    config, tensors, notes = read_float32(source)
    if to != "v2":
        llama2c.write_checkpoint(target, asdict(config), tensors, FORMATS.index(to))
        return 0, notes
    size = llama2c_q8.fitting_group_size(group_size, config.dim, config.hidden_dim, like_original)
    llama2c_q8.write_q8_checkpoint(target, asdict(config), tensors, size)
    return size, notes


@dataclass(frozen=True)
class TensorError:
    """What quantising did to one tensor: largest and rms error, and where the largest is."""

    name: str
    largest: float
    rms: float
    worst_layer: int
    worst_group: int


def tensor_errors(path: str | os.PathLike[str], group_size: int) -> list[TensorError]:
    """The errors of every tensor of a float32 checkpoint at a group size."""
    _, tensors, _ = read_float32(path)
    rows = []
    for name, array in tensors.items():
        if name in llama2c_q8.NORMS:
            continue
        stack = array.reshape(1 if array.ndim == 2 else len(array), -1)
        worst, squares = (0.0, 0, 0), 0.0
        for layer, flat in enumerate(stack):
            values, scales = llama2c_q8.quantize_weights(flat, group_size)
            off = np.abs(ops.dequantize(values, scales, group_size) - flat)
            squares += float(np.sum(off.astype(np.float64) ** 2))
            at = int(np.argmax(off))
            worst = max(worst, (float(off[at]), layer, at // group_size))
        rms = float(np.sqrt(squares / array.size))
        rows.append(TensorError(name, worst[0], rms, worst[1], worst[2]))
    return rows


@dataclass(frozen=True)
class TextComparison:
    """Two models on one text, token by token."""

    tokens: int
    perplexity: float  # of the float32 model
    perplexity_q8: float
    divergence: float  # mean KL of the int8 distribution from the float32 one, in nats
    same_best: float  # share of positions whose most probable token is the same
    first_change: int | None  # the first position whose most probable token differs


def compare_on_text(
    model: LanguageModel, other: LanguageModel, ids: Sequence[int]
) -> TextComparison:
    """How far `other` is from `model` on a text of at least two ids.

    Raises what `LanguageModel.logits` raises.
    """
    logits, logits_q8 = model.logits(ids), other.logits(ids)
    log_p, log_q = (_log_softmax(x) for x in (logits, logits_q8))
    following = np.asarray(ids[1:])
    rows = np.arange(len(following))
    best, best_q8 = logits.argmax(axis=1), logits_q8.argmax(axis=1)
    changes = np.flatnonzero(best != best_q8)
    return TextComparison(
        tokens=len(ids),
        perplexity=float(np.exp(-log_p[rows, following].mean())),
        perplexity_q8=float(np.exp(-log_q[rows, following].mean())),
        divergence=float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()),
        same_best=1 - len(changes) / len(ids),
        first_change=int(changes[0]) if len(changes) else None,
    )


def _log_softmax(logits: Array) -> NDArray[np.float64]:
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))
