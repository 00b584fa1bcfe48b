"""The ops of `ops.py` in C: the same names, order and shapes, over csrc/llama2.

`Ops("fast")` and `Ops("strict")` are the two builds. The methods do not check values; loops and
comments are in csrc/llama2/ops.c. The last three are whole passes of a model, which give the
results of the composition of the ops.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.compiling.c_library import (
    KeptBuffers,
    Library,
    aligned_floats,
    floats,
    int8,
    int32,
    library,
    uint8,
    writeable,
)
from pyllm2.compiling.pace import Pace

Array = NDArray[np.float32]
Int8 = NDArray[np.int8]
Bytes = NDArray[np.uint8]
Tokens = NDArray[np.integer]

EPS = 1e-5
ROPE_BASE = 10000.0


class Ops:
    """One build of the C library, as an ops module."""

    def __init__(self, build: str, threads: int | None = None) -> None:
        self.build = build
        self._c = library("llama2", build, threads)
        self._paces: dict[Any, Pace] = {}
        self._buffers = KeptBuffers(lambda config, B, T: _Buffers(self._c, config, B, T))

    def embedding(self, tokens: Tokens, table: Array) -> Array:
        tokens, table = int32(tokens), floats(table)
        T, C = len(tokens), table.shape[1]
        out = np.empty((T, C), np.float32)
        self._c.embedding(out, tokens, table, T, C)
        return out

    def embedding_backward(self, dout: Array, tokens: Tokens, dtable: Array) -> Array:
        dout, tokens = floats(dout), int32(tokens)
        dtable = np.array(dtable, np.float32, order="C")
        self._c.embedding_backward(dtable, dout, tokens, *dout.shape)
        return dtable

    def rmsnorm(self, x: Array, weight: Array, eps: float = EPS) -> Array:
        x, weight = floats(x), floats(weight)
        out = np.empty_like(x)
        self._c.rmsnorm(out, x, weight, *x.shape, eps)
        return out

    def rmsnorm_backward(self, dout: Array, x: Array, weight: Array) -> tuple[Array, Array]:
        dout, x, weight = floats(dout), floats(x), floats(weight)
        dx, dweight = np.empty_like(x), np.empty_like(weight)
        self._c.rmsnorm_backward(dx, dweight, dout, x, weight, *x.shape)
        return dx, dweight

    def matmul(self, x: Array, w: Array, b: Array | None = None) -> Array:
        x, w, b = floats(x), floats(w), None if b is None else floats(b)
        (T, C), OC = x.shape, len(w)
        out = np.empty((T, OC), np.float32)
        self._c.matmul(out, x, w, b, T, C, OC)
        return out

    def matmul_backward(self, dout: Array, x: Array, w: Array) -> tuple[Array, Array]:
        dout, x, w = floats(dout), floats(x), floats(w)
        dx, dw = np.empty_like(x), np.empty_like(w)
        self._c.matmul_backward(dx, dw, dout, x, w, *x.shape, len(w))
        return dx, dw

    def rope_tables(
        self,
        S: int,
        hs: int,
        base: float = ROPE_BASE,
        divisors: Array | None = None,
        scale: float = 1.0,
    ) -> tuple[Array, Array]:
        divisors = None if divisors is None else floats(divisors)
        cos, sin = np.empty((S, hs // 2), np.float32), np.empty((S, hs // 2), np.float32)
        self._c.rope_tables(cos, sin, divisors, S, hs, base, scale)
        return cos, sin

    def rope(self, x: Array, cos: Array, sin: Array) -> Array:
        x, cos, sin = floats(x), floats(cos), floats(sin)
        out = np.empty_like(x)
        self._c.rope(out, x, cos, sin, *x.shape)
        return out

    def rope_backward(self, dout: Array, cos: Array, sin: Array) -> Array:
        dout, cos, sin = floats(dout), floats(cos), floats(sin)
        dx = np.empty_like(dout)
        self._c.rope_backward(dx, dout, cos, sin, *dout.shape)
        return dx

    def softmax(self, x: Array) -> Array:
        x = floats(x)
        out = np.empty_like(x)
        C = x.shape[-1]
        self._c.softmax(out, x, x.size // C, C)
        return out

    def attention(self, q: Array, k: Array, v: Array, window: int = 0) -> Array:
        q, k, v = floats(q), floats(k), floats(v)
        (T, NH, hs), (P, NKV, _) = q.shape, k.shape
        out, att = np.empty((T, NH * hs), np.float32), np.empty((NH, P), np.float32)
        self._c.attention(out, att, q, k, v, T, P, NH, NKV, hs, window)
        return out

    def attention_forward(
        self, q: Array, k: Array, v: Array, keep: Array | None = None
    ) -> tuple[Array, Array]:
        q, k, v, keep = floats(q), floats(k), floats(v), None if keep is None else floats(keep)
        (B, T, NH, hs), NKV = q.shape, k.shape[2]
        out, att = np.empty((B, T, NH * hs), np.float32), np.empty((B, NH, T, T), np.float32)
        self._c.attention_forward(out, att, q, k, v, keep, B, T, NH, NKV, hs)
        return out, att

    def attention_backward(
        self, dout: Array, q: Array, k: Array, v: Array, att: Array, keep: Array | None = None
    ) -> tuple[Array, Array, Array]:
        dout, q, k, v, att = map(floats, (dout, q, k, v, att))
        keep = None if keep is None else floats(keep)
        (B, T, NH, hs), NKV = q.shape, k.shape[2]
        dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty_like(v)
        datt, sizes = np.empty((B, NKV, T), np.float32), (B, T, NH, NKV, hs)
        self._c.attention_backward(dq, dk, dv, datt, dout, q, k, v, att, keep, *sizes)
        return dq, dk, dv

    def residual(self, x: Array, y: Array) -> Array:
        x, y = floats(x), floats(y)
        out = np.empty_like(x)
        self._c.residual(out, x, y, *x.shape)
        return out

    def swiglu(self, gate: Array, up: Array) -> Array:
        gate, up = floats(gate), floats(up)
        out = np.empty_like(gate)
        self._c.swiglu(out, gate, up, *gate.shape)
        return out

    def swiglu_backward(self, dout: Array, gate: Array, up: Array) -> tuple[Array, Array]:
        dout, gate, up = floats(dout), floats(gate), floats(up)
        dgate, dup = np.empty_like(gate), np.empty_like(up)
        self._c.swiglu_backward(dgate, dup, dout, gate, up, gate.size)
        return dgate, dup

    def dropout(self, x: Array, keep: Array | None) -> Array:
        if keep is None:
            return x
        x, keep = floats(x), floats(keep)
        out = np.empty_like(x)
        self._c.dropout(out, x, keep, x.size)
        return out

    def crossentropy_forward(self, logits: Array, targets: Tokens) -> tuple[Array, Array]:
        logits, targets = floats(logits), int32(targets)
        losses, probs = np.empty(targets.shape, np.float32), np.empty_like(logits)
        self._c.crossentropy_forward(losses, probs, logits, targets, *logits.shape)
        return losses, probs

    def crossentropy_backward(self, dlosses: Array, probs: Array, targets: Tokens) -> Array:
        dlosses, probs, targets = floats(dlosses), floats(probs), int32(targets)
        dlogits = np.empty_like(probs)
        self._c.crossentropy_backward(dlogits, dlosses, probs, targets, *probs.shape)
        return dlogits

    def quantize(self, x: Array, group_size: int) -> tuple[Int8, Array]:
        x = floats(x)
        T, C = x.shape
        values, scales = np.empty((T, C), np.int8), np.empty((T, C // group_size), np.float32)
        self._c.quantize(values, scales, x, T, C, group_size)
        return values, scales

    def dequantize(self, values: Int8, scales: Array, group_size: int) -> Array:
        values, scales = int8(values), floats(scales)
        out = np.empty(values.shape, np.float32)
        self._c.dequantize(out, values, scales, values.size, group_size)
        return out

    def matmul_q8(
        self, x: Int8, x_scales: Array, w: Int8, w_scales: Array, group_size: int
    ) -> Array:
        x, x_scales, w, w_scales = int8(x), floats(x_scales), int8(w), floats(w_scales)
        (T, C), OC = x.shape, len(w)
        out = np.empty((T, OC), np.float32)
        self._c.matmul_q8(out, x, x_scales, w, w_scales, T, C, OC, group_size)
        return out

    def dequantize_packed(self, w: Bytes, kind: int) -> Array:
        w = uint8(w)
        out = np.empty((len(w), self._packed_numbers(w, kind)), np.float32)
        self._c.dequantize_packed(out, w, kind, *out.shape)
        return out

    def matmul_packed(self, x: Array, w: Bytes, kind: int, b: Array | None = None) -> Array:
        x, w, b = floats(x), uint8(w), None if b is None else floats(b)
        (T, C), OC = x.shape, len(w)
        if self._packed_numbers(w, kind) != C:
            raise ValueError(f"w: {w.shape[1]} bytes per row, x: {C} numbers per row")
        out = np.empty((T, OC), np.float32)
        self._c.matmul_packed(out, x, w, kind, b, T, C, OC)
        return out

    def _packed_numbers(self, w: Bytes, kind: int) -> int:
        """The numbers of a row. Raises ValueError for a kind that C has not."""
        n: int = self._c.packed_numbers(kind, w.shape[1])
        if not n:
            raise ValueError(f"kind {kind} with {w.shape[1]} bytes per row has no kernel")
        return n

    # ---- whole passes --------------------------------------------------------------------------

    def forward(
        self, model: Any, tokens: Tokens, pos: int, cache: Any, last_only: bool = False
    ) -> Array:
        """`Llama2.forward` in one call of C. The buffers stay with the cache between calls."""
        T, state = len(tokens), cache.engine_state
        if state is None or state.buffers.max_tokens < T:
            state = cache.engine_state = _State(self._c, model, cache, T, self._pace(model))
        if T == 1:
            return state.decode(tokens[0], pos)
        tokens = int32(tokens)
        logits = np.empty((1 if last_only else T, model.config.vocab_size), np.float32)
        structs = state.buffers, state.cache, state.config, state.weights
        self._c.forward(logits, *structs, tokens, T, pos, not last_only)
        return logits

    def _pace(self, model: Any) -> Pace:
        """The pace of decoding with a model, which all its conversations share."""
        shape = model.config, type(model.weights.wq)
        return self._paces.setdefault(shape, Pace(self._c.most_threads))

    def losses(self, model: Any, tokens: Tokens, targets: Tokens) -> Array:
        """`TrainableLlama2.losses` in one call of C.

        The activations of the latest shape are kept for the next call. Threads that use this
        object at the same time wait for one another.
        """
        tokens, targets = int32(tokens), int32(targets)
        with self._buffers.of(model.config, *tokens.shape) as buffers:
            return self._losses(buffers, self._parameters(model.params), tokens, targets)

    def add_gradient(
        self, model: Any, tokens: Tokens, targets: Tokens, dloss: float, grads: Any, fresh: bool
    ) -> Array:
        """`TrainableLlama2.add_gradient` in two calls of C, with the buffers of `losses`.

        The gradient of a micro-batch is summed by itself before it is added to grads.
        """
        tokens, targets = int32(tokens), int32(targets)
        gradient = grads if fresh else grads.zeros_like()
        dparams = self._c.struct("parameters", **{n: writeable(gradient[n]) for n in gradient})
        params = self._parameters(model.params)
        with self._buffers.of(model.config, *tokens.shape) as buffers:
            losses = self._losses(buffers, params, tokens, targets)
            structs = dparams, buffers.gradients(), buffers.acts, buffers.config, params
            sizes = tokens.shape
            self._c.training_backward(*structs, tokens, targets, float(dloss), *sizes)
        if not fresh:
            grads.flat += gradient.flat
        return losses

    def _losses(self, buffers: _Buffers, params: Any, tokens: Tokens, targets: Tokens) -> Array:
        structs = buffers.acts, buffers.config, params
        self._c.training_forward(*structs, tokens, targets, *tokens.shape)
        return buffers.losses.reshape(tokens.shape).copy()

    def _parameters(self, params: Any) -> Any:
        return self._c.struct("parameters", **{name: floats(params[name]) for name in params})


class _Buffers:
    """Activations of one batch shape, and the workspace of a backward pass once it is needed."""

    def __init__(self, c: Library, config: Any, B: int, T: int) -> None:
        self._c, self._sizes = c, (B, T)
        self.config = _config(c, config, shared_classifier=1)
        self.acts = c.struct("activations")
        self.memory = aligned_floats(c.activation_floats(self.config, B, T))
        c.activations_bind(self.acts, self.config, self.memory, B, T)
        self.losses = self.memory[-B * T :]  # the last of the buffers
        self.workspace: Array | None = None

    def gradients(self) -> Any:
        """The workspace, with arbitrary contents."""
        B, T = self._sizes
        if self.workspace is None:
            self.workspace = aligned_floats(self._c.gradient_floats(self.config, B, T))
        gradients = self._c.struct("gradients")
        self._c.gradients_bind(gradients, self.config, self.workspace, B, T)
        return gradients


class _State:
    """The structs that `llama2_forward` reads, over the arrays of a model and a cache."""

    def __init__(self, c: Library, model: Any, cache: Any, T: int, pace: Pace) -> None:
        config, w, S = model.config, model.weights, cache.positions
        matrices = {name: getattr(w, name) for name in "wq wk wv wo w1 w2 w3 classifier".split()}
        vectors = "attention_norm ffn_norm final_norm".split()
        vectors += "bq bk bv bo b1 b2 b3 q_norm k_norm".split()
        group_size = getattr(w.wq, "group_size", 0)  # 0: the matrices are float32
        shared = matrices["classifier"] is None
        if shared:
            matrices["classifier"] = w.token_embedding
        assert all(getattr(a, "group_size", 0) == group_size for a in matrices.values())
        fields = {name: _matrix(c, a) for name, a in matrices.items()}
        for name in vectors:
            if (array := getattr(w, name)) is not None:
                fields[name] = floats(array)
        table = w.token_embedding
        if hasattr(table, "rows"):  # in blocks
            fields["packed_embedding"] = uint8(table.rows)
            fields["embedding_kind"] = table.kind
        else:
            fields["token_embedding"] = floats(table)
        self.weights = c.struct("weights", **fields)
        self.config = _config(c, config, shared_classifier=shared, group_size=group_size)
        tables = {"cos": cache.cos, "sin": cache.sin}
        self.cache = c.struct("cache", positions=S, keys=cache.keys, values=cache.values, **tables)
        self.buffers = c.struct("state")
        self.memory = aligned_floats(c.state_floats(self.config, S, T))
        c.state_bind(self.buffers, self.config, self.memory, S, T)
        self._pace = pace
        self._token, self._vocab_size = np.empty(1, np.int32), config.vocab_size
        structs = {"state": self.buffers, "cache": self.cache}
        structs |= {"config": self.config, "weights": self.weights}
        self._decode = c.prepared("forward", **structs, tokens=self._token, T=1, every_token=0)

    def decode(self, token: int, pos: int) -> Array:
        """The logits after one token at a position, (1, V)."""
        logits = np.empty((1, self._vocab_size), np.float32)
        self._token[0] = token
        if self._pace.most == 1:
            self._decode(logits, pos)
        else:
            began = perf_counter()
            self._decode(logits, pos, threads=self._pace.threads)
            self._pace.record(perf_counter() - began)
        return logits


def _config(c: Library, config: Any, **more: int) -> Any:
    """The C struct of a `Llama2Config`; `more` are fields that the Python class lacks."""
    numbers = {name: getattr(config, name) for name in c.fields("config") if hasattr(config, name)}
    numbers["windows"] = int32(config.windows) if config.windows else None
    return c.struct("config", **{**numbers, **more})


def _matrix(c: Library, w: Any) -> Any:
    """The C struct of float32 matrices, or of int8 ones: an object with values and scales; or of
    blocks: one matrix with rows and a kind, or a stack with data, starts and kinds."""
    if hasattr(w, "starts"):
        kinds = int32(w.kinds)
        return c.struct("matrix", blocks=w.data, starts=w.starts, kinds=kinds)
    if hasattr(w, "kind"):
        first, kind = np.zeros(1, np.int64), int32([w.kind])
        return c.struct("matrix", blocks=uint8(w.rows), starts=first, kinds=kind)
    if not hasattr(w, "group_size"):
        a = floats(w)
        return c.struct("matrix", floats=a, stride=a.strides[0] // 4)
    values = _rows_contiguous(np.asarray(w.values, dtype=np.int8))
    first = values if values.ndim == 2 else values[0]  # layers may be apart, as in a file
    return c.struct("matrix", values=first, scales=floats(w.scales), stride=values.strides[0])


def _rows_contiguous(a: NDArray[Any]) -> NDArray[Any]:
    """The array itself if each layer's matrix is contiguous, else a contiguous copy."""
    contiguous = a.strides[-2:] == (a.shape[-1] * a.itemsize, a.itemsize)
    return a if contiguous else np.ascontiguousarray(a)
