"""What a training step needs room for, taken once for a model and a shape of batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.gemm_numba import Products, address, workspace
from pyllm2.gpt2 import attention_numba as attention

Array = NDArray[np.float32]


class Block:
    """What one layer keeps of its forward for its backward, with N = B·T. Names as in llm.c."""

    def __init__(self, config: Any, B: int, T: int) -> None:
        C, N, NH = config.channels, B * T, config.num_heads
        self.residual1, self.residual2, self.ln1, self.ln2, self.atty = _arrays(5, N, C)
        self.ln1_mean, self.ln1_rstd, self.ln2_mean, self.ln2_rstd = _arrays(4, N)
        self.qkv = np.empty((N, 3 * C), np.float32)
        self.att = np.empty((B, NH, T, T), np.float32)
        self.fch = np.empty((N, 4 * C), np.float32)


class Room:
    """Buffers of a step, and the calls that need some of their own."""

    def __init__(self, config: Any, B: int, T: int, threads: int, trains: bool) -> None:
        self.config, self.shape, self.threads, self.trains = config, (B, T), threads, trains
        C, N, Vp = config.channels, B * T, config.padded_vocab_size
        if trains:
            self.blocks = [Block(config, B, T) for _ in range(config.num_layers)]
        else:  # nothing need be kept: every layer writes over the one before
            self.blocks = [Block(config, B, T)] * config.num_layers
        self.residual3, self.lnf, self.branch = _arrays(3, N, C)
        self.lnf_mean, self.lnf_rstd = _arrays(2, N)
        self.fch_gelu = np.empty((N, 4 * C), np.float32)
        self.logits = np.empty((N, Vp), np.float32)
        self.product = Products(threads)
        self._counter = np.zeros(1, np.int64)
        self._head_rooms = [workspace(1) for _ in range(threads)]
        self._heads = np.array([address(room) for room in self._head_rooms])
        if trains:
            self.dx = np.empty((N, C), np.float32)
            self.dfch = np.empty((N, 4 * C), np.float32)
            self.dqkv = self.dfch.ravel()[: N * 3 * C].reshape(N, 3 * C)  # never both at a time
            self._datt = np.empty((threads, attention.ROWS, T), np.float32)

    def attention_forward(self, a: Block) -> None:
        """a.att and a.atty from a.qkv."""
        qkv, atty = self._by_batch(a.qkv), self._by_batch(a.atty)
        attention.attention_forward(qkv, a.att, atty, self._heads, address(self._counter))

    def attention_backward(self, dout: Array, a: Block) -> None:
        """self.dqkv from the gradient of a.atty."""
        dout, qkv, dqkv = map(self._by_batch, (dout, a.qkv, self.dqkv))
        attention.attention_backward(
            dout, qkv, a.att, dqkv, self._datt, self._heads, address(self._counter)
        )

    def _by_batch(self, x: Array) -> Array:
        """(N, C)   ->   (B, T, C)"""
        return x.reshape(*self.shape, x.shape[1])


def _arrays(count: int, *shape: int) -> list[Array]:
    return [np.empty(shape, np.float32) for _ in range(count)]
