"""The Numba backend as a user meets it: the plain ops, and the whole of a training step.

`losses` and `add_gradient` are `GPT2.forward` and `GPT2.backward` again, line by line, with ops
that share a pass over memory, products of our own, and room that is taken once and used again.
Their result does not depend on the number of threads, to the last bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.gpt2 import kernels_numba as kernels
from pyllm2.gpt2 import ops_numba
from pyllm2.gpt2.room_numba import Room
from pyllm2.training.whole_step_numba import WholeStep

Array = NDArray[np.float32]
Tokens = NDArray[np.integer]


class FastOps(ops_numba.Ops):
    """The fast build of `ops_numba`, and the whole step."""

    def __init__(self, threads: int | None = None) -> None:
        super().__init__("fast", threads)
        plain = ops_numba.Ops("fast", threads)
        whole = WholeStep(plain, threads, Room, _forward, _backward)
        self.losses, self.add_gradient = whole.losses, whole.add_gradient


def _forward(r: Room, p: Any, tokens: Tokens, targets: Tokens, dloss: np.float32 | None) -> Array:
    """The losses, (B, T). With dloss r.logits become their own gradient."""
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
            a.residual1, r.branch, a.residual2,
            p.ln2w[i], p.ln2b[i], a.ln2, a.ln2_mean, a.ln2_rstd,
        )  # fmt: skip
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
        r.logits, targets.ravel(), r.config.vocab_size, losses,
        np.float32(0) if dloss is None else dloss, dloss is not None,
    )  # fmt: skip
    return losses.reshape(B, T)


def _backward(r: Room, p: Any, tokens: Tokens, g: Any, fresh: bool) -> None:
    """From r.logits, which hold their gradient, to every gradient in g."""
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
        kernels.gelu_forward(a.fch, r.fch_gelu)  # again: quicker than it is large
        linear(dx, r.fch_gelu, p.fcprojw[i], g.fcprojw[i], g.fcprojb[i], r.dfch)
        kernels.gelu_backward(r.dfch, a.fch)
        linear(r.dfch, a.ln2, p.fcw[i], g.fcw[i], g.fcb[i], dbranch)
        norm(a.residual2, p.ln2w[i], a.ln2_mean, a.ln2_rstd, g.ln2w[i], g.ln2b[i], False)
        linear(dx, a.atty, p.attprojw[i], g.attprojw[i], g.attprojb[i], dbranch)
        r.attention_backward(dbranch, a)
        linear(r.dqkv, a.ln1, p.qkvw[i], g.qkvw[i], g.qkvb[i], dbranch)
        norm(a.residual1, p.ln1w[i], a.ln1_mean, a.ln1_rstd, g.ln1w[i], g.ln1b[i], False)
    kernels.encoder_backward(dx, tokens, g.wte, g.wpe, fresh)
