"""Training of GPT-2: forward, and backward in the opposite order, once for every backend.

The engine's ops are those of `pyllm2.gpt2.ops` or of a rival with the same names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.backends import Engine
from pyllm2.gpt2.config import GPT2Config
from pyllm2.parameters import Parameters

Array = NDArray[np.float32]
Tokens = NDArray[np.integer]

# What weight decay applies to, by the rule of llm.c's GPU trainer: matrices, not biases or norms.
MATRICES = tuple("wte wpe qkvw attprojw fcw fcprojw".split())


@dataclass(init=False)
class Block:
    """Results of one layer's forward that its backward needs. Names as in llm.c."""

    residual1: Array  # (B, T, C) the block's input
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


@dataclass(init=False)
class Activations:
    """Results of a forward that the backward needs. Names as in llm.c."""

    tokens: Tokens  # (B, T)
    targets: Tokens  # (B, T)
    blocks: list[Block]
    residual3: Array  # (B, T, C) after the last layer
    lnf: Array  # (B, T, C)
    lnf_mean: Array  # (B, T)
    lnf_rstd: Array  # (B, T)
    logits: Array  # (B, T, Vp)
    probs: Array  # (B, T, Vp)
    losses: Array  # (B, T)


def activation_floats(config: GPT2Config, B: int, T: int) -> int:
    """Number of float32 in llm.c's 23 activation buffers for a batch of (B, T).

    NumPy keeps a little less (no scores before softmax, no inputs of residuals); an engine that
    keeps the gradients of all of them needs as much again.

    Example: 124M, B = 4, T = 64 -> 73347840
    """
    C, L, NH, Vp = config.channels, config.num_layers, config.num_heads, config.padded_vocab_size
    stream = 7 * C  # ln1, atty, attproj, residual2, ln2, fcproj, residual3
    wide = 3 * C + 4 * C + 4 * C  # qkv, fch, fch_gelu
    layer = stream + wide + 2 * NH * T + 4  # preatt, att; two means, two deviations
    ends = 2 * C + 2 * Vp + 3  # encoded, lnf; logits, probs; mean, deviation, loss
    return B * T * (L * layer + ends)


class TrainableGPT2:
    """A GPT-2 with a backward, over parameters in one vector."""

    def __init__(self, config: GPT2Config, params: Parameters, engine: Engine) -> None:
        self.config, self.params = config, params
        self.engine, self.ops = engine, engine.ops

    def with_ops(self, ops: Any) -> TrainableGPT2:
        """The same model, with every pass composed of these ops."""
        return TrainableGPT2(self.config, self.params, Engine(ops))

    def forward(self, tokens: Tokens, targets: Tokens) -> Activations:
        """tokens, targets: (B, T) in [0, V), T ≤ S"""
        ops, p = self.ops, self.params
        acts = Activations()
        acts.tokens, acts.targets, acts.blocks = tokens, targets, []
        x = ops.encoder_forward(tokens, p.wte, p.wpe)  # (B, T, C)
        for layer in range(self.config.num_layers):
            x = self.block_forward(x, acts, layer)
        acts.residual3 = x
        acts.lnf, acts.lnf_mean, acts.lnf_rstd = ops.layernorm_forward(x, p.lnfw, p.lnfb)
        acts.logits = ops.matmul_forward(acts.lnf, p.wte)  # (B, T, Vp): the token table once more
        acts.probs = ops.softmax_forward(acts.logits, self.config.vocab_size)
        acts.losses = ops.crossentropy_forward(acts.probs, targets)
        return acts

    def block_forward(self, x: Array, acts: Activations, layer: int) -> Array:
        """Attention, then the feed-forward network, each added to the stream.

        Appends a `Block` to acts. x: (B, T, C)   ->   (B, T, C)
        """
        ops, p, a, i = self.ops, self.params, Block(), layer
        acts.blocks.append(a)
        a.residual1 = x
        a.ln1, a.ln1_mean, a.ln1_rstd = ops.layernorm_forward(x, p.ln1w[i], p.ln1b[i])
        a.qkv = ops.matmul_forward(a.ln1, p.qkvw[i], p.qkvb[i])
        a.atty, a.att = ops.attention_forward(a.qkv, self.config.num_heads)
        attproj = ops.matmul_forward(a.atty, p.attprojw[i], p.attprojb[i])
        a.residual2 = ops.residual_forward(x, attproj)

        a.ln2, a.ln2_mean, a.ln2_rstd = ops.layernorm_forward(a.residual2, p.ln2w[i], p.ln2b[i])
        a.fch = ops.matmul_forward(a.ln2, p.fcw[i], p.fcb[i])
        a.fch_gelu = ops.gelu_forward(a.fch)
        fcproj = ops.matmul_forward(a.fch_gelu, p.fcprojw[i], p.fcprojb[i])
        return ops.residual_forward(a.residual2, fcproj)

    def backward(self, acts: Activations, dlosses: Array) -> Parameters:
        """The gradient of Σ dlosses · losses for every parameter.

        dlosses: (B, T); for the mean loss, 1/(B·T) everywhere
        """
        ops, p = self.ops, self.params
        grads = p.zeros_like()
        dlogits = ops.crossentropy_softmax_backward(
            dlosses, acts.probs, acts.targets, self.config.vocab_size
        )
        dlnf, grads.wte[...], _ = ops.matmul_backward(dlogits, acts.lnf, p.wte)
        dx, grads.lnfw[...], grads.lnfb[...] = ops.layernorm_backward(
            dlnf, acts.residual3, p.lnfw, acts.lnf_mean, acts.lnf_rstd
        )
        for layer in reversed(range(self.config.num_layers)):
            dx = self.block_backward(dx, acts, layer, grads)
        grads.wte[...], grads.wpe[...] = ops.encoder_backward(dx, acts.tokens, grads.wte, grads.wpe)
        return grads

    def block_backward(
        self, dout: Array, acts: Activations, layer: int, grads: Parameters
    ) -> Array:
        """`block_forward` from its last line to its first. dout: (B, T, C)   ->   dx: (B, T, C)

        The stream forks at each residual: the gradient through the branch is added to the
        gradient along the stream.
        """
        ops, p, g, a, i = self.ops, self.params, grads, acts.blocks[layer], layer
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

    # ---- what a trainer calls ----------------------------------------------------------------

    def losses(self, tokens: Tokens, targets: Tokens) -> Array:
        """The loss at every position, in nats. tokens, targets: (B, T)   ->   (B, T)"""
        if self.engine.losses is not None:
            return self.engine.losses(self, tokens, targets)
        return self.forward(tokens, targets).losses

    def begin_update(self, step: int, micro_batch: int = 0) -> None:
        """Say which update the next gradients are for. Nothing here depends on it."""

    def add_gradient(
        self, tokens: Tokens, targets: Tokens, dloss: float, grads: Parameters, fresh: bool
    ) -> Array:
        """Add dloss · d(Σ losses)/d(parameters) to grads; returns the losses, (B, T).

        fresh: the first micro-batch of an update; what grads holds is overwritten.
        """
        if self.engine.add_gradient is not None:
            return self.engine.add_gradient(self, tokens, targets, dloss, grads, fresh)
        acts = self.forward(tokens, targets)
        gradient = self.backward(acts, np.full_like(acts.losses, dloss))
        if fresh:
            grads.flat[...] = gradient.flat
        else:
            grads.flat += gradient.flat
        return acts.losses
