"""A training step as whole passes: buffers, threads, checks, and the fallback to plain ops."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from pyllm2.compiling import numba_build
from pyllm2.compiling.processors import processors

Array = NDArray[np.float32]
Tokens = NDArray[np.integer]

MIN_MULTIPLICATIONS_PER_THREAD = 2**21  # in a forward pass


class TrainingStep:
    """`losses` and `add_gradient` of an engine, from a forward and a backward pass.

    plain: the ops of the fallback, for a forked child and for parameters that are not float32
    threads: largest number of threads; None: all, fewer for little work
    new_buffers(config, B, T, threads, trains): see `fast.*.training.Buffers`; two are kept, one to
    train and one to evaluate
    forward(buffers, params, tokens, targets, dloss): the losses, (B, T); dloss None: no backward
    backward(buffers, params, tokens, grads, fresh): after a forward with dloss

    Threads that use one model at once share its buffers: a lock lets one of them in at a time.
    """

    def __init__(
        self,
        plain: Any,
        threads: int | None,
        new_buffers: Callable[..., Any],
        forward: Callable[..., Array],
        backward: Callable[..., None],
        min_target: int = 0,
    ) -> None:
        self._plain, self._wanted = plain, threads
        self._new_buffers, self._forward, self._backward = new_buffers, forward, backward
        self._min_target = min_target
        self._kept: list[Any] = []
        self._lock = threading.Lock()

    def losses(self, model: Any, tokens: Tokens, targets: Tokens) -> Array:
        """The model's method as a whole pass, tested equal to the composition of plain ops."""
        if numba_build.forked or not _is_float32(model.params):
            return model.with_ops(self._plain).losses(tokens, targets)
        tokens, targets = self._checked(model.config, tokens, targets)
        threads = self._threads(model, tokens)
        with self._lock, numba_build.on_threads(threads):
            buffers = self._buffers(model.config, tokens.shape, threads, trains=False)
            return self._forward(buffers, model.params, tokens, targets, None)

    def add_gradient(
        self, model: Any, tokens: Tokens, targets: Tokens, dloss: float, grads: Any, fresh: bool
    ) -> Array:
        """The model's method as a whole pass, tested equal to the composition of plain ops."""
        if numba_build.forked or not (_is_float32(model.params) and _is_float32(grads)):
            return model.with_ops(self._plain).add_gradient(tokens, targets, dloss, grads, fresh)
        tokens, targets = self._checked(model.config, tokens, targets)
        threads = self._threads(model, tokens)
        with self._lock, numba_build.on_threads(threads):
            buffers = self._buffers(model.config, tokens.shape, threads, trains=True)
            losses = self._forward(buffers, model.params, tokens, targets, np.float32(dloss))
            self._backward(buffers, model.params, tokens, grads, fresh)
            return losses

    def _threads(self, model: Any, tokens: Tokens) -> int:
        work = tokens.size * model.params.flat.size // MIN_MULTIPLICATIONS_PER_THREAD
        return max(1, min(numba.get_num_threads(), self._wanted or min(work, processors())))

    def _buffers(self, config: Any, shape: tuple[int, ...], threads: int, trains: bool) -> Any:
        """Kept buffers that fit, or new ones. Buffers to train with can also evaluate."""
        for kept in self._kept:
            same = (config, shape, threads) == (kept.config, kept.shape, kept.threads)
            if same and (kept.trains or not trains):
                return kept
        self._kept = [kept for kept in self._kept if kept.trains != trains]
        self._kept.append(self._new_buffers(config, *shape, threads, trains))
        return self._kept[-1]

    def _checked(self, config: Any, tokens: Tokens, targets: Tokens) -> tuple[Tokens, Tokens]:
        """Both as contiguous int64 within range: kernels do not check their indices."""
        if tokens.shape != targets.shape:
            raise ValueError(f"targets of shape {targets.shape}: expected {tokens.shape}")
        for ids, low in ((tokens, 0), (targets, self._min_target)):
            if ids.size and not low <= int(ids.min()) <= int(ids.max()) < config.vocab_size:
                raise IndexError(f"a token is not in {low} .. {config.vocab_size - 1}")
        return np.ascontiguousarray(tokens, np.int64), np.ascontiguousarray(targets, np.int64)


def _is_float32(params: Any) -> bool:
    return params.flat.dtype == np.float32 and params.flat.flags.c_contiguous
