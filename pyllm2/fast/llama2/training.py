"""A whole training step of Llama-2: `TrainableLlama2.forward` and `.backward`, pass for pass.

Consecutive ops share one pass over memory, matrix products are `fast.gemm`'s, and buffers are
allocated once per model and batch shape. The bits do not depend on the number of threads. Dropout
is not supported: the engine's caller falls back to the composition of ops.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.fast.gemm import Products, address
from pyllm2.fast.llama2 import attention, kernels

Array = NDArray[np.float32]
Tokens = NDArray[np.integer]


class Block:
    """Activations that one layer keeps for the backward pass, with N = B·T."""

    def __init__(self, config: Any, B: int, T: int) -> None:
        C, F, KV, N = config.dim, config.hidden_dim, config.kv_dim, B * T
        self.x, self.middle, self.attention_in, self.ffn_in, self.attention_out = _arrays(5, N, C)
        self.attention_norm, self.ffn_norm = _arrays(2, N)  # 1 / root-mean-square per row
        self.qkv = np.empty((N, C + 2 * KV), np.float32)
        self.sums = np.empty((B, config.n_heads, 2, T), np.float32)  # softmax: 1/sum, largest score
        self.gate_up = np.empty((N, 2 * F), np.float32)


class Buffers:
    """Buffers of a training step, allocated once per model and batch shape.

    trains: whether a backward pass follows; without it all layers share one Block
    cos, sin: (T, hs/2), RoPE tables of one head
    """

    def __init__(
        self, config: Any, B: int, T: int, threads: int, trains: bool, cos: Array, sin: Array
    ) -> None:
        self.config, self.shape, self.threads, self.trains = config, (B, T), threads, trains
        C, F, KV, L, N = config.dim, config.hidden_dim, config.kv_dim, config.n_layers, B * T
        if trains:
            self.blocks = [Block(config, B, T) for _ in range(L)]
        else:
            self.blocks = [Block(config, B, T)] * L
        # Matrices with a common input side by side: fewer and larger products.
        self.wqkv = np.empty((L, C + 2 * KV, C), np.float32)
        self.w13 = np.empty((L, 2 * F, C), np.float32)
        self.x, self.final, self.branch = _arrays(3, N, C)
        self.final_norm = np.empty(N, np.float32)
        self.hidden = np.empty((N, F), np.float32)
        self.logits = np.empty((N, config.vocab_size), np.float32)
        heads = config.n_heads + config.n_kv_heads  # rotated in one pass
        self.cos, self.sin = np.tile(cos, heads), np.tile(sin, heads)
        self.product = Products(threads)
        self._counter = np.zeros(1, np.int64)
        self._attention = attention.workspace(threads, T, config.head_size)
        if trains:
            self.dx = np.empty((N, C), np.float32)
            self.dqkv = np.empty((N, C + 2 * KV), np.float32)
            self.dwqkv, self.dw13 = np.empty_like(self.wqkv[0]), np.empty_like(self.w13[0])

    def pack_weights(self, params: Any) -> None:
        """Copy the weights of q, k, v and of gate, up next to each other."""
        C, F, KV = self.config.dim, self.config.hidden_dim, self.config.kv_dim
        self.wqkv[:, :C], self.wqkv[:, C : C + KV] = params.wq, params.wk
        self.wqkv[:, C + KV :] = params.wv
        self.w13[:, :F], self.w13[:, F:] = params.w1, params.w3

    def attention_forward(self, a: Block) -> None:
        """Compute a.attention_out from a.qkv."""
        qkv, out = self._by_batch(a.qkv), self._by_batch(a.attention_out)
        NKV, counter = self.config.n_kv_heads, address(self._counter)
        attention.attention_forward(qkv, out, a.sums, NKV, *self._attention, counter)

    def attention_backward(self, dout: Array, a: Block) -> None:
        """Compute self.dqkv from the gradient of a.attention_out."""
        arrays = (dout, a.qkv, a.attention_out, self.dqkv)
        dout, qkv, out, dqkv = map(self._by_batch, arrays)
        NKV, counter = self.config.n_kv_heads, address(self._counter)
        attention.attention_backward(dout, qkv, out, a.sums, dqkv, NKV, *self._attention, counter)

    def _by_batch(self, x: Array) -> Array:
        """(N, C)   ->   (B, T, C)"""
        return x.reshape(*self.shape, x.shape[1])


def _arrays(count: int, *shape: int) -> list[Array]:
    return [np.empty(shape, np.float32) for _ in range(count)]


def forward(r: Buffers, p: Any, tokens: Tokens, targets: Tokens, dloss: np.float32 | None) -> Array:
    """The losses, (B, T). With dloss, r.logits are replaced by their gradient."""
    r.pack_weights(p)
    first = r.blocks[0]
    kernels.embedding(tokens.ravel(), p.token_embedding, first.x)
    kernels.rmsnorm(first.x, p.attention_norm[0], first.attention_in, first.attention_norm)
    for i, a in enumerate(r.blocks):
        r.product(a.attention_in, r.wqkv[i].T, a.qkv)
        kernels.rope(a.qkv, r.cos, r.sin, np.float32(1))
        r.attention_forward(a)
        r.product(a.attention_out, p.wo[i].T, r.branch)
        kernels.residual_rmsnorm(a.x, r.branch, a.middle, p.ffn_norm[i], a.ffn_in, a.ffn_norm)
        r.product(a.ffn_in, r.w13[i].T, a.gate_up)
        kernels.swiglu(a.gate_up, r.hidden)
        r.product(r.hidden, p.w2[i].T, r.branch)
        if i + 1 < len(r.blocks):
            n = r.blocks[i + 1]
            total, normed, reciprocals = n.x, n.attention_in, n.attention_norm
            weight = p.attention_norm[i + 1]
        else:
            total, normed, reciprocals, weight = r.x, r.final, r.final_norm, p.final_norm
        kernels.residual_rmsnorm(a.middle, r.branch, total, weight, normed, reciprocals)
    r.product(r.final, p.token_embedding.T, r.logits)
    losses = np.empty(tokens.size, np.float32)
    kernels.crossentropy(
        r.logits,
        targets.ravel(),
        losses,
        np.float32(0) if dloss is None else dloss,
        dloss is not None,
    )
    return losses.reshape(tokens.shape)


def backward(r: Buffers, p: Any, tokens: Tokens, g: Any, fresh: bool) -> None:
    """All gradients, into g, from r.logits, which hold their own gradient."""
    dx, dbranch = r.dx, r.branch

    def linear(dout: Array, x: Array, w: Array, dw: Array, dx: Array) -> None:
        r.product(dout, w, dx)
        r.product(dout.T, x, dw, None if fresh else dw)

    def packed(dout: Array, x: Array, w: Array, dw: Array, parts: list[Array]) -> None:
        """`linear` for packed matrices with separate gradients; dx is dbranch."""
        r.product(dout, w, dbranch)
        r.product(dout.T, x, dw)
        row = 0
        for part in parts:
            found = dw[row : row + len(part)]
            part[...] = found if fresh else part + found
            row += len(part)

    def norm(x: Array, w: Array, reciprocals: Array, dw: Array, new: bool = False) -> None:
        kernels.rmsnorm_weight(dbranch, x, reciprocals, dw, fresh)
        kernels.rmsnorm_backward(dbranch, x, w, reciprocals, dx, new)

    linear(r.logits, r.final, p.token_embedding, g.token_embedding, dbranch)
    norm(r.x, p.final_norm, r.final_norm, g.final_norm, True)
    for i in reversed(range(len(r.blocks))):
        a = r.blocks[i]
        r.product(dx, p.w2[i], r.hidden)
        kernels.swiglu_backward(a.gate_up, r.hidden)  # recomputes r.hidden as well
        r.product(dx.T, r.hidden, g.w2[i], None if fresh else g.w2[i])
        packed(a.gate_up, a.ffn_in, r.w13[i], r.dw13, [g.w1[i], g.w3[i]])
        norm(a.middle, p.ffn_norm[i], a.ffn_norm, g.ffn_norm[i])
        linear(dx, a.attention_out, p.wo[i], g.wo[i], dbranch)
        r.attention_backward(dbranch, a)
        kernels.rope(r.dqkv, r.cos, r.sin, np.float32(-1))
        packed(r.dqkv, a.attention_in, r.wqkv[i], r.dwqkv, [g.wq[i], g.wk[i], g.wv[i]])
        norm(a.x, p.attention_norm[i], a.attention_norm, g.attention_norm[i])
    kernels.embedding_backward(dx, tokens.ravel(), g.token_embedding)
