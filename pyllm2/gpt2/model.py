"""GPT-2 in training: forward, and backward in the opposite order, written once for every backend.

It is handed an ops module (`pyllm2.gpt2.ops`, or a rival with the same names).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pyllm2.gpt2.config import GPT2Config
from pyllm2.training.parameters import Parameters

Array = NDArray[np.float32]
Tokens = NDArray[np.integer]

# What weight decay is for, by the rule of llm.c's GPU trainer: matrices, not biases or norms.
MATRICES = ("wte", "wpe", "qkvw", "attprojw", "fcw", "fcprojw")


class Ops(Protocol):
    """What a backend provides: the functions of `pyllm2.gpt2.ops`, under the same names."""

    encoder_forward: Any
    encoder_backward: Any
    layernorm_forward: Any
    layernorm_backward: Any
    matmul_forward: Any
    matmul_backward: Any
    attention_forward: Any
    attention_backward: Any
    gelu_forward: Any
    gelu_backward: Any
    residual_forward: Any
    residual_backward: Any
    softmax_forward: Any
    crossentropy_forward: Any
    crossentropy_softmax_backward: Any


@dataclass
class Block:
    """What one layer keeps of its forward for its backward. Names as in llm.c."""

    residual1: Array  # (B, T, C) what came in
    ln1: Array  # (B, T, C)
    ln1_mean: Array  # (B, T)
    ln1_rstd: Array  # (B, T)
    qkv: Array  # (B, T, 3C)
    atty: Array  # (B, T, C)
    att: Array  # (B, NH, T, T)
    residual2: Array  # (B, T, C) after attention
    ln2: Array  # (B, T, C)
    ln2_mean: Array  # (B, T)
    ln2_rstd: Array  # (B, T)
    fch: Array  # (B, T, 4C)
    fch_gelu: Array  # (B, T, 4C)


@dataclass
class Activations:
    """What a forward keeps. probs and losses are there if it was given targets."""

    tokens: Tokens  # (B, T)
    blocks: list[Block]
    residual3: Array  # (B, T, C) after the last layer
    lnf: Array  # (B, T, C)
    lnf_mean: Array  # (B, T)
    lnf_rstd: Array  # (B, T)
    logits: Array  # (B, T, Vp)
    targets: Tokens | None = None  # (B, T)
    probs: Array | None = None  # (B, T, Vp)
    losses: Array | None = None  # (B, T)


class GPT2:
    """A GPT-2: a shape, its parameters, and the ops that run it."""

    def __init__(self, config: GPT2Config, params: Parameters, ops: Ops) -> None:
        self.config, self.params, self.ops = config, params, ops

    def forward(self, tokens: Tokens, targets: Tokens | None = None) -> Activations:
        """tokens, targets: (B, T) in [0, V), T ≤ S   ->   everything that backward needs."""
        ops, p = self.ops, self.params
        x = ops.encoder_forward(tokens, p.wte, p.wpe)  # (B, T, C)
        blocks = []
        for layer in range(self.config.num_layers):
            block, x = self.block_forward(x, layer)
            blocks.append(block)
        lnf, lnf_mean, lnf_rstd = ops.layernorm_forward(x, p.lnfw, p.lnfb)
        logits = ops.matmul_forward(lnf, p.wte)  # (B, T, Vp): the token table once more
        acts = Activations(tokens, blocks, x, lnf, lnf_mean, lnf_rstd, logits)
        if targets is not None:
            acts.targets = targets
            acts.probs = ops.softmax_forward(logits, self.config.vocab_size)
            acts.losses = ops.crossentropy_forward(acts.probs, targets)
        return acts

    def block_forward(self, x: Array, layer: int, rows: Array | None = None) -> tuple[Block, Array]:
        """Attention, then the feed-forward network, each added to the stream.

        x: (B, T, C)   ->   what backward needs; (B, T, C)
        rows: (B, P, 3C), of a text that is fed piece by piece: queries, keys and values of every
        position up to now. The last T are those of x and are written here.
        """
        ops, p, i = self.ops, self.params, layer
        ln1, ln1_mean, ln1_rstd = ops.layernorm_forward(x, p.ln1w[i], p.ln1b[i])
        qkv = ops.matmul_forward(ln1, p.qkvw[i], p.qkvb[i])
        first = 0
        if rows is not None:
            first = rows.shape[1] - x.shape[1]
            rows[:, first:] = qkv
            qkv = rows
        atty, att = ops.attention_forward(qkv, self.config.num_heads, first)
        attproj = ops.matmul_forward(atty, p.attprojw[i], p.attprojb[i])
        residual2 = ops.residual_forward(x, attproj)

        ln2, ln2_mean, ln2_rstd = ops.layernorm_forward(residual2, p.ln2w[i], p.ln2b[i])
        fch = ops.matmul_forward(ln2, p.fcw[i], p.fcb[i])
        fch_gelu = ops.gelu_forward(fch)
        fcproj = ops.matmul_forward(fch_gelu, p.fcprojw[i], p.fcprojb[i])
        residual3 = ops.residual_forward(residual2, fcproj)
        block = Block(
            x, ln1, ln1_mean, ln1_rstd, qkv, atty, att,
            residual2, ln2, ln2_mean, ln2_rstd, fch, fch_gelu,
        )  # fmt: skip
        return block, residual3

    def backward(self, acts: Activations, dlosses: Array) -> Parameters:
        """The gradient of Σ dlosses · losses for every parameter.

        acts: of a forward with targets   dlosses: (B, T); for the mean loss, 1/(B·T) everywhere
        """
        ops, p = self.ops, self.params
        grads = Parameters(p.shapes, np.zeros_like(p.flat))
        dlogits = ops.crossentropy_softmax_backward(
            dlosses, acts.probs, acts.targets, self.config.vocab_size
        )
        dlnf, grads.wte[...], _ = ops.matmul_backward(dlogits, acts.lnf, p.wte)
        dx, grads.lnfw[...], grads.lnfb[...] = ops.layernorm_backward(
            dlnf, acts.residual3, p.lnfw, acts.lnf_mean, acts.lnf_rstd
        )
        for layer in reversed(range(self.config.num_layers)):
            dx = self.block_backward(dx, acts.blocks[layer], layer, grads)
        grads.wte[...], grads.wpe[...] = ops.encoder_backward(dx, acts.tokens, grads.wte, grads.wpe)
        return grads

    def block_backward(self, dout: Array, block: Block, layer: int, grads: Parameters) -> Array:
        """`block_forward` from its last line to its first. dout: (B, T, C)   ->   dx: (B, T, C)

        The stream forks at each residual: what comes back through the branch is added to what
        comes back along the stream.
        """
        ops, p, g, a, i = self.ops, self.params, grads, block, layer
        dresidual2, dfcproj = ops.residual_backward(dout)
        dfch_gelu, g.fcprojw[i], g.fcprojb[i] = ops.matmul_backward(
            dfcproj, a.fch_gelu, p.fcprojw[i]
        )
        dfch = ops.gelu_backward(dfch_gelu, a.fch)
        dln2, g.fcw[i], g.fcb[i] = ops.matmul_backward(dfch, a.ln2, p.fcw[i])
        dbranch, g.ln2w[i], g.ln2b[i] = ops.layernorm_backward(
            dln2, a.residual2, p.ln2w[i], a.ln2_mean, a.ln2_rstd
        )
        dresidual2 = ops.residual_forward(dresidual2, dbranch)

        dresidual1, dattproj = ops.residual_backward(dresidual2)
        datty, g.attprojw[i], g.attprojb[i] = ops.matmul_backward(dattproj, a.atty, p.attprojw[i])
        dqkv = ops.attention_backward(datty, a.qkv, a.att)
        dln1, g.qkvw[i], g.qkvb[i] = ops.matmul_backward(dqkv, a.ln1, p.qkvw[i])
        dbranch, g.ln1w[i], g.ln1b[i] = ops.layernorm_backward(
            dln1, a.residual1, p.ln1w[i], a.ln1_mean, a.ln1_rstd
        )
        return ops.residual_forward(dresidual1, dbranch)

    # ---- what a trainer asks of a model ------------------------------------------------------

    def losses(self, tokens: Tokens, targets: Tokens) -> Array:
        """The loss at every position, in nats. tokens, targets: (B, T)   ->   (B, T)"""
        whole = getattr(self.ops, "losses", None)  # a rival may have it in one piece
        if whole is not None:
            return whole(self, tokens, targets)
        losses = self.forward(tokens, targets).losses
        assert losses is not None
        return losses

    def begin_update(self, step: int) -> None:
        """The gradients to come are for this update. Nothing here depends on it."""

    def add_gradient(
        self, tokens: Tokens, targets: Tokens, dloss: float, grads: Parameters, fresh: bool
    ) -> Array:
        """Add dloss · d(Σ losses)/d(parameters) to grads; returns the losses, (B, T).

        fresh: what grads holds is not a gradient yet and is overwritten.
        """
        whole = getattr(self.ops, "add_gradient", None)
        if whole is not None:
            return whole(self, tokens, targets, dloss, grads, fresh)
        acts = self.forward(tokens, targets)
        assert acts.losses is not None
        gradient = self.backward(acts, np.full_like(acts.losses, dloss))
        if fresh:
            grads.flat[...] = gradient.flat
        else:
            grads.flat += gradient.flat
        return acts.losses
