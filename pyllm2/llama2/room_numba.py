"""What a training step needs room for, taken once for a model and a shape of batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.gemm_numba import Products, address
from pyllm2.llama2 import attention_training_numba as attention

Array = NDArray[np.float32]


class Block:
    """What one layer keeps of its forward for its backward, with N = B·T."""

    def __init__(self, config: Any, B: int, T: int) -> None:
        C, F, KV, N = config.dim, config.hidden_dim, config.kv_dim, B * T
        self.x, self.middle, self.attention_in, self.ffn_in, self.attention_out = _arrays(5, N, C)
        self.attention_norm, self.ffn_norm = _arrays(2, N)  # 1/root-mean-square of each row
        self.qkv = np.empty((N, C + 2 * KV), np.float32)
        self.sums = np.empty((B, config.n_heads, 2, T), np.float32)  # of softmax rows
        self.gate_up = np.empty((N, 2 * F), np.float32)


class Room:
    """Buffers of a step, and the calls that need some of their own.

    cos, sin: (T, hs/2), the angles of a head
    """

    def __init__(
        self, config: Any, B: int, T: int, threads: int, trains: bool, cos: Array, sin: Array
    ) -> None:
        self.config, self.shape, self.threads, self.trains = config, (B, T), threads, trains
        C, F, KV, L, N = config.dim, config.hidden_dim, config.kv_dim, config.n_layers, B * T
        if trains:
            self.blocks = [Block(config, B, T) for _ in range(L)]
        else:  # nothing need be kept: every layer writes over the one before
            self.blocks = [Block(config, B, T)] * L
        # Matrices that one input is multiplied with, side by side: fewer and larger products.
        self.wqkv = np.empty((L, C + 2 * KV, C), np.float32)
        self.w13 = np.empty((L, 2 * F, C), np.float32)
        self.x, self.final, self.branch = _arrays(3, N, C)
        self.final_norm = np.empty(N, np.float32)
        self.hidden = np.empty((N, F), np.float32)
        self.logits = np.empty((N, config.vocab_size), np.float32)
        heads = config.n_heads + config.n_kv_heads  # turned all at once
        self.cos, self.sin = np.tile(cos, heads), np.tile(sin, heads)
        self.product = Products(threads)
        self._counter = np.zeros(1, np.int64)
        self._attention = attention.room(threads, T, config.head_size)
        if trains:
            self.dx = np.empty((N, C), np.float32)
            self.dqkv = np.empty((N, C + 2 * KV), np.float32)
            self.dwqkv, self.dw13 = np.empty_like(self.wqkv[0]), np.empty_like(self.w13[0])

    def take(self, params: Any) -> None:
        """Copy weights to where they lie side by side."""
        C, F, KV = self.config.dim, self.config.hidden_dim, self.config.kv_dim
        self.wqkv[:, :C], self.wqkv[:, C : C + KV] = params.wq, params.wk
        self.wqkv[:, C + KV :] = params.wv
        self.w13[:, :F], self.w13[:, F:] = params.w1, params.w3

    def attention_forward(self, a: Block) -> None:
        """a.attention_out from a.qkv."""
        r = self._attention
        attention.attention_forward(
            self._by_batch(a.qkv), self._by_batch(a.attention_out), a.sums,
            self.config.n_kv_heads,
            r["scores"], r["keys"], r["values_down"], r["columns"], r["result"], r["numbers"],
            address(self._counter),
        )  # fmt: skip

    def attention_backward(self, dout: Array, a: Block) -> None:
        """self.dqkv from the gradient of a.attention_out."""
        r = self._attention
        attention.attention_backward(
            self._by_batch(dout), self._by_batch(a.qkv), self._by_batch(a.attention_out), a.sums,
            self._by_batch(self.dqkv), self.config.n_kv_heads,
            r["scores"], r["dscores"], r["keys"], r["values"], r["keys_down"], r["columns"],
            r["rows"], r["result"], r["turned"], r["dkv"], r["numbers"], address(self._counter),
        )  # fmt: skip

    def _by_batch(self, x: Array) -> Array:
        """(N, C)   ->   (B, T, C)"""
        return x.reshape(*self.shape, x.shape[1])


def _arrays(count: int, *shape: int) -> list[Array]:
    return [np.empty(shape, np.float32) for _ in range(count)]
