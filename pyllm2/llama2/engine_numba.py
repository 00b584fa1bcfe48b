"""The Numba backend as a user meets it: the plain ops, and a `forward` that goes the fast ways.

One token: the whole step as one kernel (`step_numba`). A prompt: the composition of ops that is
`Llama2.forward`, with BLAS for the large products. Both read and write the same cache.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from pyllm2 import numba_build
from pyllm2.llama2 import ops_numba, step_numba, training_numba
from pyllm2.llama2.quantized import Quantized
from pyllm2.llama2.room_numba import Room
from pyllm2.training.whole_step_numba import WholeStep

Array = NDArray[np.float32]

# A model whose weights take less than this is quicker on one thread: it is read from the caches,
# and two threads spend more on meeting than they gain.
BYTES_WORTH_A_THREAD = 2**21


class FastOps(ops_numba.Ops):
    """The fast build of `ops_numba`, the whole forward, and the whole step of training."""

    def __init__(self, threads: int | None = None) -> None:
        super().__init__("fast")
        self.threads = threads
        plain: Any = ops_numba.Ops("fast", threads)

        def new_room(config: Any, B: int, T: int, threads: int, trains: bool) -> Room:
            tables = plain.rope_tables(T, config.head_size)
            return Room(config, B, T, threads, trains, *tables)

        whole = WholeStep(
            plain, threads, new_room, training_numba.forward, training_numba.backward,
            least_target=-1,
        )  # fmt: skip
        self.losses, self.add_gradient = whole.losses, whole.add_gradient

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


_PROMPT_KERNELS = ("rmsnorm", "swiglu", "attention", "quantize", "matmul_q8")


class _PromptOps:
    """The plain ops, but products by BLAS, and vector code where `exp` and sums take the time."""

    def __init__(self, ops: FastOps) -> None:
        self._ops = ops

    def __getattr__(self, name: str) -> Any:
        if name in _PROMPT_KERNELS and not numba_build.forked:
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
        matrices = {
            "WQ": w.wq, "WK": w.wk, "WV": w.wv, "WO": w.wo, "W1": w.w1, "W2": w.w2, "W3": w.w3,
            "CLASSIFIER": w.token_embedding if w.classifier is None else w.classifier,
        }  # fmt: skip
        self._kernel = "step_q8" if isinstance(w.wq, Quantized) else "step"
        group_size = w.wq.group_size if isinstance(w.wq, Quantized) else 0
        assert all(getattr(m, "group_size", 0) == group_size for m in matrices.values())
        # Per thread, a quantised input: values, then scales, each on lines of its own.
        int8_scales = -(-max(C, F) // 64) * 64 if group_size else 0
        int8_stride = int8_scales + (-(-int8_scales // (16 * group_size)) * 64 if group_size else 0)
        arrays["INT8"] = _lines(int8_stride * self.threads, np.int8)
        arrays |= {
            "EMBEDDING": w.token_embedding, "ATTENTION_NORM": w.attention_norm,
            "FFN_NORM": w.ffn_norm, "FINAL_NORM": w.final_norm,
            "KEYS": cache.keys, "VALUES": cache.values,
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
            "SCRATCH_STRIDE": 4 * scratch, "GROUP_SIZE": group_size,
            "INT8_STRIDE": int8_stride, "INT8_SCALES": int8_scales,
        }  # fmt: skip
        self._P = np.zeros(step_numba.P_SIZE, np.int64)
        self._held: list[NDArray[Any]] = []  # what the addresses of matrices point into
        for name, size in sizes.items():
            self._P[getattr(step_numba, name)] = size
        for name, array in self._arrays.items():
            self._P[getattr(step_numba, name)] = _address(array)
        for name, matrix in matrices.items():
            self._place(getattr(step_numba, name), matrix)

    def _place(self, at: int, matrix: Any) -> None:
        """Write down where a matrix is. Layers may lie apart by more than they take."""
        values = matrix.values if isinstance(matrix, Quantized) else matrix
        if not values[0].flags.c_contiguous:
            values = np.ascontiguousarray(values)
        self._P[at], self._P[at + step_numba.LAYER] = _address(values), values.strides[0]
        self._held.append(values)
        if isinstance(matrix, Quantized):
            scales = np.ascontiguousarray(matrix.scales, np.float32)
            self._P[at + step_numba.SCALES] = _address(scales)
            self._P[at + step_numba.SCALES_LAYER] = scales.strides[0]
            self._held.append(scales)

    def __call__(self, token: int, pos: int) -> Array:
        """Logits after a token at a position, (1, V)."""
        if self.remembered != pos:  # a prompt has been fed since, or the conversation starts over
            self._remember(pos)
        self.remembered = pos + 1
        self._counters[:] = 0
        if numba_build.forked:
            self.threads = 1
        if not step_numba.kernel(self._kernel)(self._P, token, pos, self.threads):
            self.threads = 1  # the threads did not all come: never wait for them again
        return self.logits[None].copy()

    def _remember(self, positions: int) -> None:
        """Copy the keys of the first positions from the cache into the blocks."""
        L, NKV, _, hs, _ = self._blocks.shape
        n = -(-positions // 16)
        keys = np.zeros((L, 16 * n, NKV, hs), np.float32)
        keys[:, :positions] = self._keys[:, :positions]
        self._blocks[:, :, :n] = keys.reshape(L, n, 16, NKV, hs).transpose(0, 3, 1, 4, 2)


def _address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])


def _lines(size: int, dtype: Any) -> NDArray[Any]:
    """A zeroed array that begins on a cache line."""
    nbytes = size * np.dtype(dtype).itemsize
    room = np.zeros(nbytes + 64, np.uint8)
    start = -room.__array_interface__["data"][0] % 64
    return room[start : start + nbytes].view(dtype)
