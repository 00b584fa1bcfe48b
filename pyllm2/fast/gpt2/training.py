"""A whole training step of GPT-2: `TrainableGPT2.forward` and `.backward`, pass for pass.

Consecutive ops share one pass over memory, matrix products are `fast.gemm`'s, and buffers are
allocated once per model and batch shape. The bits do not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.fast.gemm import Products, address, workspace
from pyllm2.fast.gpt2 import attention, kernels

Array = NDArray[np.float32]
Tokens = NDArray[np.integer]


class Block:
    """Activations that one layer keeps for the backward pass, with N = B·T. Names as in llm.c."""

    def __init__(self, config: Any, B: int, T: int) -> None:
        C, N, NH = config.channels, B * T, config.num_heads
        self.residual1, self.residual2, self.ln1, self.ln2, self.atty = _arrays(5, N, C)
        self.ln1_mean, self.ln1_rstd, self.ln2_mean, self.ln2_rstd = _arrays(4, N)
        self.qkv = np.empty((N, 3 * C), np.float32)
        self.att = np.empty((B, NH, T, T), np.float32)
        self.fch = np.empty((N, 4 * C), np.float32)


class Buffers:
    """Buffers of a training step, allocated once per model and batch shape.

    trains: whether a backward pass follows; without it all layers share one Block
    """

    def __init__(self, config: Any, B: int, T: int, threads: int, trains: bool) -> None:
        self.config, self.shape, self.threads, self.trains = config, (B, T), threads, trains
        C, N, Vp = config.channels, B * T, config.padded_vocab_size
        if trains:
            self.blocks = [Block(config, B, T) for _ in range(config.num_layers)]
        else:
            self.blocks = [Block(config, B, T)] * config.num_layers
        self.residual3, self.lnf, self.branch = _arrays(3, N, C)
        self.lnf_mean, self.lnf_rstd = _arrays(2, N)
        self.fch_gelu = np.empty((N, 4 * C), np.float32)
        self.logits = np.empty((N, Vp), np.float32)
        self.product = Products(threads)
        self._counter = np.zeros(1, np.int64)
        self._workspaces = [workspace(1) for _ in range(threads)]
        self._heads = np.array([address(memory) for memory in self._workspaces])
        if trains:
            self.dx = np.empty((N, C), np.float32)
            self.dfch = np.empty((N, 4 * C), np.float32)
            self.dqkv = self.dfch.ravel()[: N * 3 * C].reshape(N, 3 * C)  # never both at once
            self._datt = np.empty((threads, attention.ROWS, T), np.float32)

    def attention_forward(self, a: Block) -> None:
        """Compute a.att and a.atty from a.qkv."""
        qkv, atty = self._by_batch(a.qkv), self._by_batch(a.atty)
        attention.attention_forward(qkv, a.att, atty, self._heads, address(self._counter))

    def attention_backward(self, dout: Array, a: Block) -> None:
        """Compute self.dqkv from the gradient of a.atty."""
        dout, qkv, dqkv = map(self._by_batch, (dout, a.qkv, self.dqkv))
        attention.attention_backward(
            dout, qkv, a.att, dqkv, self._datt, self._heads, address(self._counter)
        )

    def _by_batch(self, x: Array) -> Array:
        """(N, C)   ->   (B, T, C)"""
        return x.reshape(*self.shape, x.shape[1])


def _arrays(count: int, *shape: int) -> list[Array]:
    return [np.empty(shape, np.float32) for _ in range(count)]


def forward(r: Buffers, p: Any, tokens: Tokens, targets: Tokens, dloss: np.float32 | None) -> Array:
    """The losses, (B, T). With dloss, r.logits are replaced by their gradient."""
    B, T = tokens.shape
    if r.config.max_seq_len < T:
        raise ValueError(f"T = {T}: expected at most {r.config.max_seq_len}")
    kernels.encoder_forward(tokens, p.wte, p.wpe, r.blocks[0].residual1)
    first = r.blocks[0]
    kernels.layernorm_forward(
        first.residual1, p.ln1w[0], p.ln1b[0], first.ln1, first.ln1_mean, first.ln1_rstd
    )
    for i, a in enumerate(r.blocks):
        r.product(a.ln1, p.qkvw[i].T, a.qkv, p.qkvb[i])
        r.attention_forward(a)
        r.product(a.atty, p.attprojw[i].T, r.branch, p.attprojb[i])
        kernels.residual_layernorm_forward(
            a.residual1,
            r.branch,
            a.residual2,
            p.ln2w[i],
            p.ln2b[i],
            a.ln2,
            a.ln2_mean,
            a.ln2_rstd,
        )
        r.product(a.ln2, p.fcw[i].T, a.fch, p.fcb[i])
        kernels.gelu_forward(a.fch, r.fch_gelu)
        r.product(r.fch_gelu, p.fcprojw[i].T, r.branch, p.fcprojb[i])
        if i + 1 < len(r.blocks):
            n = r.blocks[i + 1]
            total, normed, mean, rstd = n.residual1, n.ln1, n.ln1_mean, n.ln1_rstd
            w, b = p.ln1w[i + 1], p.ln1b[i + 1]
        else:
            total, normed, mean, rstd = r.residual3, r.lnf, r.lnf_mean, r.lnf_rstd
            w, b = p.lnfw, p.lnfb
        kernels.residual_layernorm_forward(a.residual2, r.branch, total, w, b, normed, mean, rstd)
    r.product(r.lnf, p.wte.T, r.logits)
    losses = np.empty(B * T, np.float32)
    kernels.crossentropy(
        r.logits,
        targets.ravel(),
        r.config.vocab_size,
        losses,
        np.float32(0) if dloss is None else dloss,
        dloss is not None,
    )
    return losses.reshape(B, T)


def backward(r: Buffers, p: Any, tokens: Tokens, g: Any, fresh: bool) -> None:
    """All gradients, into g, from r.logits, which hold their own gradient."""
    dx, dbranch = r.dx, r.branch

    def linear(dout: Array, x: Array, w: Array, dw: Array, db: Array | None, dx: Array) -> None:
        r.product(dout, w, dx)
        r.product(dout.T, x, dw, None if fresh else dw)
        if db is not None:
            kernels.bias_backward(dout, db, fresh)

    def norm(x: Array, w: Array, mean: Array, rstd: Array, dw: Array, db: Array, new: bool) -> None:
        kernels.layernorm_parameters(dbranch, x, mean, rstd, dw, db, fresh)
        kernels.layernorm_backward(dbranch, x, w, mean, rstd, dx, new)

    linear(r.logits, r.lnf, p.wte, g.wte, None, dbranch)
    norm(r.residual3, p.lnfw, r.lnf_mean, r.lnf_rstd, g.lnfw, g.lnfb, True)
    for i in reversed(range(len(r.blocks))):
        a = r.blocks[i]
        kernels.gelu_forward(a.fch, r.fch_gelu)  # recomputed: storing it would take more memory
        linear(dx, r.fch_gelu, p.fcprojw[i], g.fcprojw[i], g.fcprojb[i], r.dfch)
        kernels.gelu_backward(r.dfch, a.fch)
        linear(r.dfch, a.ln2, p.fcw[i], g.fcw[i], g.fcb[i], dbranch)
        norm(a.residual2, p.ln2w[i], a.ln2_mean, a.ln2_rstd, g.ln2w[i], g.ln2b[i], False)
        linear(dx, a.atty, p.attprojw[i], g.attprojw[i], g.attprojb[i], dbranch)
        r.attention_backward(dbranch, a)
        linear(r.dqkv, a.ln1, p.qkvw[i], g.qkvw[i], g.qkvb[i], dbranch)
        norm(a.residual1, p.ln1w[i], a.ln1_mean, a.ln1_rstd, g.ln1w[i], g.ln1b[i], False)
    kernels.encoder_backward(dx, tokens, g.wte, g.wpe, fresh)
