"""GPT-2 token by token: key/value cache and `forward`, once for every backend.

The engine's ops are those of `pyllm2.gpt2.ops` or of a rival with the same names. `forward` reads
like the diagram: token and position, then per layer attention and feed-forward around a residual
stream, then the final norm and the classifier.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.backends import Engine
from pyllm2.gpt2.config import GPT2Config
from pyllm2.parameters import Parameters

Array = NDArray[np.float32]


class KVCache:
    """Queries, keys and values of every position so far, as `attention_forward` reads them.

    The one thing that `forward` writes into: one conversation of at most `positions` tokens.
    (llm.c computes the whole sequence again for every token; the numbers are the same.)
    """

    qkv: Array  # (L, 1, positions, 3C)
    engine_state: Any = None  # whatever an engine keeps from call to call

    def __init__(self, config: GPT2Config, positions: int, dtype: Any = np.float32) -> None:
        self.qkv = np.zeros((config.num_layers, 1, positions, 3 * config.channels), dtype)

    @property
    def positions(self) -> int:
        return int(self.qkv.shape[2])


class GPT2:
    """A GPT-2: a shape, its parameters, and the engine that runs it."""

    def __init__(self, config: GPT2Config, params: Parameters, engine: Engine) -> None:
        self.config, self.params = config, params
        self.engine, self.ops = engine, engine.ops

    def with_ops(self, ops: Any) -> GPT2:
        """The same model, with every pass composed of these ops."""
        return GPT2(self.config, self.params, Engine(ops))

    def cache_nbytes(self, positions: int) -> int:
        """Bytes that `new_cache` allocates."""
        return 12 * self.config.num_layers * positions * self.config.channels

    def new_cache(self, positions: int) -> KVCache:
        return KVCache(self.config, positions, self.params.flat.dtype)

    def forward(
        self, tokens: NDArray[np.integer], pos: int, cache: KVCache, last_only: bool = False
    ) -> Array:
        """Feed tokens at positions pos, pos+1, …: one token (decoding) or a whole prompt.

        tokens: (T,) ids in [0, V)   cache: filled for all positions before pos
        ->   logits after each token, (T, V); with `last_only` after the last one, (1, V)
        """
        if self.engine.forward is not None:
            return self.engine.forward(self, tokens, pos, cache, last_only)
        ops, p = self.ops, self.params
        P = pos + len(tokens)
        with np.errstate(all="ignore"):  # non-finite logits are for the caller to find
            x = ops.encoder_forward(tokens[None], p.wte, p.wpe[pos:P])  # (1, T, C)
            for layer in range(self.config.num_layers):
                x = ops.residual_forward(x, self.attention_block(x, layer, pos, cache))
                x = ops.residual_forward(x, self.ffn_block(x, layer))
            return self.classify(x[:, -1:] if last_only else x)

    def forward_each(
        self, tokens: NDArray[np.integer], positions: Sequence[int], caches: Sequence[KVCache]
    ) -> Array:
        """Feed one token each to several conversations, with the bits of each alone.

        tokens: (K,)   positions, caches: of each conversation   ->   logits, (K, V)
        """
        each = zip(tokens, positions, caches, strict=True)
        return np.concatenate([self.forward(np.array([i]), pos, cache) for i, pos, cache in each])

    def attention_block(self, x: Array, layer: int, pos: int, cache: KVCache) -> Array:
        """Norm, project to queries, keys and values, cache, attend, project back.

        x: (1, T, C)   ->   (1, T, C)
        """
        ops, p, i = self.ops, self.params, layer
        P = pos + x.shape[1]

        y, _, _ = ops.layernorm_forward(x, p.ln1w[i], p.ln1b[i])
        cache.qkv[i, :, pos:P] = ops.matmul_forward(y, p.qkvw[i], p.qkvb[i])
        out, _ = ops.attention_forward(cache.qkv[i, :, :P], self.config.num_heads, pos)
        return ops.matmul_forward(out, p.attprojw[i], p.attprojb[i])

    def ffn_block(self, x: Array, layer: int) -> Array:
        """Norm, project to 4C, gelu, project back. x: (1, T, C)   ->   (1, T, C)"""
        ops, p, i = self.ops, self.params, layer
        y, _, _ = ops.layernorm_forward(x, p.ln2w[i], p.ln2b[i])
        hidden = ops.gelu_forward(ops.matmul_forward(y, p.fcw[i], p.fcb[i]))  # (1, T, 4C)
        return ops.matmul_forward(hidden, p.fcprojw[i], p.fcprojb[i])

    def classify(self, x: Array) -> Array:
        """Final norm and one logit per id of the vocabulary. x: (1, T, C)   ->   (T, V)"""
        p = self.params
        y, _, _ = self.ops.layernorm_forward(x, p.lnfw, p.lnfb)
        return self.ops.matmul_forward(y, p.wte[: self.config.vocab_size])[0]

    def where_not_finite(
        self, tokens: NDArray[np.integer], pos: int, cache: KVCache
    ) -> tuple[int, str] | None:
        """Index of the first token with NaN or infinity, and the first block where it has them.

        The residual stream never recovers from either, so checking after each block is enough.
        None if every block is finite: then the cause is the final norm or the classifier.
        """
        for place, x in self._blocks(tokens, pos, cache):
            bad_rows = np.flatnonzero(~np.isfinite(x[0]).all(axis=-1))
            if len(bad_rows):
                return int(bad_rows[0]), place
        return None

    def _blocks(
        self, tokens: NDArray[np.integer], pos: int, cache: KVCache
    ) -> Iterator[tuple[str, Array]]:
        """The name of each block and the residual stream after it."""
        ops, p = self.ops, self.params
        P = pos + len(tokens)
        x = ops.encoder_forward(tokens[None], p.wte, p.wpe[pos:P])
        yield "encoder", x
        for layer in range(self.config.num_layers):
            x = ops.residual_forward(x, self.attention_block(x, layer, pos, cache))
            yield f"layer {layer}, attention", x
            x = ops.residual_forward(x, self.ffn_block(x, layer))
            yield f"layer {layer}, feed-forward", x
