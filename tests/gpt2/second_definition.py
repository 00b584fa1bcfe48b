"""A second definition of GPT-2's losses, from the published formulas, in float64.

It shares no line with `pyllm2.gpt2` and goes position by position: slow, but easy to check.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyllm2.gpt2.config import GPT2Config
from pyllm2.parameters import Parameters


def norm(x: Any, w: Any, b: Any) -> Any:
    return (x - x.mean()) / math.sqrt(x.var() + float(np.float32(1e-5))) * w + b


def gelu(x: Any) -> Any:
    scale, cubic = np.sqrt(np.float32(2 / np.pi)), np.float32(0.044715)
    return 0.5 * x * (1 + np.tanh(float(scale) * (x + float(cubic) * x**3)))


def losses_of_row(config: GPT2Config, p: dict[str, Any], tokens: Any, targets: Any) -> list[float]:
    """The loss at every position of one row."""
    C, hs = config.channels, config.head_size
    rows: list[list[Any]] = [[] for _ in range(config.num_layers)]  # of q, k, v seen so far
    losses = []
    for t, (token, target) in enumerate(zip(tokens, targets, strict=True)):
        h = p["wte"][token] + p["wpe"][t]
        for i, seen in enumerate(rows):
            qkv = p["qkvw"][i] @ norm(h, p["ln1w"][i], p["ln1b"][i]) + p["qkvb"][i]
            seen.append(qkv)
            y = np.zeros(C)
            for head in range(config.num_heads):
                q, k, v = (slice(n * C + head * hs, n * C + (head + 1) * hs) for n in range(3))
                scale = float(np.float32(1 / np.sqrt(np.float32(hs))))
                weights = np.array([math.exp(qkv[q] @ row[k] * scale) for row in seen])
                y[q] = weights / weights.sum() @ np.array([row[v] for row in seen])
            h = h + p["attprojw"][i] @ y + p["attprojb"][i]
            inner = gelu(p["fcw"][i] @ norm(h, p["ln2w"][i], p["ln2b"][i]) + p["fcb"][i])
            h = h + p["fcprojw"][i] @ inner + p["fcprojb"][i]
        logits = (p["wte"] @ norm(h, p["lnfw"], p["lnfb"]))[: config.vocab_size]
        losses.append(math.log(np.sum(np.exp(logits))) - logits[target])
    return losses


def losses(config: GPT2Config, params: Parameters, tokens: Any, targets: Any) -> Any:
    """The loss at every position, (B, T)."""
    p = {name: a.astype(np.float64) for name, a in params.items()}
    pairs = zip(tokens, targets, strict=True)
    return np.array([losses_of_row(config, p, x, y) for x, y in pairs])
