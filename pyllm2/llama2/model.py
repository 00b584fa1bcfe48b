"""The model: weights, the key/value cache, and `forward`, written once for every backend.

It is handed an ops module (`pyllm2.llama2.ops`, or a rival with the same names) and reads like
the diagram: embedding, then per layer attention and feed-forward around a residual stream, then
the final norm and the classifier.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.quantized import Quantized

Array = NDArray[np.float32]
Matrices = NDArray[np.float32] | Quantized


class Ops(Protocol):
    """What a backend provides: the functions of `pyllm2.llama2.ops`, under the same names."""

    embedding: Any
    rmsnorm: Any
    matmul: Any
    rope_tables: Any
    rope: Any
    attention: Any
    residual: Any
    swiglu: Any
    quantize: Any
    matmul_q8: Any


@dataclass(frozen=True)
class Weights:
    """Every learned array, one slice a layer. Matrices are (out, in), float32 or int8 in groups.

    Of a quantised model the norms and the embedding are float32 all the same (the embedding is
    expanded once), and the classifier is a matrix of its own, int8.
    """

    token_embedding: Array  # (V, C)
    attention_norm: Array  # (L, C)
    wq: Matrices  # (L, NH·hs, C)
    wk: Matrices  # (L, NKV·hs, C)
    wv: Matrices  # (L, NKV·hs, C)
    wo: Matrices  # (L, C, NH·hs)
    ffn_norm: Array  # (L, C)
    w1: Matrices  # (L, F, C)   gate
    w2: Matrices  # (L, C, F)   down
    w3: Matrices  # (L, F, C)   up
    final_norm: Array  # (C,)
    classifier: Matrices | None = None  # (V, C); None: shared with token_embedding


class KVCache:
    """Keys (already rotated) and values of every position so far, and the RoPE tables.

    The one thing that `forward` writes into. Room for `positions` positions; one conversation.
    """

    def __init__(self, config: Llama2Config, positions: int, ops: Ops) -> None:
        shape = (config.n_layers, positions, config.n_kv_heads, config.head_size)
        self.cos, self.sin = ops.rope_tables(positions, config.head_size)  # (positions, hs/2)
        # float32, unless the ops are ones that evaluate in float64 to judge the others.
        self.keys: Array = np.zeros(shape, dtype=self.cos.dtype)  # (L, positions, NKV, hs)
        self.values: Array = np.zeros(shape, dtype=self.cos.dtype)

    @property
    def positions(self) -> int:
        return int(self.keys.shape[1])


class Llama2:
    """A Llama-2: a shape, its weights, and the ops that run it."""

    def __init__(self, config: Llama2Config, weights: Weights, ops: Ops) -> None:
        self.config, self.weights, self.ops = config, weights, ops

    def cache_nbytes(self, positions: int) -> int:
        """What `new_cache` will allocate, temporaries of the tables included."""
        config = self.config
        return positions * (8 * config.n_layers * config.kv_dim + 16 * config.head_size)

    def new_cache(self, positions: int) -> KVCache:
        return KVCache(self.config, positions, self.ops)

    def forward(
        self, tokens: NDArray[np.integer], pos: int, cache: KVCache, last_only: bool = False
    ) -> Array:
        """Feed tokens at positions pos, pos+1, …: one token (decoding) or a whole prompt.

        tokens: (T,) ids in [0, V)   cache: filled for all positions before pos
        ->   logits after each token, (T, V); with `last_only` after the last one, (1, V)
        """
        ops = self.ops
        x = ops.embedding(tokens, self.weights.token_embedding)  # (T, C)
        for layer in range(self.config.n_layers):
            x = ops.residual(x, self.attention_block(x, layer, pos, cache))
            x = ops.residual(x, self.ffn_block(x, layer))
        if last_only:
            x = x[-1:]
        return self.classify(x)

    def attention_block(self, x: Array, layer: int, pos: int, cache: KVCache) -> Array:
        """Norm, project to queries, keys and values, rotate, remember, attend, project back.

        x: (T, C)   ->   (T, C)
        """
        ops, w, config = self.ops, self.weights, self.config
        T, NH, NKV, hs = len(x), config.n_heads, config.n_kv_heads, config.head_size
        P = pos + T
        cos, sin = cache.cos[pos:P], cache.sin[pos:P]

        y = ops.rmsnorm(x, w.attention_norm[layer])
        q, k, v = self.products(y, w.wq[layer], w.wk[layer], w.wv[layer])
        q, k, v = q.reshape(T, NH, hs), k.reshape(T, NKV, hs), v.reshape(T, NKV, hs)
        q = ops.rope(q, cos, sin)
        cache.keys[layer, pos:P] = ops.rope(k, cos, sin)
        cache.values[layer, pos:P] = v
        out = ops.attention(q, cache.keys[layer, :P], cache.values[layer, :P])  # (T, C)
        (projected,) = self.products(out, w.wo[layer])
        return projected

    def ffn_block(self, x: Array, layer: int) -> Array:
        """Norm, widen to F twice (gate and up), multiply, narrow. x: (T, C)   ->   (T, C)"""
        ops, w = self.ops, self.weights
        y = ops.rmsnorm(x, w.ffn_norm[layer])
        gate, up = self.products(y, w.w1[layer], w.w3[layer])  # (T, F) each
        (narrowed,) = self.products(ops.swiglu(gate, up), w.w2[layer])
        return narrowed

    def classify(self, x: Array) -> Array:
        """Final norm and one logit for every id of the vocabulary. x: (T, C)   ->   (T, V)"""
        w = self.weights
        classifier = w.token_embedding if w.classifier is None else w.classifier
        (logits,) = self.products(self.ops.rmsnorm(x, w.final_norm), classifier)
        return logits

    def products(self, x: Array, *matrices: Matrices) -> list[Array]:
        """x times each matrix. For int8 ones x is quantised, once for all of them.

        x: (T, C)   matrices: (OC, C) each   ->   (T, OC) each
        """
        ops, first = self.ops, matrices[0]
        if not isinstance(first, Quantized):
            return [ops.matmul(x, w) for w in matrices]
        values, scales = ops.quantize(x, first.group_size)
        return [
            ops.matmul_q8(values, scales, w.values, w.scales, w.group_size)
            for w in matrices
            if isinstance(w, Quantized)
        ]

    def where_not_finite(
        self, tokens: NDArray[np.integer], pos: int, cache: KVCache
    ) -> tuple[int, str] | None:
        """The first block whose output has NaN or infinity, and the first of these tokens there.

        The residual stream never recovers from either, so it is enough to look after each block.
        None if the blocks are fine: then it is the final norm or the classifier.
        """
        for place, x in self._blocks(tokens, pos, cache):
            bad_rows = np.flatnonzero(~np.isfinite(x).all(axis=-1))
            if len(bad_rows):
                return int(bad_rows[0]), place
        return None

    def _blocks(
        self, tokens: NDArray[np.integer], pos: int, cache: KVCache
    ) -> Iterator[tuple[str, Array]]:
        """The residual stream after each block, and the block's name."""
        x = self.ops.embedding(tokens, self.weights.token_embedding)
        yield "embedding", x
        for layer in range(self.config.n_layers):
            x = self.ops.residual(x, self.attention_block(x, layer, pos, cache))
            yield f"layer {layer}, attention", x
            x = self.ops.residual(x, self.ffn_block(x, layer))
            yield f"layer {layer}, feed-forward", x
