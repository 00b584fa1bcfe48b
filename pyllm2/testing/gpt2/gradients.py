"""GPT-2's forward ops, each with its backward, and random inputs for `gradcheck`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.backends import Engine
from pyllm2.gpt2 import ops as specification
from pyllm2.gpt2.config import GPT2Config
from pyllm2.gpt2.training import TrainableGPT2
from pyllm2.testing.gpt2.strategies import random_parameters
from pyllm2.testing.gpt2.table import OPS
from pyllm2.testing.gradients import Gradients, Trace


def encoder(ops: Any, tokens: Any, wte: Any, wpe: Any) -> Trace:
    zeros = np.zeros_like(wte), np.zeros_like(wpe)
    out = ops.encoder_forward(tokens, wte, wpe)
    return Trace(out, "encoder_backward", lambda dout: (dout, tokens, *zeros))


def layernorm(ops: Any, x: Any, w: Any, b: Any) -> Trace:
    out, mean, rstd = ops.layernorm_forward(x, w, b)
    return Trace(out, "layernorm_backward", lambda dout: (dout, x, w, mean, rstd))


def matmul(ops: Any, x: Any, w: Any, b: Any) -> Trace:
    return Trace(ops.matmul_forward(x, w, b), "matmul_backward", lambda dout: (dout, x, w))


def attention(ops: Any, qkv: Any, NH: int) -> Trace:
    out, att = ops.attention_forward(qkv, NH)
    return Trace(out, "attention_backward", lambda dout: (dout, qkv, att))


def gelu(ops: Any, x: Any) -> Trace:
    return Trace(ops.gelu_forward(x), "gelu_backward", lambda dout: (dout, x))


def residual(ops: Any, a: Any, b: Any) -> Trace:
    return Trace(ops.residual_forward(a, b), "residual_backward", lambda dout: (dout,))


def crossentropy(ops: Any, logits: Any, V: int, targets: Any) -> Trace:
    probs = ops.softmax_forward(logits, V)
    losses = ops.crossentropy_forward(probs, targets)
    return Trace(
        losses, "crossentropy_softmax_backward", lambda dlosses: (dlosses, probs, targets, V)
    )


PAIRS: dict[str, Callable[..., Trace]] = {
    pair.__name__: pair
    for pair in (encoder, layernorm, matmul, attention, gelu, residual, crossentropy)
}


def example(name: str, random: np.random.Generator) -> tuple[Any, ...]:
    """Inputs of a forward: small shapes, normal deviates."""
    B, T, C, OC = (int(n) for n in random.integers(1, [4, 7, 13, 13]))
    NH, V = (int(n) for n in random.integers(1, [4, 9]))

    def normal(*shape: int) -> NDArray[np.float32]:
        return random.normal(size=shape).astype(np.float32)

    shapes: dict[str, tuple[Any, ...]] = {
        "encoder": (random.integers(0, V, (B, T)), normal(V + 1, C), normal(T + 1, C)),
        "layernorm": (normal(B, T, C), normal(C), normal(C)),
        "matmul": (normal(B, T, C), normal(OC, C), normal(OC)),
        "attention": (normal(B, T, 3 * NH * C), NH),
        "gelu": (2 * normal(B, T, C),),
        "residual": (normal(B, T, C), normal(B, T, C)),
        "crossentropy": (normal(B, T, V + 2), V, random.integers(0, V, (B, T))),
    }
    return shapes[name]


def random_model(random: np.random.Generator) -> TrainableGPT2:
    """One or two layers, a few heads, padding rows that are not zero.

    At least four channels: layernorm of two channels is ±1, with almost no gradient.
    """
    L, NH, hs, V, S = (int(n) for n in random.integers([1, 1, 4, 2, 2], [3, 4, 8, 20, 8]))
    config = GPT2Config(S, V, L, NH, NH * hs, V + int(random.integers(0, 4)))
    params = random_parameters(config, int(random.integers(2**32)))
    return TrainableGPT2(config, params, Engine(specification))


def random_batch(model: TrainableGPT2, random: np.random.Generator) -> tuple[Any, Any]:
    """Tokens and targets of any length up to the context."""
    B, T = int(random.integers(1, 4)), int(random.integers(1, model.config.max_seq_len + 1))
    tokens, targets = random.integers(0, model.config.vocab_size, (2, B, T))
    return tokens, targets


GRADIENTS = Gradients(specification, OPS, PAIRS, example, random_model, random_batch)
