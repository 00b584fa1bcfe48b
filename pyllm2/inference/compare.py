"""What quantising a model changes: the error of each weight array, and of its predictions."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyllm2.formats import llama2c, llama2c_q8
from pyllm2.inference.containers import open_container
from pyllm2.inference.language_model import LanguageModel
from pyllm2.llama2 import ops
from pyllm2.llama2.imported import WITHOUT_LAYERS

Array = NDArray[np.float32]


@dataclass(frozen=True)
class TensorError:
    """Error of one quantised array: the largest, where it is, and the root mean square."""

    name: str
    largest: float
    rms: float
    worst_layer: int
    worst_group: int


def tensor_errors(path: str | os.PathLike[str], group_size: int) -> list[TensorError]:
    """The error of every matrix of a model, quantised in groups of `group_size`."""
    streamed = open_container(path).streamed
    rows = []
    for name, shape in streamed.shapes.items():
        if name in llama2c.NORMS or name not in llama2c.V1_ORDER:
            continue
        worst, squares = (0.0, 0, 0), 0.0
        for layer in range(1 if name in WITHOUT_LAYERS else shape[0]):
            flat = streamed.read(name, layer).reshape(-1)
            values, scales = llama2c_q8.quantize_weights(flat, group_size)
            off = np.abs(ops.dequantize(values, scales, group_size) - flat)
            squares += float(np.sum(off.astype(np.float64) ** 2))
            at = int(np.argmax(off))
            worst = max(worst, (float(off[at]), layer, at // group_size))
        rms = float(np.sqrt(squares / math.prod(shape)))
        rows.append(TensorError(name, worst[0], rms, worst[1], worst[2]))
    return rows


@dataclass(frozen=True)
class TextComparison:
    """Two models on the same text."""

    tokens: int
    perplexity: float  # of the first model (float32)
    perplexity_q8: float  # of the second (int8)
    divergence: float  # mean KL divergence of the second from the first, in nats
    same_best: float  # fraction of positions with the same most probable token
    first_change: int | None  # first position with another most probable token


def compare_on_text(
    model: LanguageModel, other: LanguageModel, ids: Sequence[int]
) -> TextComparison:
    """Compare the predictions of two models on a text of at least two ids.

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
