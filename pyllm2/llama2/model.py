"""Llama-2 token by token: weights, key/value cache and `forward`, once for every backend.

The engine's ops are those of `pyllm2.llama2.ops` or of a rival with the same names. `forward` reads
like the diagram: embedding, then per layer attention and feed-forward around a residual stream,
then the final norm and the classifier.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.backends import Engine
from pyllm2.errors import ConfigError
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.ops import dequantize_packed
from pyllm2.llama2.rope_scaling import table_arguments
from pyllm2.parameters import Packed, PackedLayers, Quantized

Array = NDArray[np.float32]
Matrix = NDArray[np.float32] | Quantized | Packed
Stack = NDArray[np.float32] | Quantized | PackedLayers


@dataclass(frozen=True)
class Weights:
    """Every learned array, one slice a layer. Matrices are (out, in): float32, int8 or in blocks.

    Of an int8 model the norms and the embedding are float32 all the same (the embedding is expanded
    once), and the classifier is a matrix of its own, int8. Of a model in blocks of GGUF every
    matrix may be of another kind, and some may be float32.
    """

    token_embedding: Array | Packed  # (V, C)
    attention_norm: Array  # (L, C)
    wq: Stack  # (L, NH·hs, C)
    wk: Stack  # (L, NKV·hs, C)
    wv: Stack  # (L, NKV·hs, C)
    wo: Stack  # (L, C, NH·hs)
    ffn_norm: Array  # (L, C)
    w1: Stack  # (L, F, C)   gate
    w2: Stack  # (L, C, F)   down
    w3: Stack  # (L, F, C)   up
    final_norm: Array  # (C,)
    classifier: Matrix | None = None  # (V, C); None: shared with token_embedding
    # What llama2.c does not have: biases of the products with wq, wk, …, and norms of each head.
    bq: Array | None = None  # (L, NH·hs)
    bk: Array | None = None  # (L, NKV·hs)
    bv: Array | None = None  # (L, NKV·hs)
    bo: Array | None = None  # (L, C)
    b1: Array | None = None  # (L, F)
    b2: Array | None = None  # (L, C)
    b3: Array | None = None  # (L, F)
    q_norm: Array | None = None  # (L, hs)
    k_norm: Array | None = None  # (L, hs)


class KVCache:
    """Keys and values of every position so far, and the RoPE tables.

    The one thing that `forward` writes into: one conversation of at most `positions` tokens.
    """

    cos: Array  # (positions, hs/2)
    sin: Array  # (positions, hs/2)
    keys: Array  # (L, positions, NKV, hs), rotated
    values: Array  # (L, positions, NKV, hs)
    engine_state: Any = None  # whatever an engine keeps from call to call

    def __init__(self, config: Llama2Config, positions: int, ops: Any) -> None:
        shape = (config.n_layers, positions, config.n_kv_heads, config.head_size)
        self._config, self._ops = config, ops
        self.cos, self.sin = self._tables(positions)
        # float32, unless the ops evaluate in float64 to judge the others.
        self.keys, self.values = np.zeros(shape, self.cos.dtype), np.zeros(shape, self.cos.dtype)

    @property
    def positions(self) -> int:
        return int(self.keys.shape[1])

    def prepare(self, pos: int, length: int) -> None:
        """The angles of positions pos … length - 1 in a text that has `length` tokens by now.

        Only dynamic scaling depends on the length: it turns longer texts more slowly, and what is
        cached keeps its angles.
        """
        scaling = self._config.rope_scaling
        if scaling is not None and scaling.kind == "dynamic":
            for table, rows in zip((self.cos, self.sin), self._tables(length), strict=True):
                table[pos:length] = rows[pos:]

    def _tables(self, length: int) -> tuple[Array, Array]:
        config = self._config
        found = table_arguments(config.head_size, config.rope_base, config.rope_scaling, length)
        base, divisors, scale = found
        array = None if divisors is None else np.array(divisors, np.float32)
        tables: tuple[Array, Array] = self._ops.rope_tables(
            length, config.head_size, base, array, scale
        )
        return tables


class Llama2:
    """A Llama-2: a shape, its weights, and the engine that runs it."""

    def __init__(self, config: Llama2Config, weights: Weights, engine: Engine) -> None:
        self.config, self.weights = config, weights
        self.engine, self.ops = engine, engine.ops
        if isinstance(weights.wq, Quantized):
            for name, value in config.beyond_run_c.items():
                raise ConfigError(name, value, "int8 models have what runq.c has, and no more")

    def with_ops(self, ops: Any) -> Llama2:
        """The same model, with every pass composed of these ops."""
        return Llama2(self.config, self.weights, Engine(ops))

    def unpacked(self) -> Llama2:
        """The same model with float32 in place of blocks; itself if it has none."""
        held = vars(self.weights)
        changed: dict[str, Any] = {}
        for name, array in held.items():
            if isinstance(array, Packed):
                changed[name] = dequantize_packed(array.rows, array.kind)
            elif isinstance(array, PackedLayers):
                changed[name] = np.empty(array.shape, np.float32)
                for layer, out in enumerate(changed[name]):
                    matrix = array[layer]
                    if isinstance(matrix, Packed):
                        matrix = dequantize_packed(matrix.rows, matrix.kind)
                    out[...] = matrix
        weights = replace(self.weights, **changed) if changed else self.weights
        return Llama2(self.config, weights, self.engine)

    def cache_nbytes(self, positions: int) -> int:
        """Bytes that `new_cache` allocates, temporaries of the tables included."""
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
        cache.prepare(pos, pos + len(tokens))
        if self.engine.forward is not None:
            return self.engine.forward(self, tokens, pos, cache, last_only)
        ops = self.ops
        with np.errstate(all="ignore"):  # non-finite logits are for the caller to find
            x = self.embed(tokens)
            for layer in range(self.config.n_layers):
                x = ops.residual(x, self.attention_block(x, layer, pos, cache))
                x = ops.residual(x, self.ffn_block(x, layer))
            return self.classify(x[-1:] if last_only else x)

    def embed(self, tokens: NDArray[np.integer]) -> Array:
        """The row of each token, expanded if the embedding is in blocks. (T,)   ->   (T, C)"""
        table = self.weights.token_embedding
        if isinstance(table, Packed):
            rows: Array = self.ops.dequantize_packed(table.rows[tokens], table.kind)
            return rows
        embedded: Array = self.ops.embedding(tokens, table)
        return embedded

    def forward_each(
        self, tokens: NDArray[np.integer], positions: Sequence[int], caches: Sequence[KVCache]
    ) -> Array:
        """Feed one token each to several conversations, with the bits of each alone.

        tokens: (K,)   positions, caches: of each conversation   ->   logits, (K, V)
        """
        for pos, cache in zip(positions, caches, strict=True):
            cache.prepare(pos, pos + 1)
        if self.engine.forward_each is not None:
            return self.engine.forward_each(self, tokens, positions, caches)
        each = zip(tokens, positions, caches, strict=True)
        return np.concatenate([self.forward(np.array([i]), pos, cache) for i, pos, cache in each])

    def attention_block(self, x: Array, layer: int, pos: int, cache: KVCache) -> Array:
        """Norm, project to queries, keys and values, rotate, cache, attend, project back.

        x: (T, C)   ->   (T, C)
        """
        ops, w, config = self.ops, self.weights, self.config
        T, NH, NKV, hs = len(x), config.n_heads, config.n_kv_heads, config.head_size
        P = pos + T
        cos, sin = cache.cos[pos:P], cache.sin[pos:P]

        y = self.operand(ops.rmsnorm(x, w.attention_norm[layer], config.norm_epsilon), w.wq)
        q = self.product(y, w.wq[layer], _of(w.bq, layer)).reshape(T, NH, hs)
        k = self.product(y, w.wk[layer], _of(w.bk, layer)).reshape(T, NKV, hs)
        v = self.product(y, w.wv[layer], _of(w.bv, layer)).reshape(T, NKV, hs)
        q, k = self.head_norm(q, _of(w.q_norm, layer)), self.head_norm(k, _of(w.k_norm, layer))
        q = ops.rope(q, cos, sin)
        cache.keys[layer, pos:P] = ops.rope(k, cos, sin)
        cache.values[layer, pos:P] = v
        keys, values = cache.keys[layer, :P], cache.values[layer, :P]
        out = ops.attention(q, keys, values, config.window(layer))  # (T, NH·hs)
        return self.product(self.operand(out, w.wo), w.wo[layer], _of(w.bo, layer))

    def head_norm(self, x: Array, weight: Array | None) -> Array:
        """Normalise each head, where the model has a weight for it. x: (T, N, hs) -> (T, N, hs)"""
        if weight is None:
            return x
        rows = x.reshape(-1, x.shape[-1])  # (T·N, hs)
        return self.ops.rmsnorm(rows, weight, self.config.norm_epsilon).reshape(x.shape)

    def ffn_block(self, x: Array, layer: int) -> Array:
        """Norm, project to gate and up, swiglu, project back. x: (T, C)   ->   (T, C)"""
        ops, w = self.ops, self.weights
        y = self.operand(ops.rmsnorm(x, w.ffn_norm[layer], self.config.norm_epsilon), w.w1)
        gate = self.product(y, w.w1[layer], _of(w.b1, layer))  # (T, F)
        up = self.product(y, w.w3[layer], _of(w.b3, layer))  # (T, F)
        hidden = self.operand(ops.swiglu(gate, up), w.w2)
        return self.product(hidden, w.w2[layer], _of(w.b2, layer))

    def classify(self, x: Array) -> Array:
        """Final norm and one logit per id of the vocabulary. x: (T, C)   ->   (T, V)"""
        w = self.weights
        classifier = w.token_embedding if w.classifier is None else w.classifier
        y = self.operand(self.ops.rmsnorm(x, w.final_norm, self.config.norm_epsilon), classifier)
        return self.product(y, classifier)

    def operand(self, x: Array, matrix: Matrix | Stack) -> Array | Quantized:
        """x as `product` needs it with this matrix and others like it: quantised if it is int8.

        x: (T, C)
        """
        if not isinstance(matrix, Quantized):
            return x
        values, scales = self.ops.quantize(x, matrix.group_size)
        return Quantized(values, scales, matrix.group_size)

    def product(self, x: Array | Quantized, w: Matrix, b: Array | None = None) -> Array:
        """x, an `operand`, times a matrix. x: (T, C)   w: (OC, C)   b: (OC,)   ->   (T, OC)"""
        if isinstance(x, Quantized) and isinstance(w, Quantized):
            return self.ops.matmul_q8(x.values, x.scales, w.values, w.scales, w.group_size)
        if isinstance(w, Packed):
            return self.ops.matmul_packed(x, w.rows, w.kind, b)
        return self.ops.matmul(x, w, b)

    def where_not_finite(
        self, tokens: NDArray[np.integer], pos: int, cache: KVCache
    ) -> tuple[int, str] | None:
        """Index of the first token with NaN or infinity, and the first block where it has them.

        The residual stream never recovers from either, so checking after each block is enough.
        None if every block is finite: then the cause is the final norm or the classifier.
        """
        for place, x in self._blocks(tokens, pos, cache):
            bad_rows = np.flatnonzero(~np.isfinite(x).all(axis=-1))
            if len(bad_rows):
                return int(bad_rows[0]), place
        return None

    def _blocks(
        self, tokens: NDArray[np.integer], pos: int, cache: KVCache
    ) -> Iterator[tuple[str, Array]]:
        """The name of each block and the residual stream after it."""
        ops = self.ops
        x = self.embed(tokens)
        yield "embedding", x
        for layer in range(self.config.n_layers):
            x = ops.residual(x, self.attention_block(x, layer, pos, cache))
            yield f"layer {layer}, attention", x
            x = ops.residual(x, self.ffn_block(x, layer))
            yield f"layer {layer}, feed-forward", x


def _of(stack: Array | None, layer: int) -> Array | None:
    """The layer's slice of an array that the model may lack."""
    return None if stack is None else stack[layer]
