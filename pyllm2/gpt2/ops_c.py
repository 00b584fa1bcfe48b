"""The ops of `ops.py` in C: the same names, order and shapes, over csrc/gpt2.

`Ops("fast")` and `Ops("strict")` are the two builds. The methods do not check values; loops and
comments are in csrc/gpt2/ops.c. A backward op of C adds to its outputs, so the methods pass zeros.
The last two are whole passes of a model, which give the results of the composition of the ops.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.compiling.c_library import KeptBuffers, Library, floats, int32, library, writeable

Array = NDArray[np.float32]
Tokens = NDArray[np.integer]


class Ops:
    """One build of the C library, as an ops module."""

    def __init__(self, build: str, threads: int | None = None) -> None:
        self.build = build
        self._c = library("gpt2", build, threads)
        self._buffers = KeptBuffers(lambda config, B, T: _Buffers(self._c, config, B, T))

    def encoder_forward(self, tokens: Tokens, wte: Array, wpe: Array) -> Array:
        tokens, wte, wpe = int32(tokens), floats(wte), floats(wpe)
        (B, T), C = tokens.shape, wte.shape[1]
        out = np.empty((B, T, C), np.float32)
        self._c.encoder_forward(out, tokens, wte, wpe, B, T, C)
        return out

    def encoder_backward(
        self, dout: Array, tokens: Tokens, dwte: Array, dwpe: Array
    ) -> tuple[Array, Array]:
        dout, tokens = floats(dout), int32(tokens)
        dwte, dwpe = np.array(dwte, np.float32, order="C"), np.array(dwpe, np.float32, order="C")
        self._c.encoder_backward(dwte, dwpe, dout, tokens, *dout.shape)
        return dwte, dwpe

    def layernorm_forward(self, x: Array, w: Array, b: Array) -> tuple[Array, Array, Array]:
        x, w, b = floats(x), floats(w), floats(b)
        out = np.empty_like(x)
        mean, rstd = np.empty(x.shape[:-1], np.float32), np.empty(x.shape[:-1], np.float32)
        self._c.layernorm_forward(out, mean, rstd, x, w, b, mean.size, x.shape[-1])
        return out, mean, rstd

    def layernorm_backward(
        self, dout: Array, x: Array, w: Array, mean: Array, rstd: Array
    ) -> tuple[Array, Array, Array]:
        dout, x, w, mean, rstd = map(floats, (dout, x, w, mean, rstd))
        dx, dw, db = np.zeros_like(x), np.zeros_like(w), np.zeros_like(w)
        sizes = (mean.size, x.shape[-1])
        self._c.layernorm_backward(dx, dw, db, dout, x, w, mean, rstd, *sizes)
        return dx, dw, db

    def matmul_forward(self, x: Array, w: Array, b: Array | None = None) -> Array:
        x, w, b = floats(x), floats(w), None if b is None else floats(b)
        OC, C = w.shape
        out = np.empty((*x.shape[:-1], OC), np.float32)
        self._c.matmul_forward(out, x, w, b, x.size // C, C, OC)
        return out

    def matmul_backward(self, dout: Array, x: Array, w: Array) -> tuple[Array, Array, Array]:
        dout, x, w = floats(dout), floats(x), floats(w)
        OC, C = w.shape
        dx, dw, db = np.zeros_like(x), np.zeros_like(w), np.zeros(OC, np.float32)
        self._c.matmul_backward(dx, dw, db, dout, x, w, x.size // C, C, OC)
        return dx, dw, db

    def attention_forward(self, qkv: Array, NH: int, first: int = 0) -> tuple[Array, Array]:
        qkv = floats(qkv)
        B, P, C3 = qkv.shape
        T, C = P - first, C3 // 3
        out = np.empty((B, T, C), np.float32)
        preatt, att = np.empty((2, B, NH, T, P), np.float32)
        self._c.attention_forward(out, preatt, att, qkv, B, P, C, NH, first)
        return out, att

    def attention_backward(self, dout: Array, qkv: Array, att: Array) -> Array:
        dout, qkv, att = floats(dout), floats(qkv), floats(att)
        dqkv, dpreatt, datt = np.zeros_like(qkv), np.zeros_like(att), np.zeros_like(att)
        sizes = (*dout.shape, att.shape[1])  # B, T, C, NH
        self._c.attention_backward(dqkv, dpreatt, datt, dout, qkv, att, *sizes)
        return dqkv

    def gelu_forward(self, x: Array) -> Array:
        x = floats(x)
        out = np.empty_like(x)
        self._c.gelu_forward(out, x, x.size)
        return out

    def gelu_backward(self, dout: Array, x: Array) -> Array:
        dout, x = floats(dout), floats(x)
        dx = np.zeros_like(x)
        self._c.gelu_backward(dx, dout, x, x.size)
        return dx

    def residual_forward(self, a: Array, b: Array) -> Array:
        a, b = floats(a), floats(b)
        out = np.empty_like(a)
        self._c.residual_forward(out, a, b, a.size)
        return out

    def residual_backward(self, dout: Array) -> tuple[Array, Array]:
        dout = floats(dout)
        da, db = np.zeros_like(dout), np.zeros_like(dout)
        self._c.residual_backward(da, db, dout, dout.size)
        return da, db

    def softmax_forward(self, logits: Array, V: int) -> Array:
        logits = floats(logits)
        probs, Vp = np.empty_like(logits), logits.shape[-1]
        self._c.softmax_forward(probs, logits, logits.size // Vp, V, Vp)
        return probs

    def crossentropy_forward(self, probs: Array, targets: Tokens) -> Array:
        probs, targets = floats(probs), int32(targets)
        losses = np.empty(targets.shape, np.float32)
        self._c.crossentropy_forward(losses, probs, targets, losses.size, probs.shape[-1])
        return losses

    def crossentropy_softmax_backward(
        self, dlosses: Array, probs: Array, targets: Tokens, V: int
    ) -> Array:
        dlosses, probs, targets = floats(dlosses), floats(probs), int32(targets)
        dlogits, sizes = np.zeros_like(probs), (targets.size, V, probs.shape[-1])
        self._c.crossentropy_softmax_backward(dlogits, dlosses, probs, targets, *sizes)
        return dlogits

    # ---- whole passes --------------------------------------------------------------------------

    def losses(self, model: Any, tokens: Tokens, targets: Tokens) -> Array:
        """`TrainableGPT2.losses` in one call of C.

        The activations of the latest shape are kept for the next call. Threads that use this
        object at the same time wait for one another.
        """
        tokens, targets = int32(tokens), int32(targets)
        with self._buffers.of(model.config, *tokens.shape) as buffers:
            return self._losses(buffers, self._parameters(model.params), tokens, targets)

    def add_gradient(
        self, model: Any, tokens: Tokens, targets: Tokens, dloss: float, grads: Any, fresh: bool
    ) -> Array:
        """`TrainableGPT2.add_gradient` in two calls of C, with the buffers of `losses`.

        A backward op of C adds to the gradient, so the sums run over all micro-batches.
        """
        tokens, targets = int32(tokens), int32(targets)
        dparams = self._c.struct("parameters", **{n: writeable(grads[n]) for n in grads})
        params = self._parameters(model.params)
        with self._buffers.of(model.config, *tokens.shape) as buffers:
            losses = self._losses(buffers, params, tokens, targets)
            if fresh:
                grads.flat.fill(0)
            structs = dparams, buffers.cleared_gradients(), buffers.acts, buffers.config, params
            self._c.backward(*structs, tokens, targets, float(dloss), *tokens.shape)
        return losses

    def _losses(self, buffers: _Buffers, params: Any, tokens: Tokens, targets: Tokens) -> Array:
        self._c.forward(buffers.acts, buffers.config, params, tokens, targets, *tokens.shape)
        return buffers.losses.reshape(tokens.shape).copy()

    def _parameters(self, params: Any) -> Any:
        return self._c.struct("parameters", **{name: floats(params[name]) for name in params})


class _Buffers:
    """Activations of one batch shape, and their gradients once they are needed."""

    def __init__(self, c: Library, config: Any, B: int, T: int) -> None:
        self._c, self._sizes = c, (B, T)
        self.config = c.struct("config", **{n: getattr(config, n) for n in c.fields("config")})
        self.memory, self.acts = self._new()
        self.losses = self.memory[-B * T :]  # the last of the buffers
        self._gradients: tuple[Array, Any] | None = None

    def cleared_gradients(self) -> Any:
        """The gradients of the activations, all zero."""
        if self._gradients is None:
            self._gradients = self._new()
        memory, dacts = self._gradients
        memory.fill(0)
        return dacts

    def _new(self) -> tuple[Array, Any]:
        memory = np.empty(self._c.activation_floats(self.config, *self._sizes), np.float32)
        acts = self._c.struct("activations")
        self._c.activations_bind(acts, self.config, memory, *self._sizes)
        return memory, acts
