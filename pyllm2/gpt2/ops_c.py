"""The ops of `ops.py` over csrc/gpt2.c: same names, same order, same shapes.

`Ops("fast")` and `Ops("strict")` are the two builds. Each method checks nothing (the border has)
and hands pointers to C; loops and comments are in csrc/gpt2_ops.c and csrc/gpt2.c. A backward of C
adds to its outputs, so those that it gets here begin as zeros.
"""

from __future__ import annotations

from ctypes import Structure, c_int32, c_int64, c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.c_library import Library, floats, int32, pointer, written_in_place

Array = NDArray[np.float32]
Tokens = NDArray[np.integer]


class Ops:
    """One build of the C library, as an ops module."""

    def __init__(self, build: str, threads: int | None = None) -> None:
        self.build = build
        self._call = Library("gpt2", build, threads).call
        self._buffers: _Buffers | None = None  # of the last shape that a whole pass had

    def encoder_forward(self, tokens: Tokens, wte: Array, wpe: Array) -> Array:
        tokens, wte, wpe = int32(tokens), floats(wte), floats(wpe)
        (B, T), C = tokens.shape, wte.shape[1]
        out = np.empty((B, T, C), np.float32)
        self._call("encoder_forward", out, tokens, wte, wpe, B, T, C)
        return out

    def encoder_backward(
        self, dout: Array, tokens: Tokens, dwte: Array, dwpe: Array
    ) -> tuple[Array, Array]:
        dout, tokens = floats(dout), int32(tokens)
        dwte, dwpe = np.array(dwte, np.float32, order="C"), np.array(dwpe, np.float32, order="C")
        self._call("encoder_backward", dwte, dwpe, dout, tokens, *dout.shape)
        return dwte, dwpe

    def layernorm_forward(self, x: Array, w: Array, b: Array) -> tuple[Array, Array, Array]:
        x, w, b = floats(x), floats(w), floats(b)
        out = np.empty_like(x)
        mean, rstd = np.empty(x.shape[:-1], np.float32), np.empty(x.shape[:-1], np.float32)
        self._call("layernorm_forward", out, mean, rstd, x, w, b, mean.size, x.shape[-1])
        return out, mean, rstd

    def layernorm_backward(
        self, dout: Array, x: Array, w: Array, mean: Array, rstd: Array
    ) -> tuple[Array, Array, Array]:
        dout, x, w, mean, rstd = map(floats, (dout, x, w, mean, rstd))
        dx, dw, db = np.zeros_like(x), np.zeros_like(w), np.zeros_like(w)
        sizes = (mean.size, x.shape[-1])
        self._call("layernorm_backward", dx, dw, db, dout, x, w, mean, rstd, *sizes)
        return dx, dw, db

    def matmul_forward(self, x: Array, w: Array, b: Array | None = None) -> Array:
        x, w, b = floats(x), floats(w), None if b is None else floats(b)
        OC, C = w.shape
        out = np.empty((*x.shape[:-1], OC), np.float32)
        self._call("matmul_forward", out, x, w, b, x.size // C, C, OC)
        return out

    def matmul_backward(self, dout: Array, x: Array, w: Array) -> tuple[Array, Array, Array]:
        dout, x, w = floats(dout), floats(x), floats(w)
        OC, C = w.shape
        dx, dw, db = np.zeros_like(x), np.zeros_like(w), np.zeros(OC, np.float32)
        self._call("matmul_backward", dx, dw, db, dout, x, w, x.size // C, C, OC)
        return dx, dw, db

    def attention_forward(self, qkv: Array, NH: int, first: int = 0) -> tuple[Array, Array]:
        qkv = floats(qkv)
        B, P, C3 = qkv.shape
        T, C = P - first, C3 // 3
        out = np.empty((B, T, C), np.float32)
        preatt, att = np.empty((2, B, NH, T, P), np.float32)
        self._call("attention_forward", out, preatt, att, qkv, B, P, C, NH, first)
        return out, att

    def attention_backward(self, dout: Array, qkv: Array, att: Array) -> Array:
        dout, qkv, att = floats(dout), floats(qkv), floats(att)
        dqkv, dpreatt, datt = np.zeros_like(qkv), np.zeros_like(att), np.zeros_like(att)
        sizes = (*dout.shape, att.shape[1])  # B, T, C, NH
        self._call("attention_backward", dqkv, dpreatt, datt, dout, qkv, att, *sizes)
        return dqkv

    def gelu_forward(self, x: Array) -> Array:
        x = floats(x)
        out = np.empty_like(x)
        self._call("gelu_forward", out, x, x.size)
        return out

    def gelu_backward(self, dout: Array, x: Array) -> Array:
        dout, x = floats(dout), floats(x)
        dx = np.zeros_like(x)
        self._call("gelu_backward", dx, dout, x, x.size)
        return dx

    def residual_forward(self, a: Array, b: Array) -> Array:
        a, b = floats(a), floats(b)
        out = np.empty_like(a)
        self._call("residual_forward", out, a, b, a.size)
        return out

    def residual_backward(self, dout: Array) -> tuple[Array, Array]:
        dout = floats(dout)
        da, db = np.zeros_like(dout), np.zeros_like(dout)
        self._call("residual_backward", da, db, dout, dout.size)
        return da, db

    def softmax_forward(self, logits: Array, V: int) -> Array:
        logits = floats(logits)
        probs, Vp = np.empty_like(logits), logits.shape[-1]
        self._call("softmax_forward", probs, logits, logits.size // Vp, V, Vp)
        return probs

    def crossentropy_forward(self, probs: Array, targets: Tokens) -> Array:
        probs, targets = floats(probs), int32(targets)
        losses = np.empty(targets.shape, np.float32)
        self._call("crossentropy_forward", losses, probs, targets, losses.size, probs.shape[-1])
        return losses

    def crossentropy_softmax_backward(
        self, dlosses: Array, probs: Array, targets: Tokens, V: int
    ) -> Array:
        dlosses, probs, targets = floats(dlosses), floats(probs), int32(targets)
        dlogits, sizes = np.zeros_like(probs), (targets.size, V, probs.shape[-1])
        self._call("crossentropy_softmax_backward", dlogits, dlosses, probs, targets, *sizes)
        return dlogits

    # ---- the whole model as one call -----------------------------------------------------------

    def losses(self, model: Any, tokens: Tokens, targets: Tokens) -> Array:
        """`GPT2.losses`: the same ops in the same order, without us between."""
        tokens, targets = int32(tokens), int32(targets)
        buffers, arrays = self._buffers_for(model.config, tokens), _arrays(model.params)
        structs = (buffers.acts, buffers.config, _parameters(arrays))
        self._call("forward", *structs, tokens, targets, *tokens.shape)
        return buffers.losses()

    def add_gradient(
        self, model: Any, tokens: Tokens, targets: Tokens, dloss: float, grads: Any, fresh: bool
    ) -> Array:
        """`GPT2.add_gradient`. What is added goes into grads term by term, as C's backward does."""
        tokens, targets = int32(tokens), int32(targets)
        losses = self.losses(model, tokens, targets)
        if fresh:
            written_in_place(grads.flat).fill(0)
        buffers, arrays = self._buffers_for(model.config, tokens), _arrays(model.params)
        darrays = [written_in_place(grads[name]) for name in PARAMETERS]
        structs = (
            _parameters(darrays), buffers.cleared_gradients(),
            buffers.acts, buffers.config, _parameters(arrays),
        )  # fmt: skip
        self._call("backward", *structs, tokens, targets, float(dloss), *tokens.shape)
        return losses

    def _buffers_for(self, config: Any, tokens: Tokens) -> _Buffers:
        """Those of the last call if it had the same shape."""
        shape = (config, *tokens.shape)
        if self._buffers is None or self._buffers.shape != shape:
            self._buffers = None  # let go of the old ones first
            self._buffers = _Buffers(self._call, *shape)
        return self._buffers


CONFIG = (
    "max_seq_len", "vocab_size", "num_layers", "num_heads", "channels", "padded_vocab_size",
)  # fmt: skip
PARAMETERS = (
    "wte", "wpe", "ln1w", "ln1b", "qkvw", "qkvb", "attprojw", "attprojb", "ln2w", "ln2b", "fcw",
    "fcb", "fcprojw", "fcprojb", "lnfw", "lnfb",
)  # fmt: skip
ACTIVATIONS = (
    "encoded", "ln1", "ln1_mean", "ln1_rstd", "qkv", "atty", "preatt", "att", "attproj",
    "residual2", "ln2", "ln2_mean", "ln2_rstd", "fch", "fch_gelu", "fcproj", "residual3", "lnf",
    "lnf_mean", "lnf_rstd", "logits", "probs", "losses",
)  # fmt: skip


class CConfig(Structure):
    """gpt2_config."""

    _fields_ = [(name, c_int32) for name in CONFIG]


class CParameters(Structure):
    """gpt2_parameters."""

    _fields_ = [(name, c_void_p) for name in PARAMETERS]


class CActivations(Structure):
    """gpt2_activations."""

    _fields_ = [(name, c_void_p) for name in ACTIVATIONS]


def _arrays(params: Any) -> list[Array]:
    """In the order of gpt2_parameters, float32 without gaps."""
    return [floats(params[name]) for name in PARAMETERS]


def _parameters(arrays: list[Array]) -> CParameters:
    """Pointers to them; the arrays must outlive it."""
    return CParameters(*map(pointer, arrays))


class _Buffers:
    """The activations of one shape, and their gradients once somebody wants them."""

    def __init__(self, call: Any, config: Any, B: int, T: int) -> None:
        self.shape = (config, B, T)
        self.config = CConfig(*(getattr(config, name) for name in CONFIG))
        self._call = call
        self._memory, self.acts = self._new()
        self._gradients: tuple[Array, CActivations] | None = None

    def cleared_gradients(self) -> CActivations:
        """Gradients of the activations, all zero."""
        if self._gradients is None:
            self._gradients = self._new()
        memory, dacts = self._gradients
        memory.fill(0)
        return dacts

    def losses(self) -> Array:
        """Those that the last forward left, the last of the buffers; a copy."""
        _, B, T = self.shape
        return self._memory[-B * T :].reshape(B, T).copy()

    def _new(self) -> tuple[Array, CActivations]:
        _, B, T = self.shape
        floats_needed = self._call("activation_floats", self.config, B, T, returns=c_int64)
        memory, acts = np.empty(floats_needed, np.float32), CActivations()
        self._call("activations_bind", acts, self.config, memory, B, T)
        return memory, acts
