"""Bounds of everything that a run computes, when every op has had its errors.

As in `pyllm2.testing.model_bound`: the run in float64, and its spread over runs in which every
result of every op is moved up or down by its bound at random. 8 standard deviations are allowed.
Here the spread is known for every record of the run, for the cache, and for gradients.

int8 breaks the calculus: a tiny error flips the rounding of an activation, which moves it by a
whole step. All runs therefore wait for each other at every `quantize`: where the spread of x
reaches the boundary between two integers, each run rounds up or down at random.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2 import backends
from pyllm2.backends import Engine
from pyllm2.gpt2.model import GPT2
from pyllm2.gpt2.training import TrainableGPT2
from pyllm2.llama2.training import TrainableLlama2
from pyllm2.observe.trace import Recorder, Traced, watch
from pyllm2.parameters import Parameters
from pyllm2.testing.bounds import CONFIDENCE, TINY
from pyllm2.testing.check import tables
from pyllm2.testing.model_bound import TRIALS, Perturbed

Array64 = NDArray[np.float64]
Bound = tuple[Array64, Array64]  # value, and the error of each row or of the array


class Spread:
    """Collects one array of every run: the exact value, and the squares of the others' distance."""

    def __init__(self, value: Array64) -> None:
        self.value, self.squares = value, np.zeros(value.shape)

    def add(self, other: Array64) -> None:
        with np.errstate(all="ignore"):
            self.squares += np.nan_to_num((other - self.value) ** 2, nan=0.0)

    def bound(self, axes: int = 1) -> Bound:
        """The error is the same along the last `axes` axes: that of their largest spread."""
        over = tuple(range(self.value.ndim))[-axes:] if axes else ()
        largest = (
            np.max(self.squares, axis=over, keepdims=True, initial=0.0) if over else self.squares
        )
        return self.value, CONFIDENCE * np.sqrt(largest / TRIALS) + TINY


class _Together:
    """What the runs tell each other at a `quantize`."""

    def __init__(self, runs: int) -> None:
        self.barrier = threading.Barrier(runs)
        self.x: list[Array64] = [np.empty(0)] * runs


