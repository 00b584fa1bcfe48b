"""Llama-2 in training: forward, and backward in the opposite order, written once for all backends.

It is handed two ops modules in one: the forward ops of `ops` and those of `ops_backward`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.llama2.config import Llama2Config
from pyllm2.training.parameters import Parameters

Array = NDArray[np.float32]
Tokens = NDArray[np.integer]

# What weight decay is for, by the rule of llama2.c: whatever has two dimensions.
MATRICES = ("token_embedding", "wq", "wk", "wv", "wo", "w1", "w2", "w3")


def shapes(config: Llama2Config) -> dict[str, tuple[int, ...]]:
    """Name and shape of every learned array: those of `model.Weights`, the classifier shared."""
    C, F, L, V, KV = (
        config.dim, config.hidden_dim, config.n_layers, config.vocab_size, config.kv_dim,
    )  # fmt: skip
    return {
        "token_embedding": (V, C),
        "attention_norm": (L, C),
        "wq": (L, C, C),
        "wk": (L, KV, C),
        "wv": (L, KV, C),
        "wo": (L, C, C),
        "ffn_norm": (L, C),
        "w1": (L, F, C),
        "w2": (L, C, F),
        "w3": (L, F, C),
        "final_norm": (C,),
    }


@dataclass
class Block:
    """What one layer keeps of its forward for its backward. N = B · T rows."""

    x: Array  # (N, C) what came in
    attention_in: Array  # (N, C) normalised
    q: Array  # (B, T, NH, hs) turned
    k: Array  # (B, T, NKV, hs) turned
    v: Array  # (B, T, NKV, hs)
    att: Array  # (B, NH, T, T)
    attention_out: Array  # (N, C) heads abreast
    middle: Array  # (N, C) the stream after attention
    ffn_in: Array  # (N, C) normalised
    gate: Array  # (N, F)
    up: Array  # (N, F)
    hidden: Array  # (N, F) after swiglu
    keep: tuple[Array | None, Array | None, Array | None]  # dropout: weights, attention, ffn


@dataclass
class Activations:
    """What a forward keeps for the backward."""

    tokens: Tokens  # (N,)
    targets: Tokens  # (N,)
    cos: Array  # (N, hs/2)
    sin: Array  # (N, hs/2)
    keep: Array | None  # (N, C) dropout of the embedding
    blocks: list[Block]
    x: Array  # (N, C) the stream after the last layer
    final: Array  # (N, C) normalised
    logits: Array  # (N, V)
    probs: Array  # (N, V)
    losses: Array  # (N,)


class TrainableLlama2:
    """A Llama-2 with its shared classifier, its parameters in one vector, and backward.

    dropout: probability at the four places where llama2.c has it, while training only. The masks
    come from NumPy's generator, seeded by `seed`, the update and the number of the micro-batch, so
    they are the same on every backend and after a resume.
    """

    def __init__(
        self,
        config: Llama2Config,
        params: Parameters,
        ops: Any,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.config, self.params, self.ops = config, params, ops
        self.dropout, self.seed = dropout, seed
        self._update = self._micro_batch = 0

    def forward(self, tokens: Tokens, targets: Tokens, training: bool = False) -> Activations:
        """tokens: (B, T) in [0, V)   targets: (B, T) in [0, V), or -1: not asked"""
        ops, p, config = self.ops, self.params, self.config
        B, T = tokens.shape
        keep = self._masks(training)
        cos, sin = ops.rope_tables(T, config.head_size)
        cos, sin = np.tile(cos, (B, 1)), np.tile(sin, (B, 1))  # (N, hs/2)

        kept = keep(B * T, config.dim)
        x = ops.dropout(ops.embedding(tokens.reshape(-1), p.token_embedding), kept)  # (N, C)
        blocks = []
        for layer in range(config.n_layers):
            block, x = self.block_forward(x, layer, B, cos, sin, keep)
            blocks.append(block)
        final = ops.rmsnorm(x, p.final_norm)
        logits = ops.matmul(final, p.token_embedding)  # (N, V): the table once more
        losses, probs = ops.crossentropy_forward(logits, targets.reshape(-1))
        return Activations(
            tokens.reshape(-1), targets.reshape(-1), cos, sin, kept,
            blocks, x, final, logits, probs, losses,
        )  # fmt: skip

    def block_forward(
        self, x: Array, layer: int, B: int, cos: Array, sin: Array, keep: Callable[..., Any]
    ) -> tuple[Block, Array]:
        """Attention, then the gated feed-forward network, each added to the stream. x: (N, C)"""
        ops, p, i = self.ops, self.params, layer
        NH, NKV, hs = self.config.n_heads, self.config.n_kv_heads, self.config.head_size
        N, C = x.shape
        T = N // B

        attention_in = ops.rmsnorm(x, p.attention_norm[i])
        q = ops.rope(ops.matmul(attention_in, p.wq[i]).reshape(N, NH, hs), cos, sin)
        k = ops.rope(ops.matmul(attention_in, p.wk[i]).reshape(N, NKV, hs), cos, sin)
        v = ops.matmul(attention_in, p.wv[i])
        q, k, v = (a.reshape(B, T, -1, hs) for a in (q, k, v))
        keep_weights, keep_attention, keep_ffn = keep(B, NH, T, T), keep(N, C), keep(N, C)
        attention_out, att = ops.attention_forward(q, k, v, keep_weights)
        attention_out = attention_out.reshape(N, C)
        projected = ops.matmul(attention_out, p.wo[i])
        middle = ops.residual(x, ops.dropout(projected, keep_attention))

        ffn_in = ops.rmsnorm(middle, p.ffn_norm[i])
        gate, up = ops.matmul(ffn_in, p.w1[i]), ops.matmul(ffn_in, p.w3[i])
        hidden = ops.swiglu(gate, up)
        narrowed = ops.matmul(hidden, p.w2[i])
        out = ops.residual(middle, ops.dropout(narrowed, keep_ffn))
        kept = (keep_weights, keep_attention, keep_ffn)
        block = Block(
            x, attention_in, q, k, v, att, attention_out, middle, ffn_in, gate, up, hidden, kept
        )
        return block, out

    def backward(self, acts: Activations, dlosses: Array) -> Parameters:
        """The gradient of Σ dlosses · losses for every parameter. dlosses: (N,)"""
        ops, p = self.ops, self.params
        grads = p.zeros_like()
        dlogits = ops.crossentropy_backward(dlosses, acts.probs, acts.targets)
        dfinal, grads.token_embedding[...] = ops.matmul_backward(
            dlogits, acts.final, p.token_embedding
        )
        dx, grads.final_norm[...] = ops.rmsnorm_backward(dfinal, acts.x, p.final_norm)
        for layer in reversed(range(self.config.n_layers)):
            dx = self.block_backward(dx, acts, layer, grads)
        dx = ops.dropout(dx, acts.keep)
        grads.token_embedding[...] = ops.embedding_backward(dx, acts.tokens, grads.token_embedding)
        return grads

    def block_backward(
        self, dout: Array, acts: Activations, layer: int, grads: Parameters
    ) -> Array:
        """`block_forward` from its last line to its first. dout: (N, C)   ->   dx: (N, C)"""
        ops, p, g, a, i = self.ops, self.params, grads, acts.blocks[layer], layer
        N = len(dout)
        keep_weights, keep_attention, keep_ffn = a.keep

        dnarrowed = ops.dropout(dout, keep_ffn)
        dhidden, g.w2[i] = ops.matmul_backward(dnarrowed, a.hidden, p.w2[i])
        dgate, dup = ops.swiglu_backward(dhidden, a.gate, a.up)
        dffn_gate, g.w1[i] = ops.matmul_backward(dgate, a.ffn_in, p.w1[i])
        dffn_up, g.w3[i] = ops.matmul_backward(dup, a.ffn_in, p.w3[i])
        dffn_in = ops.residual(dffn_gate, dffn_up)
        dbranch, g.ffn_norm[i] = ops.rmsnorm_backward(dffn_in, a.middle, p.ffn_norm[i])
        dmiddle = ops.residual(dout, dbranch)

        dprojected = ops.dropout(dmiddle, keep_attention)
        dattention_out, g.wo[i] = ops.matmul_backward(dprojected, a.attention_out, p.wo[i])
        B, T, _, hs = a.q.shape
        dq, dk, dv = ops.attention_backward(
            dattention_out.reshape(B, T, -1), a.q, a.k, a.v, a.att, keep_weights
        )
        dq = ops.rope_backward(dq.reshape(N, -1, hs), acts.cos, acts.sin)
        dk = ops.rope_backward(dk.reshape(N, -1, hs), acts.cos, acts.sin)
        dfrom_q, g.wq[i] = ops.matmul_backward(dq.reshape(N, -1), a.attention_in, p.wq[i])
        dfrom_k, g.wk[i] = ops.matmul_backward(dk.reshape(N, -1), a.attention_in, p.wk[i])
        dfrom_v, g.wv[i] = ops.matmul_backward(dv.reshape(N, -1), a.attention_in, p.wv[i])
        dattention_in = ops.residual(ops.residual(dfrom_q, dfrom_k), dfrom_v)
        dbranch, g.attention_norm[i] = ops.rmsnorm_backward(dattention_in, a.x, p.attention_norm[i])
        return ops.residual(dmiddle, dbranch)

    def _masks(self, training: bool) -> Callable[..., Array | None]:
        """A function from a shape to what `dropout` keeps, drawn anew at each call."""
        p = self.dropout
        if not training or p == 0:
            return lambda *shape: None
        rng = np.random.default_rng([self.seed, self._update, self._micro_batch])
        scale = np.float32(1 / (1 - p))
        return lambda *shape: np.where(rng.random(shape, np.float32) < p, np.float32(0), scale)

    # ---- what a trainer asks of a model ------------------------------------------------------

    def losses(self, tokens: Tokens, targets: Tokens) -> Array:
        """The loss at every position, in nats, without dropout. (B, T), (B, T)   ->   (B, T)"""
        whole = getattr(self.ops, "losses", None)  # a rival may have it in one piece
        if whole is not None:
            return whole(self, tokens, targets)
        return self.forward(tokens, targets).losses.reshape(tokens.shape)

    def begin_update(self, step: int) -> None:
        """The gradients to come are for this update: masks of dropout depend on it."""
        self._update = step

    def add_gradient(
        self, tokens: Tokens, targets: Tokens, dloss: float, grads: Parameters, fresh: bool
    ) -> Array:
        """Add dloss · d(Σ losses)/d(parameters) to grads; returns the losses, (B, T).

        fresh: the first micro-batch of an update; what grads holds is overwritten.
        """
        self._micro_batch = 0 if fresh else self._micro_batch + 1
        whole = getattr(self.ops, "add_gradient", None)
        if whole is not None and self.dropout == 0:
            return whole(self, tokens, targets, dloss, grads, fresh)
        acts = self.forward(tokens, targets, training=True)
        gradient = self.backward(acts, np.full_like(acts.losses, dloss))
        if fresh:
            grads.flat[...] = gradient.flat
        else:
            grads.flat += gradient.flat
        return acts.losses.reshape(tokens.shape)
