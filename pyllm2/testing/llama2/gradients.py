"""Llama-2's forward ops, each with its backward, and random inputs for `gradcheck`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2 import backends
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.training import TrainableLlama2
from pyllm2.testing.gradients import Gradients, Trace
from pyllm2.testing.llama2.strategies import random_parameters
from pyllm2.testing.llama2.table import OPS

specification = backends.ops("numpy", package="llama2")


def embedding(ops: Any, tokens: Any, table: Any) -> Trace:
    zeros = np.zeros_like(table)
    out = ops.embedding(tokens, table)
    return Trace(out, "embedding_backward", lambda dout: (dout, tokens, zeros))


def rmsnorm(ops: Any, x: Any, weight: Any) -> Trace:
    return Trace(ops.rmsnorm(x, weight), "rmsnorm_backward", lambda dout: (dout, x, weight))


def matmul(ops: Any, x: Any, w: Any) -> Trace:
    return Trace(ops.matmul(x, w), "matmul_backward", lambda dout: (dout, x, w))


def rope(ops: Any, x: Any, first: int) -> Trace:
    """x starts at position `first`."""
    N, _, hs = x.shape
    cos, sin = (table[first:] for table in ops.rope_tables(first + N, hs))
    return Trace(ops.rope(x, cos, sin), "rope_backward", lambda dout: (dout, cos, sin))


def attention(ops: Any, q: Any, k: Any, v: Any, kept: Any) -> Trace:
    """kept: 0 or 1 per attention weight; integers, so no gradient of it is checked."""
    keep = 2 * kept.astype(q.dtype)
    out, att = ops.attention_forward(q, k, v, keep)
    return Trace(out, "attention_backward", lambda dout: (dout, q, k, v, att, keep))


def swiglu(ops: Any, gate: Any, up: Any) -> Trace:
    return Trace(ops.swiglu(gate, up), "swiglu_backward", lambda dout: (dout, gate, up))


def dropout(ops: Any, x: Any, kept: Any) -> Trace:
    """kept: 0 or 1 per element; integers, so no gradient of it is checked."""
    keep = 2 * kept.astype(x.dtype)
    return Trace(ops.dropout(x, keep), "dropout", lambda dout: (dout, keep))


def crossentropy(ops: Any, logits: Any, targets: Any) -> Trace:
    losses, probs = ops.crossentropy_forward(logits, targets)
    return Trace(losses, "crossentropy_backward", lambda dlosses: (dlosses, probs, targets))


PAIRS: dict[str, Callable[..., Trace]] = {
    pair.__name__: pair
    for pair in (embedding, rmsnorm, matmul, rope, attention, swiglu, dropout, crossentropy)
}


def example(name: str, random: np.random.Generator) -> tuple[Any, ...]:
    """Inputs of a forward: small shapes, normal deviates.

    At least four channels for a norm: of one channel it is nearly a sign, too curved to check.
    """
    B, T, C, OC = (int(n) for n in random.integers(1, [4, 7, 13, 13]))
    NKV, group, V = (int(n) for n in random.integers(1, [3, 4, 9]))
    N, NH = B * T, NKV * group

    def normal(*shape: int) -> NDArray[np.float32]:
        return random.normal(size=shape).astype(np.float32)

    q, (k, v) = normal(B, T, NH, C), (normal(B, T, NKV, C) for _ in range(2))
    shapes: dict[str, tuple[Any, ...]] = {
        "embedding": (random.integers(0, V, N), normal(V + 1, C)),
        "rmsnorm": (normal(N, C + 3), normal(C + 3)),
        "matmul": (normal(N, C), normal(OC, C)),
        "rope": (normal(N, NH, 2 * C), int(random.integers(0, 9))),
        "attention": (q, k, v, random.integers(0, 2, (B, NH, T, T))),
        "swiglu": (2 * normal(N, C), normal(N, C)),
        "dropout": (normal(N, C), random.integers(0, 2, (N, C))),
        "crossentropy": (normal(N, V), random.integers(-1, V, N)),
    }
    return shapes[name]


def random_model(random: np.random.Generator) -> TrainableLlama2:
    """One or two layers, a few heads in groups, odd widths."""
    L, NKV, group, pairs, F, V, S = (
        int(n) for n in random.integers([1, 1, 1, 1, 1, 2, 2], [3, 3, 4, 4, 20, 20, 8])
    )
    NH = NKV * group
    config = Llama2Config(2 * pairs * NH, F, L, NH, NKV, V, S)
    params = random_parameters(config, int(random.integers(2**32)))
    return TrainableLlama2(config, params, backends.Engine(specification))


def random_batch(model: TrainableLlama2, random: np.random.Generator) -> tuple[Any, Any]:
    """Tokens and targets of any length up to the context; -1 among the targets."""
    config = model.config
    shape = int(random.integers(1, 4)), int(random.integers(1, config.seq_len + 1))
    tokens = random.integers(0, config.vocab_size, shape)
    return tokens, random.integers(-1, config.vocab_size, shape)


GRADIENTS = Gradients(specification, OPS, PAIRS, example, random_model, random_batch)
