"""The ops of `ops_backward.py` over csrc/llama2_backward.c: same names, same order, same shapes.

`BackwardOps` is the half of `ops_c.Ops` that only training needs. Its library is loaded when
something of it is called first. Each method checks nothing (the border has) and hands pointers to
C; loops and comments are in csrc/llama2_backward.c, both passes in csrc/llama2_training.c.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import Structure, c_int32, c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.c_library import Library, floats, int32, pointer, written_in_place

Array = NDArray[np.float32]
Tokens = NDArray[np.integer]
Shapes = dict[str, tuple[int, ...]]


class BackwardOps:
    """The backward ops of one build, and both passes of the whole model as one call each."""

    def __init__(self, build: str, threads: int | None = None) -> None:
        self._backward_build = build, threads
        self._backward_call: Callable[..., Any] | None = None
        self._buffers: _Buffers | None = None  # of the last shape that a whole pass had

    def embedding_backward(self, dout: Array, tokens: Tokens, dtable: Array) -> Array:
        dout, tokens = floats(dout), int32(tokens)
        dtable = np.array(dtable, np.float32, order="C")
        self._backward("embedding_backward", dtable, dout, tokens, *dout.shape)
        return dtable

    def rmsnorm_backward(self, dout: Array, x: Array, weight: Array) -> tuple[Array, Array]:
        dout, x, weight = floats(dout), floats(x), floats(weight)
        dx, dweight = np.empty_like(x), np.empty_like(weight)
        self._backward("rmsnorm_backward", dx, dweight, dout, x, weight, *x.shape)
        return dx, dweight

    def matmul_backward(self, dout: Array, x: Array, w: Array) -> tuple[Array, Array]:
        dout, x, w = floats(dout), floats(x), floats(w)
        dx, dw = np.empty_like(x), np.empty_like(w)
        self._backward("matmul_backward", dx, dw, dout, x, w, *x.shape, len(w))
        return dx, dw

    def rope_backward(self, dout: Array, cos: Array, sin: Array) -> Array:
        dout, cos, sin = floats(dout), floats(cos), floats(sin)
        dx = np.empty_like(dout)
        self._backward("rope_backward", dx, dout, cos, sin, *dout.shape)
        return dx

    def attention_forward(
        self, q: Array, k: Array, v: Array, keep: Array | None = None
    ) -> tuple[Array, Array]:
        q, k, v, keep = floats(q), floats(k), floats(v), None if keep is None else floats(keep)
        (B, T, NH, hs), NKV = q.shape, k.shape[2]
        out, att = np.empty((B, T, NH * hs), np.float32), np.empty((B, NH, T, T), np.float32)
        self._backward("attention_forward", out, att, q, k, v, keep, B, T, NH, NKV, hs)
        return out, att

    def attention_backward(
        self, dout: Array, q: Array, k: Array, v: Array, att: Array, keep: Array | None = None
    ) -> tuple[Array, Array, Array]:
        dout, q, k, v, att = map(floats, (dout, q, k, v, att))
        keep = None if keep is None else floats(keep)
        (B, T, NH, hs), NKV = q.shape, k.shape[2]
        dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty_like(v)
        outputs = dq, dk, dv, np.empty((B, NKV, T), np.float32)
        inputs = dout, q, k, v, att, keep
        self._backward("attention_backward", *outputs, *inputs, B, T, NH, NKV, hs)
        return dq, dk, dv

    def swiglu_backward(self, dout: Array, gate: Array, up: Array) -> tuple[Array, Array]:
        dout, gate, up = floats(dout), floats(gate), floats(up)
        dgate, dup = np.empty_like(gate), np.empty_like(up)
        self._backward("swiglu_backward", dgate, dup, dout, gate, up, gate.size)
        return dgate, dup

    def dropout(self, x: Array, keep: Array | None) -> Array:
        if keep is None:
            return x
        x, keep = floats(x), floats(keep)
        out = np.empty_like(x)
        self._backward("dropout", out, x, keep, x.size)
        return out

    def crossentropy_forward(self, logits: Array, targets: Tokens) -> tuple[Array, Array]:
        logits, targets = floats(logits), int32(targets)
        losses, probs = np.empty(targets.shape, np.float32), np.empty_like(logits)
        self._backward("crossentropy_forward", losses, probs, logits, targets, *logits.shape)
        return losses, probs

    def crossentropy_backward(self, dlosses: Array, probs: Array, targets: Tokens) -> Array:
        dlosses, probs, targets = floats(dlosses), floats(probs), int32(targets)
        dlogits = np.empty_like(probs)
        self._backward("crossentropy_backward", dlogits, dlosses, probs, targets, *probs.shape)
        return dlogits

    # ---- the whole model as one call -----------------------------------------------------------

    def losses(self, model: Any, tokens: Tokens, targets: Tokens) -> Array:
        """`TrainableLlama2.losses`: the same ops in the same order, without us between."""
        tokens, targets = int32(tokens), int32(targets)
        buffers, arrays = self._buffers_for(model.config, tokens), _arrays(model.params)
        structs = (buffers.acts, buffers.config, _parameters(arrays))
        self._backward("training_forward", *structs, tokens, targets, *tokens.shape)
        return buffers.losses.reshape(tokens.shape).copy()

    def add_gradient(
        self, model: Any, tokens: Tokens, targets: Tokens, dloss: float, grads: Any, fresh: bool
    ) -> Array:
        """`TrainableLlama2.add_gradient`. Each micro-batch is summed by itself, then added."""
        tokens, targets = int32(tokens), int32(targets)
        losses = self.losses(model, tokens, targets)
        buffers, arrays = self._buffers_for(model.config, tokens), _arrays(model.params)
        gradient = grads if fresh else grads.zeros_like()
        darrays = [written_in_place(gradient[name]) for name in PARAMETERS]
        structs = (
            _parameters(darrays), buffers.gradients(),
            buffers.acts, buffers.config, _parameters(arrays),
        )  # fmt: skip
        sizes = tokens.shape
        self._backward("training_backward", *structs, tokens, targets, float(dloss), *sizes)
        if not fresh:
            grads.flat += gradient.flat
        return losses

    def _backward(self, name: str, *arguments: Any) -> None:
        if self._backward_call is None:
            library = Library("llama2_training", *self._backward_build, prefix="llama2")
            self._backward_call = library.call
        self._backward_call(name, *arguments)

    def _buffers_for(self, config: Any, tokens: Tokens) -> _Buffers:
        """Those of the last call if it had the same shape."""
        shape = (config, *tokens.shape)
        if self._buffers is None or self._buffers.shape != shape:
            self._buffers = None  # let go of the old ones first
            self._buffers = _Buffers(*shape)
        return self._buffers


CONFIG = (
    "dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len",
)  # fmt: skip
PARAMETERS = (
    "token_embedding", "attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3",
    "final_norm",
)  # fmt: skip


class CConfig(Structure):
    """llama2_config."""

    _fields_ = [(name, c_int32) for name in (*CONFIG, "shared_classifier", "group_size")]


class CParameters(Structure):
    """llama2_parameters."""

    _fields_ = [(name, c_void_p) for name in PARAMETERS]


class CActivations(Structure):
    """llama2_activations."""

    _fields_ = [
        (name, c_void_p)
        for name in (
            "cos", "sin", "x", "attention_in", "q", "k", "v", "att", "attention_out", "middle",
            "ffn_in", "gate", "up", "hidden", "branch", "final", "logits", "probs", "losses",
        )
    ]  # fmt: skip


class CGradients(Structure):
    """llama2_gradients."""

    _fields_ = [
        (name, c_void_p)
        for name in (
            "losses", "logits", "x", "normal", "part", "q", "k", "v", "att", "gate", "up", "hidden",
        )
    ]  # fmt: skip


def activation_shapes(config: Any, B: int, T: int) -> Shapes:
    """As csrc/llama2_training.h says."""
    C, F, L, V, KV = (
        config.dim, config.hidden_dim, config.n_layers, config.vocab_size, config.kv_dim,
    )  # fmt: skip
    N, NH = B * T, config.n_heads
    shapes: Shapes = dict.fromkeys(("cos", "sin"), (N, config.head_size // 2))
    shapes |= dict.fromkeys(("attention_in", "q", "attention_out", "middle", "ffn_in"), (L, N, C))
    shapes |= dict.fromkeys(("k", "v"), (L, N, KV))
    shapes |= dict.fromkeys(("gate", "up", "hidden"), (L, N, F))
    shapes |= {"x": (L + 1, N, C), "att": (L, B, NH, T, T), "branch": (N, C), "final": (N, C)}
    return shapes | {"logits": (N, V), "probs": (N, V), "losses": (N,)}


def gradient_shapes(config: Any, B: int, T: int) -> Shapes:
    """As csrc/llama2_training.h says."""
    N, V, KV = B * T, config.vocab_size, config.kv_dim
    shapes: Shapes = dict.fromkeys(("x", "normal", "part", "q"), (N, config.dim))
    shapes |= dict.fromkeys(("gate", "up", "hidden"), (N, config.hidden_dim))
    shapes |= {"k": (N, KV), "v": (N, KV), "att": (B, config.n_kv_heads, T)}
    return shapes | {"losses": (N,), "logits": (N, V)}


class _Buffers:
    """The activations of one shape, and scratch for a backward once somebody wants one."""

    def __init__(self, config: Any, B: int, T: int) -> None:
        self.shape = (config, B, T)
        numbers = (getattr(config, name) for name in CONFIG)
        self.config = CConfig(*numbers, shared_classifier=1, group_size=0)
        self._acts, self._grads = _new(activation_shapes(*self.shape)), dict[str, Array]()
        self.acts = CActivations(**_pointers(self._acts))
        self.losses = self._acts["losses"]

    def gradients(self) -> CGradients:
        """Whatever they held before."""
        self._grads = self._grads or _new(gradient_shapes(*self.shape))
        return CGradients(**_pointers(self._grads))


def _new(shapes: Shapes) -> dict[str, Array]:
    return {name: np.empty(shape, np.float32) for name, shape in shapes.items()}


def _pointers(arrays: dict[str, Array]) -> dict[str, c_void_p]:
    """The arrays must outlive them."""
    return {name: pointer(a) for name, a in arrays.items()}


def _arrays(params: Any) -> list[Array]:
    """In the order of llama2_parameters, float32 without gaps."""
    return [floats(params[name]) for name in PARAMETERS]


def _parameters(arrays: list[Array]) -> CParameters:
    """Pointers to them; the arrays must outlive it."""
    return CParameters(*map(pointer, arrays))
