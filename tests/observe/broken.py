"""Backends with a wrong op, or a wrong whole pass, to be found by `diff`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pyllm2 import backends
from pyllm2.backends import Engine
from pyllm2.observe.runs import on_engine


class Broken:
    """The ops of a backend, one of which has other results."""

    def __init__(self, ops: Any, op: str, change: Callable[[Any], Any]) -> None:
        self._ops, self._op, self._change = ops, op, change

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._ops, name)
        if name != self._op:
            return function
        return lambda *arguments: self._change(function(*arguments))


def off_by_a_thousandth(results: Any) -> Any:
    """The last element of the first result; a small bug of one place."""
    first = (results[0] if isinstance(results, tuple) else results).copy()
    if first.dtype == np.int8:
        first.flat[-1] += 1 if first.flat[-1] < 100 else -1
    else:
        first.flat[-1] = first.flat[-1] * np.float32(1.001) + np.float32(1e-3)
    return (first, *results[1:]) if isinstance(results, tuple) else first


def multiplied(results: Any, factor: float) -> Any:
    """Every element of the first result: a bug that losses show, not only gradients."""
    if isinstance(results, tuple):
        return (results[0] * np.float32(factor), *results[1:])
    return results * np.float32(factor)


def break_op(
    patch: pytest.MonkeyPatch, backend: str, op: str, whole: bool = False, factor: float = 1.1
) -> None:
    """The engine of a backend has a wrong op.

    whole: the wrong op is in the whole passes, multiplied by the factor; the plain ops are right
    """
    engine = backends.engine

    def damage(results: Any) -> Any:
        return multiplied(results, factor)

    def broken(name: str, threads: int | None = None, family: str = "llama2") -> Engine:
        right = engine(name, threads, family)
        if name != backend:
            return right
        wrong = Broken(right.ops, op, damage if whole else off_by_a_thousandth)
        if not whole:
            return Engine(wrong, name=name)

        def forward(model: Any, *rest: Any) -> Any:
            return on_engine(model, Engine(wrong)).forward(*rest)

        def add_gradient(model: Any, *rest: Any) -> Any:
            return on_engine(model, Engine(wrong)).add_gradient(*rest)

        def losses(model: Any, *rest: Any) -> Any:
            return on_engine(model, Engine(wrong)).losses(*rest)

        return replace(
            right,
            forward=forward if right.forward is not None else None,
            add_gradient=add_gradient,
            losses=losses,
        )

    patch.setattr(backends, "engine", broken)
