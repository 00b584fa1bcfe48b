"""What a training step in one piece needs around its kernels, for whatever model: room, threads,
checks, and the plain way where kernels would be wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from pyllm2 import numba_build

Array = NDArray[np.float32]
Tokens = NDArray[np.integer]

MULTIPLICATIONS_WORTH_A_THREAD = 2**21  # in a forward


class WholeStep:
    """`losses` and `add_gradient` of a backend, made of a forward and a backward.

    plain: the ops for a forked child and for parameters in float64
    threads: how many at most; None: all, fewer where there is little to do
    new_room(config, B, T, threads, trains): buffers; has its arguments as config, shape, threads
    and trains. Two are kept: one to train with, one to evaluate
    forward(room, params, tokens, targets, dloss): the losses, (B, T); dloss None: no backward comes
    backward(room, params, tokens, grads, fresh): after a forward with dloss
    """

    def __init__(
        self,
        plain: Any,
        threads: int | None,
        new_room: Callable[..., Any],
        forward: Callable[..., Array],
        backward: Callable[..., None],
        least_target: int = 0,
    ) -> None:
        self._plain, self._wanted = plain, threads
        self._new_room, self._forward, self._backward = new_room, forward, backward
        self._least_target = least_target
        self._rooms: list[Any] = []

    def losses(self, model: Any, tokens: Tokens, targets: Tokens) -> Array:
        """As the model's, quicker: tested equal to the composition of plain ops."""
        if numba_build.forked or not _is_float32(model.params):
            return self._composed(model).losses(tokens, targets)
        tokens, targets = self._checked(model.config, tokens, targets)
        threads = self._threads(model, tokens)
        with numba_build.on_threads(threads):
            room = self._room(model.config, tokens.shape, threads, trains=False)
            return self._forward(room, model.params, tokens, targets, None)

    def add_gradient(
        self, model: Any, tokens: Tokens, targets: Tokens, dloss: float, grads: Any, fresh: bool
    ) -> Array:
        """As the model's, quicker: tested equal to the composition of plain ops."""
        if numba_build.forked or not (_is_float32(model.params) and _is_float32(grads)):
            return self._composed(model).add_gradient(tokens, targets, dloss, grads, fresh)
        tokens, targets = self._checked(model.config, tokens, targets)
        threads = self._threads(model, tokens)
        with numba_build.on_threads(threads):
            room = self._room(model.config, tokens.shape, threads, trains=True)
            losses = self._forward(room, model.params, tokens, targets, np.float32(dloss))
            self._backward(room, model.params, tokens, grads, fresh)
            return losses

    def _composed(self, model: Any) -> Any:
        return type(model)(model.config, model.params, self._plain)

    def _threads(self, model: Any, tokens: Tokens) -> int:
        work = tokens.size * model.params.flat.size // MULTIPLICATIONS_WORTH_A_THREAD
        return max(1, min(numba.get_num_threads(), self._wanted or work))

    def _room(self, config: Any, shape: tuple[int, ...], threads: int, trains: bool) -> Any:
        """One that fits, or a new one. Room to train in is good for evaluating too."""
        for room in self._rooms:
            same = (config, shape, threads) == (room.config, room.shape, room.threads)
            if same and (room.trains or not trains):
                return room
        self._rooms = [room for room in self._rooms if room.trains != trains]
        room = self._new_room(config, *shape, threads, trains)
        self._rooms.append(room)
        return room

    def _checked(self, config: Any, tokens: Tokens, targets: Tokens) -> tuple[Tokens, Tokens]:
        """Both as contiguous int64: a kernel would read and write wherever a number points to."""
        if tokens.shape != targets.shape:
            raise ValueError(f"targets of shape {targets.shape}: expected {tokens.shape}")
        for ids, least in ((tokens, 0), (targets, self._least_target)):
            if ids.size and not least <= int(ids.min()) <= int(ids.max()) < config.vocab_size:
                raise IndexError(f"a token is not in {least} .. {config.vocab_size - 1}")
        return np.ascontiguousarray(tokens, np.int64), np.ascontiguousarray(targets, np.int64)


def _is_float32(params: Any) -> bool:
    return params.flat.dtype == np.float32 and params.flat.flags.c_contiguous
