"""The Numba backend as a user meets it: the plain ops, and a `forward` that goes the fast ways.

One token: the whole step as one kernel (`step_numba`). A prompt: the composition of ops that is
`Llama2.forward`, with BLAS for the large products. Both read and write the same cache.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from pyllm2.llama2 import ops_numba, step_numba

Array = NDArray[np.float32]

# A model whose weights take less than this is quicker on one thread: it is read from the caches,
# and two threads spend more on meeting than they gain.
BYTES_WORTH_A_THREAD = 2**21


class FastOps(ops_numba.Ops):
    """The fast build of `ops_numba`, and the whole forward."""

    def __init__(self, threads: int | None = None) -> None:
        super().__init__("fast")
        self.threads = threads

    def forward(
        self,
        model: Any,
        tokens: NDArray[np.integer],
        pos: int,
        cache: Any,
        last_only: bool = False,
    ) -> Array:
        """`Llama2.forward`, quicker: tested equal to the composition of plain ops."""
        step = getattr(cache, "numba_step", None)
        if len(tokens) == 1:
            if step is None:
                step = cache.numba_step = Step(model, cache, self.threads)
            return step(int(tokens[0]), pos)
        if step is not None:
            step.remembered = min(step.remembered, pos)
        prompt = type(model)(model.config, model.weights, _PromptOps(self))
        return prompt.forward(tokens, pos, cache, last_only)


class _PromptOps:
    """The plain ops, but products by BLAS, and vector code where `exp` and sums take the time."""

    def __init__(self, ops: FastOps) -> None:
        self._ops = ops

    def __getattr__(self, name: str) -> Any:
        if name in ("rmsnorm", "swiglu", "attention") and not ops_numba.forked:
            return step_numba.kernel(f"prompt_{name}")
        return getattr(self._ops, name)

    @staticmethod
    def matmul(x: Array, w: Array) -> Array:
        return x @ w.T

    @staticmethod
    def residual(x: Array, y: Array) -> Array:
        return x + y


class Step:
    """`step_numba` bound to a model and a cache: buffers, addresses, and how many threads."""

    def __init__(self, model: Any, cache: Any, threads: int | None = None) -> None:
        config, w = model.config, model.weights
        C, F, V = config.dim, config.hidden_dim, config.vocab_size
        most = numba.get_num_threads()
        nbytes = sum(a.nbytes for a in vars(w).values() if a is not None)
        self.threads = threads or max(1, min(most, nbytes // BYTES_WORTH_A_THREAD))
        scratch = -(-(C + cache.positions + 32) // 16) * 16  # floats a thread, whole lines
        self._buffers = {
            "LOGITS": V, "X": C, "Q": C, "OUT": C, "GATE": F, "UP": F, "Z": F, "DELTA": C,
            "SCRATCH": scratch * self.threads,
        }  # fmt: skip
        arrays = {name: _lines(size, np.float32) for name, size in self._buffers.items()}
        self.logits, self._counters = arrays["LOGITS"], _lines(64, np.int64)
        classifier = w.token_embedding if w.classifier is None else w.classifier
        arrays |= {
            "EMBEDDING": w.token_embedding, "ATTENTION_NORM": w.attention_norm,
            "WQ": w.wq, "WK": w.wk, "WV": w.wv, "WO": w.wo, "FFN_NORM": w.ffn_norm,
            "W1": w.w1, "W2": w.w2, "W3": w.w3, "FINAL_NORM": w.final_norm,
            "CLASSIFIER": classifier, "KEYS": cache.keys, "VALUES": cache.values,
            "COS": cache.cos, "SIN": cache.sin, "COUNTERS": self._counters,
        }  # fmt: skip
        # The keys once more, as the kernel likes them: blocks of 16 positions, (hs, 16) each.
        L, NKV, hs = config.n_layers, config.n_kv_heads, config.head_size
        n_blocks = -(-cache.positions // 16)
        arrays["BLOCKS"] = _lines(L * NKV * n_blocks * hs * 16, np.float32)
        self._blocks = arrays["BLOCKS"].reshape(L, NKV, n_blocks, hs, 16)
        self._keys = cache.keys
        self.remembered = 0  # positions that the blocks hold
        self._arrays = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
        assert self._arrays["KEYS"] is cache.keys  # the kernel writes into the cache itself
        sizes = {
            "C": C, "F": F, "L": config.n_layers, "NH": config.n_heads, "NKV": config.n_kv_heads,
            "HS": config.head_size, "V": V, "POSITIONS": cache.positions,
            "SCRATCH_STRIDE": 4 * scratch,
        }  # fmt: skip
        self._P = np.zeros(step_numba.P_SIZE, np.int64)
        for name, size in sizes.items():
            self._P[getattr(step_numba, name)] = size
        for name, array in self._arrays.items():
            self._P[getattr(step_numba, name)] = array.__array_interface__["data"][0]

    def __call__(self, token: int, pos: int) -> Array:
        """Logits after a token at a position, (1, V)."""
        if self.remembered != pos:  # a prompt has been fed since, or the conversation starts over
            self._remember(pos)
        self.remembered = pos + 1
        self._counters[:] = 0
        if ops_numba.forked:
            self.threads = 1
        if not step_numba.kernel("step")(self._P, token, pos, self.threads):
            self.threads = 1  # the threads did not all come: never wait for them again
        return self.logits[None].copy()

    def _remember(self, positions: int) -> None:
        """Copy the keys of the first positions from the cache into the blocks."""
        L, NKV, _, hs, _ = self._blocks.shape
        n = -(-positions // 16)
        keys = np.zeros((L, 16 * n, NKV, hs), np.float32)
        keys[:, :positions] = self._keys[:, :positions]
        self._blocks[:, :, :n] = keys.reshape(L, n, 16, NKV, hs).transpose(0, 3, 1, 4, 2)


def _lines(size: int, dtype: Any) -> NDArray[Any]:
    """A zeroed array that begins on a cache line."""
    nbytes = size * np.dtype(dtype).itemsize
    room = np.zeros(nbytes + 64, np.uint8)
    start = -room.__array_interface__["data"][0] % 64
    return room[start : start + nbytes].view(dtype)
