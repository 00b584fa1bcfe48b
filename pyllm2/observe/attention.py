"""Attention weights of a record, computed again where the op does not return them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.llama2 import ops

Array = NDArray[Any]


def weights_of_record(record: Any) -> Array:
    """What each query attends to: (NH, T, P), or (B, NH, T, T) of a batch of several rows.

    The `attention` of Llama-2's inference returns no weights: they are computed from its q and k.

    Raises KeyError for another op, or if the values were not kept.
    """
    if record.op not in ("attention", "attention_forward"):
        raise KeyError(f"{record.name}: only attention has weights")
    if not record.kept:
        raise KeyError(f"{record.name}: values were not kept")
    if "att" not in record.outputs:
        given = record.inputs
        return attention_weights(given["q"], given["k"], given.get("window", 0))
    att = record.outputs["att"]  # a trace from a file has them of every attention
    return att[0] if att.ndim == 4 and len(att) == 1 else att


def attention_weights(q: Array, k: Array, window: int = 0) -> Array:
    """softmax(q[t] · k[0..p] / √hs), p = P - T + t.

    window: a query sees so many positions, itself included (0: all)
    q: (T, NH, hs)   k: (P, NKV, hs)   ->   (NH, T, P), 0 where a query does not see
    """
    T, NH, hs = q.shape
    P, NKV, _ = k.shape
    distance = np.arange(P - T, P)[:, None] - np.arange(P)  # of a key from the query
    hidden = (distance < 0) | (distance >= (window or P))
    att = np.empty((NH, T, P), q.dtype)
    for h in range(NH):
        scores: Any = q[:, h] @ k[:, h // (NH // NKV)].T / math.sqrt(hs)
        scores[hidden] = -np.inf
        att[h] = ops.softmax(scores)
    return att
