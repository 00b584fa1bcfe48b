"""Models with random weights: for tests, and for timing shapes without their trained weights."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.model import Weights

Array = NDArray[np.float32]

# The shapes that llama2.c has published: C, F, L, NH, NKV, V, S.
SHAPES = {
    "260K": Llama2Config(64, 172, 5, 8, 4, 512, 512),
    "15M": Llama2Config(288, 768, 6, 6, 6, 32000, 256),
    "42M": Llama2Config(512, 1376, 8, 8, 8, 32000, 1024),
    "110M": Llama2Config(768, 2048, 12, 12, 12, 32000, 1024),
}


def random_weights(config: Llama2Config, shared_classifier: bool, seed: int) -> Weights:
    """Normal weights scaled by 1/√fan-in, so that the stream neither dies nor explodes."""
    rng = np.random.default_rng(seed)
    C, F, L, V = config.dim, config.hidden_dim, config.n_layers, config.vocab_size
    KV = config.kv_dim

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(shape[-1]))

    def near_one(*shape: int) -> Array:
        return 1 + np.float32(0.2) * rng.standard_normal(shape, np.float32)

    return Weights(
        token_embedding=rng.standard_normal((V, C), np.float32),
        attention_norm=near_one(L, C),
        wq=normal(L, C, C),
        wk=normal(L, KV, C),
        wv=normal(L, KV, C),
        wo=normal(L, C, C),
        ffn_norm=near_one(L, C),
        w1=normal(L, F, C),
        w2=normal(L, C, F),
        w3=normal(L, F, C),
        final_norm=near_one(C),
        classifier=None if shared_classifier else normal(V, C),
    )
