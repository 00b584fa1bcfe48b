"""The Numba engine of Llama-2: whole passes for inference and training, over the plain ops.

One token is one kernel (`decode`). A prompt is the composition of ops in `Llama2.forward`, with
BLAS for the products and vector code for the rest. Both read and write the same cache.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from pyllm2.compiling import numba_build
from pyllm2.compiling.pace import Pace
from pyllm2.compiling.processors import processors
from pyllm2.fast.gemm import aligned_zeros
from pyllm2.fast.llama2 import decode
from pyllm2.fast.llama2.decode import Of, Slot
from pyllm2.fast.llama2.training import Buffers, backward, forward
from pyllm2.fast.training_step import TrainingStep
from pyllm2.parameters import Quantized

Array = NDArray[np.float32]

# Weights per thread below which one thread is faster: they are read from the caches, and barriers
# cost more than a second thread gains.
MIN_BYTES_PER_THREAD = 2**21


def training_step(plain: Any, threads: int | None) -> TrainingStep:
    """`losses` and `add_gradient` as whole passes."""

    def new_buffers(config: Any, B: int, T: int, threads: int, trains: bool) -> Buffers:
        tables = plain.rope_tables(T, config.head_size)
        return Buffers(config, B, T, threads, trains, *tables)

    return TrainingStep(plain, threads, new_buffers, forward, backward, min_target=-1)


class Decoding:
    """`forward` as a whole pass, over the plain ops of the fast build."""

    def __init__(self, plain: Any, threads: int | None = None) -> None:
        self.plain, self.threads = plain, threads
        self._paces: dict[tuple[int, int], Pace] = {}

    def forward(
        self,
        model: Any,
        tokens: NDArray[np.integer],
        pos: int,
        cache: Any,
        last_only: bool = False,
    ) -> Array:
        """`Llama2.forward` as a whole pass, tested equal to the composition of plain ops."""
        step = cache.engine_state
        if len(tokens) == 1:
            if step is None:
                step = cache.engine_state = Step(model, cache, self._pace(model))
            return step(int(tokens[0]), pos)
        if step is not None:
            step.remembered = min(step.remembered, pos)
        return model.with_ops(_PromptOps(self.plain)).forward(tokens, pos, cache, last_only)

    def _pace(self, model: Any) -> Pace:
        """The pace of a model's steps, which all its conversations share."""
        nbytes = sum(a.nbytes for a in vars(model.weights).values() if a is not None)
        most = min(numba.get_num_threads(), processors(), nbytes // MIN_BYTES_PER_THREAD)
        most = self.threads or max(1, most)
        return self._paces.setdefault((most, nbytes), Pace(most))


_PROMPT_KERNELS = ("rmsnorm", "swiglu", "attention", "quantize", "matmul_q8")


class _PromptOps:
    """The plain ops, with BLAS for products and vector code where `exp` and sums dominate."""

    def __init__(self, plain: Any) -> None:
        self._plain = plain

    def __getattr__(self, name: str) -> Any:
        if name in _PROMPT_KERNELS and not numba_build.forked:
            return getattr(decode, f"prompt_{name}")
        return getattr(self._plain, name)

    @staticmethod
    def matmul(x: Array, w: Array, b: Array | None = None) -> Array:
        return x @ w.T if b is None else x @ w.T + b

    @staticmethod
    def residual(x: Array, y: Array) -> Array:
        return x + y


class Step:
    """The decoding kernel bound to a model and a cache: buffers, addresses, number of threads."""

    def __init__(self, model: Any, cache: Any, pace: Pace) -> None:
        config, w = model.config, model.weights
        C, F, V = config.dim, config.hidden_dim, config.vocab_size
        L, NKV, hs, Q = config.n_layers, config.n_kv_heads, config.head_size, config.query_dim
        self.pace = pace
        self.alone = pace.most == 1  # whether one thread does everything
        self._kernel = decode.step_q8 if isinstance(w.wq, Quantized) else decode.step
        group_size = w.wq.group_size if isinstance(w.wq, Quantized) else 0
        scratch = -(-(C + cache.positions + 32) // 16) * 16  # floats per thread, whole cache lines
        # Per thread, a quantised input: values, then scales, each on their own cache lines.
        int8_scales = -(-max(C, F, Q) // 64) * 64 if group_size else 0
        int8_stride = int8_scales + (-(-int8_scales // (16 * group_size)) * 64 if group_size else 0)

        self._at = np.zeros(decode.N_SLOTS, np.int64)
        self._arrays: list[NDArray[Any]] = []  # keeps everything that the addresses point to
        sizes = {Slot.C: C, Slot.F: F, Slot.L: L, Slot.NH: config.n_heads, Slot.NKV: NKV}
        sizes |= {Slot.HS: hs, Slot.V: V, Slot.POSITIONS: cache.positions}
        sizes |= {Slot.GROUP_SIZE: group_size, Slot.SCRATCH_STRIDE: 4 * scratch}
        sizes |= {Slot.INT8_STRIDE: int8_stride, Slot.INT8_SCALES: int8_scales}
        for slot, size in sizes.items():
            self._at[slot] = size
        norms = {
            Slot.ATTENTION_NORM: w.attention_norm,
            Slot.FFN_NORM: w.ffn_norm,
            Slot.FINAL_NORM: w.final_norm,
        }
        if w.q_norm is not None:
            norms |= {Slot.Q_NORM: w.q_norm, Slot.K_NORM: w.k_norm}
        windows = np.array([config.window(layer) for layer in range(L)], np.int64)
        beyond = {
            Slot.EPSILON: np.array([config.norm_epsilon], np.float32),
            Slot.WINDOWS: windows,
        }
        kept = {Slot.KEYS: cache.keys, Slot.VALUES: cache.values}
        tables = {Slot.EMBEDDING: w.token_embedding, Slot.COS: cache.cos, Slot.SIN: cache.sin}
        for slot, array in (norms | beyond | kept | tables).items():
            self._place(slot, np.ascontiguousarray(array))
        assert any(a is cache.keys for a in self._arrays)  # the kernel writes into the cache

        for slot in (Slot.X, Slot.DELTA):
            self._place(slot, aligned_zeros(C, np.float32))
        for slot in (Slot.Q, Slot.OUT):
            self._place(slot, aligned_zeros(Q, np.float32))
        for slot in (Slot.GATE, Slot.UP, Slot.Z):
            self._place(slot, aligned_zeros(F, np.float32))
        self._place(Slot.SCRATCH, aligned_zeros(scratch * pace.most, np.float32))
        self._place(Slot.INT8, aligned_zeros(int8_stride * pace.most, np.int8))
        self.logits = self._place(Slot.LOGITS, aligned_zeros(V, np.float32))
        self._counters = self._place(Slot.COUNTERS, aligned_zeros(64, np.int64))
        # The keys again, in the layout of the kernel: blocks of 16 positions, (hs, 16) each.
        n_blocks = -(-cache.positions // 16)
        blocks = self._place(Slot.BLOCKS, aligned_zeros(L * NKV * n_blocks * hs * 16, np.float32))
        self._blocks = blocks.reshape(L, NKV, n_blocks, hs, 16)
        self._keys = cache.keys
        self.remembered = 0  # positions that the blocks hold

        for name in "wq wk wv wo w1 w2 w3".split():
            slot = Slot[name.upper()]
            self._place_matrix(slot, getattr(w, name), group_size)
            bias = getattr(w, f"b{name[1]}")
            if bias is not None:
                bias = self._place(slot + Of.BIAS, np.ascontiguousarray(bias, np.float32))
                self._at[slot + Of.BIAS_LAYER] = bias.strides[0]
        classifier = w.token_embedding if w.classifier is None else w.classifier
        self._place_matrix(Slot.CLASSIFIER, classifier, group_size)

    def _place(self, slot: int, array: NDArray[Any]) -> NDArray[Any]:
        """Keep an array and store its address; returns the array."""
        self._arrays.append(array)
        self._at[slot] = array.__array_interface__["data"][0]
        return array

    def _place_matrix(self, slot: Slot, matrix: Any, group_size: int) -> None:
        """Store the addresses and layer strides of a matrix. Layers may have gaps between them."""
        assert getattr(matrix, "group_size", 0) == group_size
        values = matrix.values if isinstance(matrix, Quantized) else matrix
        if not values[0].flags.c_contiguous:
            values = np.ascontiguousarray(values)
        self._at[slot + Of.LAYER] = self._place(slot, values).strides[0]
        if isinstance(matrix, Quantized):
            scales = np.ascontiguousarray(matrix.scales, np.float32)
            self._at[slot + Of.SCALES_LAYER] = self._place(slot + Of.SCALES, scales).strides[0]

    def __call__(self, token: int, pos: int) -> Array:
        """Logits after a token at a position, (1, V)."""
        if self.remembered != pos:  # a prompt has been fed in between, or an earlier position
            self._remember(pos)
        self.remembered = pos + 1
        self._counters[:] = 0
        if self.alone or numba_build.forked:
            self._kernel(self._at, token, pos, 1)
        else:
            began = perf_counter()
            # If not all threads arrived, never wait for them again.
            self.alone = not self._kernel(self._at, token, pos, self.pace.threads)
            self.pace.record(perf_counter() - began)
        return self.logits[None].copy()

    def _remember(self, positions: int) -> None:
        """Copy the keys of the first positions from the cache into the blocks."""
        L, NKV, _, hs, _ = self._blocks.shape
        n = -(-positions // 16)
        keys = np.zeros((L, 16 * n, NKV, hs), np.float32)
        keys[:, :positions] = self._keys[:, :positions]
        self._blocks[:, :, :n] = keys.reshape(L, n, 16, NKV, hs).transpose(0, 3, 1, 4, 2)
