"""The Numba engine of Llama-2: whole passes for inference and training, over the plain ops.

One token, or a few together, is one kernel (`decode`). A long prompt is the composition of ops in
`Llama2.forward`, with BLAS for the products and vector code for the rest. Both read and write the
same cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, cached_property
from itertools import count
from time import perf_counter
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from pyllm2.compiling import numba_build
from pyllm2.compiling.pace import Pace
from pyllm2.compiling.processors import processors
from pyllm2.fast.gemm import aligned_zeros
from pyllm2.fast.llama2 import decode, decode_packed
from pyllm2.fast.llama2.decode import COLUMNS, Column, Of, Slot
from pyllm2.fast.llama2.training import Buffers, backward, forward
from pyllm2.fast.training_step import TrainingStep
from pyllm2.formats.gguf_blocks import TYPES
from pyllm2.parameters import Packed, PackedLayers, Quantized

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


# A prompt of so many tokens, or fewer, is fed COLUMNS at a time to the kernel that decodes; BLAS is
# quicker for longer ones.
SHORT = 2 * COLUMNS


class Decoding:
    """`forward` and `forward_each` as whole passes, over the plain ops of the fast build."""

    def __init__(self, plain: Any, threads: int | None = None) -> None:
        self.plain, self.threads = plain, threads
        self._paces: dict[tuple[int, int, int], Pace] = {}

    def forward(
        self,
        model: Any,
        tokens: NDArray[np.integer],
        pos: int,
        cache: Any,
        last_only: bool = False,
    ) -> Array:
        """`Llama2.forward` as a whole pass, tested equal to the composition of plain ops."""
        T = len(tokens)
        if T > SHORT:
            if cache.engine_state is not None:
                cache.engine_state.forget(pos)
            return model.with_ops(_PromptOps(self.plain)).forward(tokens, pos, cache, last_only)
        conversation = cache.engine_state or self._conversation(model, cache)
        columns = [(i, pos + t, conversation) for t, i in enumerate(tokens.tolist())]
        if T <= COLUMNS:
            return conversation.step(columns, T - 1 if last_only else 0)
        pieces = [columns[begin : begin + COLUMNS] for begin in range(0, T, COLUMNS)]
        logits = [conversation.step(p, len(p) - 1 if last_only else 0) for p in pieces]
        return logits[-1] if last_only else np.concatenate(logits)

    def forward_each(
        self, model: Any, tokens: NDArray[np.integer], positions: Sequence[int], caches: Any
    ) -> Array:
        """`Llama2.forward_each` as a whole pass, with the bits of `forward` on each token alone."""
        conversations = [self._conversation(model, cache) for cache in caches]
        columns = list(zip(tokens.tolist(), positions, conversations, strict=True))
        most = max(c.positions for c in conversations)
        step = next(c.step for c in conversations if c.positions == most)
        pieces = range(0, len(columns), COLUMNS)
        return np.concatenate([step(columns[begin : begin + COLUMNS]) for begin in pieces])

    def _conversation(self, model: Any, cache: Any) -> Conversation:
        if cache.engine_state is None:
            cache.engine_state = Conversation(cache, self._new_step(model, cache.positions))
        found: Conversation = cache.engine_state
        return found

    def _new_step(self, model: Any, positions: int) -> Callable[[], Step]:
        """A function that makes a step of conversations with at most so many positions.

        All conversations share the paces of a model's steps.
        """
        nbytes = sum(a.nbytes for a in vars(model.weights).values() if a is not None)

        def pace(columns: int) -> Pace:
            most = min(numba.get_num_threads(), processors())
            most = self.threads or max(1, min(most, nbytes * columns // MIN_BYTES_PER_THREAD))
            return self._paces.setdefault((most, nbytes, columns), Pace(most))

        return lambda: Step(model, positions, pace)


PANEL = 2**18  # numbers of a matrix in blocks that are expanded at once
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

    def dequantize_packed(self, w: Any, kind: int) -> Array:
        if numba_build.forked:
            expanded: Array = self._plain.dequantize_packed(w, kind)
            return expanded
        block = TYPES[kind]
        out = np.empty((len(w), w.shape[1] // block.nbytes * block.numbers), np.float32)
        decode_packed.prompt_dequantize_packed(out, w, kind)
        return out

    def matmul_packed(self, x: Array, w: Any, kind: int, b: Array | None = None) -> Array:
        """Rows of w are expanded a panel at a time, which is still in the cache for the product."""
        out, step = np.empty((len(x), len(w)), np.float32), max(1, PANEL // x.shape[1])
        for first in range(0, len(w), step):
            rows = slice(first, first + step)
            panel = self.dequantize_packed(w[rows], kind)
            np.matmul(x, panel.T, out=out[:, rows])
        return out if b is None else out + b

    @staticmethod
    def residual(x: Array, y: Array) -> Array:
        return x + y


def _is_packed(weights: Any) -> bool:
    """Whether some matrices are in blocks."""
    return any(isinstance(a, Packed | PackedLayers) for a in vars(weights).values())


class Conversation:
    """A cache as the kernel needs it: its addresses, and the keys again, in blocks.

    new_step: makes the step that feeds the cache alone, when that is asked for
    serial: a number that no other conversation has: a step must not keep it, and its cache, alive
    """

    _serials = count()

    def __init__(self, cache: Any, new_step: Callable[[], Step]) -> None:
        self.serial = next(self._serials)
        L, positions, NKV, hs = cache.keys.shape
        n_blocks = -(-positions // 16)
        blocks = aligned_zeros(L * NKV * n_blocks * hs * 16, np.float32)
        self._blocks = blocks.reshape(L, NKV, n_blocks, hs, 16)
        self._keys, self.positions = cache.keys, positions
        self._arrays = cache.keys, cache.values, blocks, cache.cos, cache.sin
        assert all(a.flags.c_contiguous and a.dtype == np.float32 for a in self._arrays)
        fields = [positions, *(a.__array_interface__["data"][0] for a in self._arrays)]
        self.fields = dict(enumerate(fields, int(Column.POSITIONS)))  # of the table of columns
        self._remembered = 0  # positions that the blocks hold
        self._new_step = new_step

    @cached_property
    def step(self) -> Step:
        return self._new_step()

    def forget(self, pos: int) -> None:
        """Something else than a step writes into the cache, from a position on."""
        self._remembered = min(self._remembered, pos)

    def feed(self, pos: int) -> None:
        """The step writes a position. Copies the keys before it into the blocks, if need be."""
        if self._remembered < pos:
            L, NKV, _, hs, _ = self._blocks.shape
            begin, end = self._remembered // 16, -(-pos // 16)
            keys = np.zeros((L, 16 * (end - begin), NKV, hs), np.float32)
            keys[:, : pos - 16 * begin] = self._keys[:, 16 * begin : pos]
            keys = keys.reshape(L, end - begin, 16, NKV, hs)
            self._blocks[:, :, begin:end] = keys.transpose(0, 3, 1, 4, 2)
        self._remembered = pos + 1


class Step:
    """The decoding kernel bound to a model: buffers, addresses, number of threads.

    positions: that a conversation has at most   pace: the pace for a number of columns
    """

    def __init__(self, model: Any, positions: int, pace: Callable[[int], Pace]) -> None:
        config, w = model.config, model.weights
        C, F, V = config.dim, config.hidden_dim, config.vocab_size
        L, NKV, hs, Q = config.n_layers, config.n_kv_heads, config.head_size, config.query_dim
        self._pace = cache(pace)
        most = pace(COLUMNS).most
        self.alone = most == 1  # whether one thread does everything
        packed = _is_packed(w)
        self._kernel = decode_packed.step_packed if packed else decode.step
        if isinstance(w.wq, Quantized):
            self._kernel = decode.step_q8
        group_size = w.wq.group_size if isinstance(w.wq, Quantized) else 0
        inputs = -(-(positions + 32) // 16) * 16  # floats of a thread's scores, whole cache lines
        scratch = inputs + -(-COLUMNS * C // 16) * 16
        # A quantised input: values, then scales, each on their own cache lines.
        int8_scales = -(-max(C, F, Q) // 64) * 64 if group_size else 0
        int8_stride = int8_scales + (-(-int8_scales // (16 * group_size)) * 64 if group_size else 0)
        # Four expanded rows of a matrix in blocks, then the inputs.
        expanded = -(-max(C, F, Q) // 16) * 16 if packed else 0

        self._at = np.zeros(decode.N_SLOTS, np.int64)
        self._arrays: list[NDArray[Any]] = []  # keeps everything that the addresses point to
        sizes = {Slot.C: C, Slot.F: F, Slot.L: L, Slot.NH: config.n_heads, Slot.NKV: NKV}
        sizes |= {Slot.HS: hs, Slot.V: V, Slot.GROUP_SIZE: group_size}
        sizes |= {Slot.SCRATCH_STRIDE: 4 * scratch, Slot.SCRATCH_INPUTS: 4 * inputs}
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
        # An embedding in blocks: `__call__` expands the row of each column's token.
        self._packed_table: Packed | None = None
        self._expanded_rows = np.empty((0, C), np.float32)
        if isinstance(w.token_embedding, Packed):
            self._packed_table = w.token_embedding
            self._expanded_rows = aligned_zeros(COLUMNS * C, np.float32).reshape(COLUMNS, C)
            beyond[Slot.EMBEDDING] = self._expanded_rows
        else:
            beyond[Slot.EMBEDDING] = w.token_embedding
        for slot, array in (norms | beyond).items():
            self._place(slot, np.ascontiguousarray(array))

        kv = NKV * hs
        rows = {Slot.X: C, Slot.DELTA: C, Slot.Q: Q, Slot.OUT: Q, Slot.K: kv, Slot.VALUE: kv}
        rows |= {Slot.GATE: F, Slot.UP: F, Slot.Z: F, Slot.LOGITS: V}
        for slot, width in rows.items():
            self._place(slot, aligned_zeros(COLUMNS * width, np.float32))
        self._logits = self._arrays[-1].reshape(COLUMNS, V)
        self._place(Slot.SCRATCH, aligned_zeros(scratch * most, np.float32))
        self._place(Slot.INT8, aligned_zeros(int8_stride * COLUMNS * most, np.int8))
        self._place(Slot.EXPANDED, aligned_zeros((4 + COLUMNS) * expanded * most, np.float32))
        self._at[Slot.EXPANDED_STRIDE] = 4 * (4 + COLUMNS) * expanded
        self._at[Slot.EXPANDED_INPUTS] = 16 * expanded
        self._counters = self._place(Slot.COUNTERS, aligned_zeros(64, np.int64))
        table = self._place(Slot.TABLE, np.zeros(COLUMNS * decode.N_FIELDS, np.int64))
        self._table = table.data  # quicker than an array for single numbers
        self._known = [-1] * COLUMNS  # serial numbers of those whose fields are in the table

        place_matrix = self._place_packed if packed else self._place_matrix
        for name in "wq wk wv wo w1 w2 w3".split():
            slot = Slot[name.upper()]
            place_matrix(slot, getattr(w, name), group_size)
            bias = getattr(w, f"b{name[1]}")
            if bias is not None:
                bias = self._place(slot + Of.BIAS, np.ascontiguousarray(bias, np.float32))
                self._at[slot + Of.BIAS_LAYER] = bias.strides[0]
        classifier = w.token_embedding if w.classifier is None else w.classifier
        place_matrix(Slot.CLASSIFIER, classifier, group_size)

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

    def _place_packed(self, slot: Slot, matrix: Any, _: int) -> None:
        """Store the address of a table of each layer's matrix: address and kind."""
        if isinstance(matrix, Packed):
            layers = [(np.ascontiguousarray(matrix.rows), matrix.kind)]
        elif isinstance(matrix, PackedLayers):
            layers = [(matrix.rows(n), int(kind)) for n, kind in enumerate(matrix.kinds)]
        else:
            stack = matrix if matrix.ndim == 3 else matrix[None]
            layers = [(np.ascontiguousarray(one, np.float32), 0) for one in stack]
        self._arrays += [rows for rows, _ in layers]
        table = [(rows.__array_interface__["data"][0], kind) for rows, kind in layers]
        self._place(slot, np.array(table, np.int64))

    def __call__(self, columns: Sequence[tuple[int, int, Conversation]], first: int = 0) -> Array:
        """Feed at most COLUMNS tokens: token, position, conversation.

        Positions of one conversation follow one another.
        ->   logits after columns first, first + 1, …, (K - first, V)
        """
        K = len(columns)
        for k, (token, pos, conversation) in enumerate(columns):
            row = k * decode.N_FIELDS
            if self._known[k] != conversation.serial:
                for field, value in conversation.fields.items():
                    self._table[row + field] = value
                self._known[k] = conversation.serial
            if self._packed_table is not None:
                kind = TYPES[self._packed_table.kind]
                kind.expand(self._packed_table.rows[token], self._expanded_rows[k])
                token = k
            self._table[row] = token  # Column.TOKEN
            self._table[row + 1] = pos  # Column.POS
            conversation.feed(pos)
        self._counters[:] = 0
        if self.alone or numba_build.forked:
            self._kernel(self._at, K, first, 1)
        else:
            pace, began = self._pace(K), perf_counter()
            # If not all threads arrived, never wait for them again.
            self.alone = not self._kernel(self._at, K, first, pace.threads)
            pace.record(perf_counter() - began)
        return self._logits[: K - first].copy()
