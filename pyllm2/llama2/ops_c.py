"""The ops of `ops.py` over csrc/llama2.c: same names, same order, same shapes.

Those of `ops_backward.py` come from `ops_backward_c`.

`Ops("fast")` and `Ops("strict")` are the two builds. Each method checks nothing (the border has)
and hands pointers to C; loops and comments are in csrc/llama2.c.
"""

from __future__ import annotations

from ctypes import Structure, c_int32, c_int64, c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.c_library import Library, floats, int8, int32, pointer
from pyllm2.llama2.ops_backward_c import BackwardOps

Array = NDArray[np.float32]
Int8 = NDArray[np.int8]


class Ops(BackwardOps):
    """One build of the C library, as an ops module."""

    def __init__(self, build: str, threads: int | None = None) -> None:
        super().__init__(build, threads)
        self.build = build
        self._call = Library("llama2", build, threads).call

    def embedding(self, tokens: NDArray[np.integer], table: Array) -> Array:
        tokens, table = int32(tokens), floats(table)
        T, C = len(tokens), table.shape[1]
        out = np.empty((T, C), np.float32)
        self._call("embedding", out, tokens, table, T, C)
        return out

    def rmsnorm(self, x: Array, weight: Array) -> Array:
        x, weight = floats(x), floats(weight)
        out = np.empty_like(x)
        self._call("rmsnorm", out, x, weight, *x.shape)
        return out

    def matmul(self, x: Array, w: Array) -> Array:
        x, w = floats(x), floats(w)
        (T, C), OC = x.shape, len(w)
        out = np.empty((T, OC), np.float32)
        self._call("matmul", out, x, w, T, C, OC)
        return out

    def rope_tables(self, S: int, hs: int) -> tuple[Array, Array]:
        cos, sin = np.empty((S, hs // 2), np.float32), np.empty((S, hs // 2), np.float32)
        self._call("rope_tables", cos, sin, S, hs)
        return cos, sin

    def rope(self, x: Array, cos: Array, sin: Array) -> Array:
        x, cos, sin = floats(x), floats(cos), floats(sin)
        out = np.empty_like(x)
        self._call("rope", out, x, cos, sin, *x.shape)
        return out

    def softmax(self, x: Array) -> Array:
        x = floats(x)
        out = np.empty_like(x)
        C = x.shape[-1]
        self._call("softmax", out, x, x.size // C, C)
        return out

    def attention(self, q: Array, k: Array, v: Array) -> Array:
        q, k, v = floats(q), floats(k), floats(v)
        (T, NH, hs), (P, NKV, _) = q.shape, k.shape
        out, att = np.empty((T, NH * hs), np.float32), np.empty((NH, P), np.float32)
        self._call("attention", out, att, q, k, v, T, P, NH, NKV, hs)
        return out

    def residual(self, x: Array, y: Array) -> Array:
        x, y = floats(x), floats(y)
        out = np.empty_like(x)
        self._call("residual", out, x, y, *x.shape)
        return out

    def swiglu(self, gate: Array, up: Array) -> Array:
        gate, up = floats(gate), floats(up)
        out = np.empty_like(gate)
        self._call("swiglu", out, gate, up, *gate.shape)
        return out

    def quantize(self, x: Array, group_size: int) -> tuple[Int8, Array]:
        x = floats(x)
        T, C = x.shape
        values, scales = np.empty((T, C), np.int8), np.empty((T, C // group_size), np.float32)
        self._call("quantize", values, scales, x, T, C, group_size)
        return values, scales

    def dequantize(self, values: Int8, scales: Array, group_size: int) -> Array:
        values, scales = int8(values), floats(scales)
        out = np.empty(values.shape, np.float32)
        self._call("dequantize", out, values, scales, values.size, group_size)
        return out

    def matmul_q8(
        self, x: Int8, x_scales: Array, w: Int8, w_scales: Array, group_size: int
    ) -> Array:
        x, x_scales, w, w_scales = int8(x), floats(x_scales), int8(w), floats(w_scales)
        (T, C), OC = x.shape, len(w)
        out = np.empty((T, OC), np.float32)
        self._call("matmul_q8", out, x, x_scales, w, w_scales, T, C, OC, group_size)
        return out

    def forward(
        self,
        model: Any,
        tokens: NDArray[np.integer],
        pos: int,
        cache: Any,
        last_only: bool = False,
    ) -> Array:
        """`Llama2.forward` as one call of C: the same ops in the same order, without us between.

        The cache is the one that Python holds; scratch buffers stay with it from call to call.
        """
        tokens = int32(tokens)
        T = len(tokens)
        scratch = getattr(cache, "c_scratch", None)
        if scratch is None or scratch.state.max_tokens < T:
            scratch = cache.c_scratch = _Scratch(model, cache, T)
        logits = np.empty((1 if last_only else T, model.config.vocab_size), np.float32)
        structs = (scratch.state, scratch.config, scratch.weights)
        self._call("forward", logits, *structs, tokens, T, pos, c_int32(not last_only))
        return logits


_CONFIG = (
    "dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len",
)  # fmt: skip
_WEIGHTS = (
    "token_embedding", "attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3",
    "final_norm", "classifier",
)  # fmt: skip
_VECTORS = ("token_embedding", "attention_norm", "ffn_norm", "final_norm")


class _Config(Structure):
    _fields_ = [(name, c_int32) for name in (*_CONFIG, "shared_classifier", "group_size")]


class _Matrix(Structure):
    """llama2_matrix: float32, or int8 values and scales; elements from layer to layer."""

    _fields_ = [
        ("floats", c_void_p),
        ("values", c_void_p),
        ("scales", c_void_p),
        ("stride", c_int64),
    ]


class _Weights(Structure):
    _fields_ = [(name, c_void_p if name in _VECTORS else _Matrix) for name in _WEIGHTS]


class _State(Structure):
    """llama2_state: two sizes, the caches, then buffers of at most max_tokens rows."""

    _fields_ = [
        ("cache_length", c_int64),
        ("max_tokens", c_int64),
        *(
            (name, c_void_p)
            for name in (
                "key_cache", "value_cache", "x", "y", "q", "o", "proj", "gate", "up", "hidden",
                "ffn", "att", "cos", "sin", "input_scales", "input_values",
            )
        ),
    ]  # fmt: skip


def _layers_apart(a: NDArray[Any]) -> NDArray[Any]:
    """The array itself if the matrix of each layer is contiguous, else a contiguous copy."""
    rows_follow = a.strides[-2:] == (a.shape[-1] * a.itemsize, a.itemsize)
    return a if rows_follow else np.ascontiguousarray(a)


class _Scratch:
    """The three structs that llama2_forward reads, and the arrays they point into."""

    def __init__(self, model: Any, cache: Any, T: int) -> None:
        config, w = model.config, model.weights
        matrices = {name: getattr(w, name) for name in _WEIGHTS if name not in _VECTORS}
        group_size = getattr(w.wq, "group_size", 0)  # 0: the matrices are float32
        assert all(getattr(a, "group_size", 0) == group_size for a in matrices.values())
        C, F, S = config.dim, config.hidden_dim, cache.positions
        sizes = dict.fromkeys(("x", "y", "q", "o", "proj", "ffn"), T * C)
        sizes |= dict.fromkeys(("gate", "up", "hidden"), T * F)
        sizes |= dict.fromkeys(("cos", "sin"), T * config.head_size // 2)
        sizes["att"] = config.n_heads * S
        sizes["input_scales"] = T * (max(C, F) // group_size) if group_size else 0
        self.buffers: dict[str, NDArray[Any]] = {
            name: np.empty(size, np.float32) for name, size in sizes.items()
        }
        self.buffers["input_values"] = np.empty(T * max(C, F) if group_size else 0, np.int8)
        self.buffers |= {"key_cache": cache.keys, "value_cache": cache.values}
        self.arrays: list[NDArray[Any]] = []  # what the weights point at: alive as long as we are
        self.weights = _Weights(
            **{name: self._point(floats(getattr(w, name))) for name in _VECTORS},
            **{name: self._matrix(a) for name, a in matrices.items()},
        )
        if w.classifier is None:
            self.weights.classifier = self._matrix(w.token_embedding)
        numbers = (getattr(config, name) for name in _CONFIG)
        self.config = _Config(*numbers, w.classifier is None, group_size)
        pointers = {name: pointer(a) for name, a in self.buffers.items()}
        self.state = _State(cache_length=S, max_tokens=T, **pointers)

    def _point(self, a: NDArray[Any]) -> c_void_p:
        self.arrays.append(a)
        return pointer(a)

    def _matrix(self, w: Any) -> _Matrix:
        """Of float32 an array, of int8 an object with values and scales; layers may be apart."""
        if w is None:
            return _Matrix()
        if not hasattr(w, "group_size"):
            a = floats(w)
            return _Matrix(floats=self._point(a), stride=a.strides[0] // 4)
        values = _layers_apart(np.asarray(w.values, dtype=np.int8))
        scales = floats(w.scales)
        return _Matrix(
            values=self._point(values), scales=self._point(scales), stride=values.strides[0]
        )