class _Shadow(Perturbed):
    """`Perturbed` ops of a family, with `quantize` for runs that wait for each other."""

    def __init__(self, family: str, seed: int | None, together: _Together) -> None:
        super().__init__(tables[family], seed)
        self._family, self._together = family, together
        self._run = 0 if seed is None else seed + 1

    def __getattr__(self, name: str) -> Any:
        if name in tables[self._family]:
            return super().__getattr__(name)
        return getattr(backends.ops("numpy", package=self._family), name)  # an op without a bound

    def quantize(self, x: Array64, group_size: int) -> tuple[NDArray[np.int8], Array64]:
        """Rounded in float64; where the spread allows two integers, either of them."""
        shared, (T, C) = self._together, x.shape
        shared.x[self._run] = x
        shared.barrier.wait()
        squares = sum((other - shared.x[0]) ** 2 for other in shared.x)
        sigma = np.sqrt(np.max(np.asarray(squares), axis=-1, keepdims=True) / TRIALS)
        shared.barrier.wait()  # before anybody writes its next x
        whole = C // group_size * group_size
        groups = x[:, :whole].reshape(T, C // group_size, group_size)
        scales = np.max(np.abs(groups), axis=-1) / 127  # (T, groups)
        with np.errstate(divide="ignore", invalid="ignore"):
            quotient = np.where(scales[..., None] > 0, groups / scales[..., None], 0.0)
            # x and the scale are both off by up to 8 sigma, and rounded to float32
            off = (
                CONFIDENCE * sigma[..., None] / scales[..., None] * 2 + np.abs(quotient) * 2.0**-22
            )
        rounded = np.copysign(np.floor(np.abs(quotient) + 0.5), quotient)
        if self._random is not None:
            to_half = np.abs(quotient) - np.floor(np.abs(quotient)) - 0.5  # (-1/2, 1/2)
            other = rounded + np.where(to_half >= 0, -1, 1) * np.where(quotient < 0, -1, 1)
            flips = (np.abs(to_half) <= off) & (self._random.random(off.shape) < 0.5)
            rounded = np.where(flips, other, rounded)
        values = np.zeros((T, C), np.int8)
        values[:, :whole] = np.clip(rounded, -127, 127).reshape(T, whole)
        if self._random is not None:
            signs = self._random.integers(0, 2, scales.shape) * 2 - 1
            scales = scales * (1 + signs * 2.0**-24)
        return values, scales


Run = Callable[[Any, Recorder], dict[str, Array64]]


class Ensemble:
    """The exact run and its perturbed ones.

    records: for each op of the run its results, as `Spread`   named: what `run` returned, likewise
    """

    def __init__(self, model: Any, family: str, run: Run) -> None:
        """run: a function of (a model over float64 ops, its recorder) -> arrays by name"""
        self.records: list[dict[str, Spread]] = []
        self.named: dict[str, Spread] = {}
        together, lock = _Together(TRIALS + 1), threading.Lock()
        failed: list[BaseException] = []
        exact = threading.Event()

        def one(seed: int | None) -> None:
            try:
                shadow = in_float64(model, Engine(_Shadow(family, seed, together)))
                recorder = Recorder(shadow, family)
                shadow = shadow.with_ops(Traced(shadow.ops, recorder))
                watch(shadow, recorder)
                with np.errstate(all="ignore"):
                    named = run(shadow, recorder)
                outputs = [{n: _as64(a) for n, a in r.outputs.items()} for r in recorder.records]
                if seed is None:
                    self.records = [{n: Spread(a) for n, a in o.items()} for o in outputs]
                    self.named = {n: Spread(_as64(a)) for n, a in named.items()}
                    exact.set()
                    return
                exact.wait()
                with lock:
                    for into, found in zip(self.records, outputs, strict=True):
                        for name, array in found.items():
                            into[name].add(array)
                    for name, array in named.items():
                        self.named[name].add(_as64(array))
            except BaseException as error:
                failed.append(error)
                together.barrier.abort()
                exact.set()

        seeds = [None, *range(TRIALS)]
        if is_int8(model):
            threads = [threading.Thread(target=one, args=(seed,)) for seed in seeds]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        else:
            for seed in seeds:
                one(seed)
        for error in failed:
            if not isinstance(error, threading.BrokenBarrierError):
                raise error

    def bound(self, index: int, name: str) -> Bound:
        """A result of a record: one error per row."""
        spread = self.records[index][name]
        return spread.bound(max(1, spread.value.ndim - 1))


def exact_run(
    model: Any, family: str, run: Run, wrap: Callable[[Any], Any] | None = None
) -> dict[str, Array64]:
    """The run in float64 alone. wrap: ops -> others"""
    ops: Any = _Shadow(family, None, _Together(1))
    shadow = in_float64(model, Engine(ops if wrap is None else wrap(ops)))
    recorder = Recorder(shadow, family, keep=lambda _: False)
    with np.errstate(all="ignore"):
        return {name: _as64(array) for name, array in run(shadow, recorder).items()}


def _as64(array: Any) -> Array64:
    return np.asarray(array, np.float64)


def is_int8(model: Any) -> bool:
    return hasattr(getattr(getattr(model, "weights", None), "wq", None), "group_size")


def in_float64(model: Any, engine: Engine) -> Any:
    """The model over ops that compute in float64; parameters in one vector are converted."""
    if isinstance(model, GPT2 | TrainableGPT2 | TrainableLlama2):
        flat: Any = model.params.flat.astype(np.float64)
        params = Parameters(model.params.shapes, flat)
        if isinstance(model, TrainableLlama2):
            return TrainableLlama2(model.config, params, engine, model.dropout, model.seed)
        return type(model)(model.config, params, engine)
    return model.with_ops(engine.ops)
