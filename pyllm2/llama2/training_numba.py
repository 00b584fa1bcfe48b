"""A whole training step in Numba: `TrainableLlama2.forward` and `.backward` again, line by line.

Ops share a pass over memory, products are our own, and room is taken once and used again. The
result does not depend on the number of threads, to the last bit. Dropout is not in here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.llama2 import kernels_training_numba as kernels
from pyllm2.llama2.room_numba import Room

Array = NDArray[np.float32]
Tokens = NDArray[np.integer]


def forward(r: Room, p: Any, tokens: Tokens, targets: Tokens, dloss: np.float32 | None) -> Array:
    """The losses, (B, T). With dloss r.logits become their own gradient."""
    r.take(p)
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
        r.logits, targets.ravel(), losses,
        np.float32(0) if dloss is None else dloss, dloss is not None,
    )  # fmt: skip
    return losses.reshape(tokens.shape)


def backward(r: Room, p: Any, tokens: Tokens, g: Any, fresh: bool) -> None:
    """From r.logits, which hold their gradient, to every gradient in g."""
    dx, dbranch = r.dx, r.branch

    def linear(dout: Array, x: Array, w: Array, dw: Array, dx: Array) -> None:
        r.product(dout, w, dx)
        r.product(dout.T, x, dw, None if fresh else dw)

    def several(dout: Array, x: Array, w: Array, dw: Array, parts: list[Array]) -> None:
        """The same for matrices side by side, whose gradients lie apart; dx is dbranch."""
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
        kernels.swiglu_backward(a.gate_up, r.hidden)  # and r.hidden is the hidden layer again
        r.product(dx.T, r.hidden, g.w2[i], None if fresh else g.w2[i])
        several(a.gate_up, a.ffn_in, r.w13[i], r.dw13, [g.w1[i], g.w3[i]])
        norm(a.middle, p.ffn_norm[i], a.ffn_norm, g.ffn_norm[i])
        linear(dx, a.attention_out, p.wo[i], g.wo[i], dbranch)
        r.attention_backward(dbranch, a)
        kernels.rope(r.dqkv, r.cos, r.sin, np.float32(-1))
        several(r.dqkv, a.attention_in, r.wqkv[i], r.dwqkv, [g.wq[i], g.wk[i], g.wv[i]])
        norm(a.x, p.attention_norm[i], a.attention_norm, g.attention_norm[i])
    kernels.embedding_backward(dx, tokens.ravel(), g.token_embedding)
