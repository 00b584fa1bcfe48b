"""Training of Llama-2: forward, and backward in the opposite order, once for every backend.

The engine's ops are those of `pyllm2.llama2.ops` or of a rival with the same names. All positions
of all sequences are N = B · T rows; only attention knows where a sequence ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.backends import Engine
from pyllm2.errors import ConfigError
from pyllm2.llama2.config import Llama2Config
from pyllm2.parameters import Parameters

Array = NDArray[np.float32]
Tokens = NDArray[np.integer]

# What weight decay applies to, by the rule of llama2.c: arrays of two dimensions.
MATRICES = tuple("token_embedding wq wk wv wo w1 w2 w3".split())


@dataclass(init=False)
class Block:
    """Results of one layer's forward that its backward needs."""

    x: Array  # (N, C) the block's input
    attention_in: Array  # (N, C) normalised
    q: Array  # (B, T, NH, hs) rotated
    k: Array  # (B, T, NKV, hs) rotated
    v: Array  # (B, T, NKV, hs)
    att: Array  # (B, NH, T, T)
    attention_out: Array  # (N, C)
    middle: Array  # (N, C) the stream after attention
    ffn_in: Array  # (N, C) normalised
    gate: Array  # (N, F)
    up: Array  # (N, F)
    hidden: Array  # (N, F) after swiglu
    keep: tuple[Array | None, Array | None, Array | None]  # dropout: att, attention, ffn


@dataclass(init=False)
class Activations:
    """Results of a forward that the backward needs."""

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


def activation_floats(config: Llama2Config, B: int, T: int) -> int:
    """Number of float32 in the `Activations` of a batch of (B, T)."""
    C, F, L, NH = config.dim, config.hidden_dim, config.n_layers, config.n_heads
    layer = 6 * C + 2 * config.kv_dim + 4 * F + NH * T
    return B * T * (L * layer + 3 * C + 2 * config.vocab_size + config.head_size)


class TrainableLlama2:
    """A Llama-2 with a backward, over parameters in one vector; the classifier is shared.

    dropout: probability at the four places where llama2.c has it, in training only. Masks come
    from NumPy's generator, seeded by `seed`, the update and the micro-batch: they are the same on
    every backend and after a resume.

    Raises ConfigError (name, value, rule) for a model that is beyond run.c.
    """

    def __init__(
        self,
        config: Llama2Config,
        params: Parameters,
        engine: Engine,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        for name, value in config.beyond_run_c.items():
            raise ConfigError(name, value, "cannot be trained: the gradients are of run.c's model")
        self.config, self.params = config, params
        self.engine, self.ops = engine, engine.ops
        self.dropout, self.seed = dropout, seed
        self._next = threading.local()  # which masks come next: each thread has its own update

    def with_ops(self, ops: Any) -> TrainableLlama2:
        """The same model, with every pass composed of these ops."""
        return TrainableLlama2(self.config, self.params, Engine(ops), self.dropout, self.seed)

    def forward(self, tokens: Tokens, targets: Tokens, training: bool = False) -> Activations:
        """tokens: (B, T) in [0, V)   targets: (B, T) in [0, V), or -1: no loss"""
        ops, p, config = self.ops, self.params, self.config
        B, T = tokens.shape
        keep = self._masks(training)
        acts = Activations()
        acts.tokens, acts.targets, acts.blocks = tokens.reshape(-1), targets.reshape(-1), []
        cos, sin = ops.rope_tables(T, config.head_size)
        acts.cos, acts.sin = np.tile(cos, (B, 1)), np.tile(sin, (B, 1))  # (N, hs/2)
        acts.keep = keep(B * T, config.dim)
        x = ops.dropout(ops.embedding(acts.tokens, p.token_embedding), acts.keep)  # (N, C)
        for layer in range(config.n_layers):
            x = self.block_forward(x, acts, layer, B, keep)
        acts.x = x
        acts.final = ops.rmsnorm(x, p.final_norm)
        acts.logits = ops.matmul(acts.final, p.token_embedding)  # (N, V): the table once more
        acts.losses, acts.probs = ops.crossentropy_forward(acts.logits, acts.targets)
        return acts

    def block_forward(
        self, x: Array, acts: Activations, layer: int, B: int, keep: Callable[..., Any]
    ) -> Array:
        """Attention, then the gated feed-forward network, each added to the stream.

        Appends a `Block` to acts. x: (N, C)   ->   (N, C)
        """
        ops, p, a, i = self.ops, self.params, Block(), layer
        NH, NKV, hs = self.config.n_heads, self.config.n_kv_heads, self.config.head_size
        (N, C), T = x.shape, len(x) // B
        acts.blocks.append(a)
        a.x, a.keep = x, (keep(B, NH, T, T), keep(N, C), keep(N, C))
        keep_att, keep_attention, keep_ffn = a.keep

        a.attention_in = ops.rmsnorm(x, p.attention_norm[i])
        q = ops.matmul(a.attention_in, p.wq[i]).reshape(N, NH, hs)
        k = ops.matmul(a.attention_in, p.wk[i]).reshape(N, NKV, hs)
        a.q = ops.rope(q, acts.cos, acts.sin).reshape(B, T, NH, hs)
        a.k = ops.rope(k, acts.cos, acts.sin).reshape(B, T, NKV, hs)
        a.v = ops.matmul(a.attention_in, p.wv[i]).reshape(B, T, NKV, hs)
        out, a.att = ops.attention_forward(a.q, a.k, a.v, keep_att)
        a.attention_out = out.reshape(N, C)
        projected = ops.matmul(a.attention_out, p.wo[i])
        a.middle = ops.residual(x, ops.dropout(projected, keep_attention))

        a.ffn_in = ops.rmsnorm(a.middle, p.ffn_norm[i])
        a.gate, a.up = ops.matmul(a.ffn_in, p.w1[i]), ops.matmul(a.ffn_in, p.w3[i])
        a.hidden = ops.swiglu(a.gate, a.up)
        narrowed = ops.matmul(a.hidden, p.w2[i])
        return ops.residual(a.middle, ops.dropout(narrowed, keep_ffn))

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
        keep_att, keep_attention, keep_ffn = a.keep

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
            dattention_out.reshape(B, T, -1), a.q, a.k, a.v, a.att, keep_att
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
        """A function from a shape to a new dropout mask, or to None where nothing is dropped."""
        p = self.dropout
        if not training or p == 0:
            return lambda *shape: None
        update, micro_batch = self._where()
        rng = np.random.default_rng([self.seed, update, micro_batch])
        scale = np.float32(1 / (1 - p))
        return lambda *shape: np.where(rng.random(shape, np.float32) < p, np.float32(0), scale)

    def _where(self) -> tuple[int, int]:
        """This thread's update and micro-batch."""
        return getattr(self._next, "update", 0), getattr(self._next, "micro_batch", 0)

    # ---- what a trainer calls ----------------------------------------------------------------

    def losses(self, tokens: Tokens, targets: Tokens) -> Array:
        """The loss at every position, in nats, without dropout. (B, T), (B, T)   ->   (B, T)"""
        if self.engine.losses is not None:
            return self.engine.losses(self, tokens, targets)
        return self.forward(tokens, targets).losses.reshape(tokens.shape)

    def begin_update(self, step: int, micro_batch: int = 0) -> None:
        """Say which update this thread's next gradients are for, and their first micro-batch.

        Dropout masks depend on both.
        """
        self._next.update, self._next.first = step, micro_batch

    def add_gradient(
        self, tokens: Tokens, targets: Tokens, dloss: float, grads: Parameters, fresh: bool
    ) -> Array:
        """Add dloss · d(Σ losses)/d(parameters) to grads; returns the losses, (B, T).

        fresh: the first micro-batch of an update; what grads holds is overwritten.
        """
        first = getattr(self._next, "first", 0)
        self._next.micro_batch = first if fresh else self._where()[1] + 1
        if self.engine.add_gradient is not None and self.dropout == 0:
            return self.engine.add_gradient(self, tokens, targets, dloss, grads, fresh)
        acts = self.forward(tokens, targets, training=True)
        gradient = self.backward(acts, np.full_like(acts.losses, dloss))
        if fresh:
            grads.flat[...] = gradient.flat
        else:
            grads.flat += gradient.flat
        return acts.losses.reshape(tokens.shape)
