"""Gradients against central differences: the specification in float64, then rivals by its bounds.

The one judge of a backward that knows nothing but its forward. The NumPy ops compute in float64
when fed float64, and there differences are good to nine digits or so; a float32 backend is then
held to the bound around the formula that passed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.testing.bounds import Array64, Bounded
from pyllm2.testing.gpt2_gradients import GPT2_GRADIENTS
from pyllm2.testing.gradients import Gradients
from pyllm2.testing.llama2_gradients import LLAMA2_GRADIENTS
from pyllm2.training.parameters import Parameters

STEP = 2.0**-11
ROUNDINGS = 100 * 2.0**-53  # of a forward in float64, relative to what it puts out
MODELS = {"gpt2": GPT2_GRADIENTS, "llama2": LLAMA2_GRADIENTS}
NAMES = tuple(f"{of}.{name}" for of, model in MODELS.items() for name in model.names)
ENTRIES, ENTRIES_OF_MODEL = 12, 3  # of each array that are tried in an example


@dataclass
class Finding:
    """The worst of many examples."""

    name: str
    relative: float = 0.0  # |gradient - difference| beside the largest of the gradient
    allowed: float = 0.0  # the same beside what the difference may itself be off by
    shares: dict[str, float] | None = None  # of its bound, for each backend

    @property
    def passed(self) -> bool:
        """NaN does not pass."""
        return self.allowed <= 1 and all(share <= 1 for share in (self.shares or {}).values())

    def add(
        self, gradient: Array64, found: Array64, tolerance: Array64, least: float = 1e-30
    ) -> None:
        """Entries of a gradient, the differences there, and what those may be off by.

        least: what the largest entry is taken to be where all of these are smaller.
        """
        off = np.abs(gradient - found)
        largest = max(float(np.abs(gradient).max()), float(np.abs(found).max()), least)
        self.relative = float(np.maximum(self.relative, off.max() / largest))
        self.allowed = float(np.maximum(self.allowed, (off / tolerance).max()))

    def add_share(self, backend: str, found: NDArray[Any], bounded: Bounded) -> None:
        """What a backend gave for a gradient."""
        off = np.abs(found.astype(np.float64) - bounded.value)
        with np.errstate(over="ignore"):  # of an exact result that is not
            share = np.where(off == 0, 0.0, off / np.maximum(bounded.error, 2.0**-1074))
        self.shares = self.shares or {}
        self.shares[backend] = float(np.maximum(self.shares.get(backend, 0.0), share.max()))


# ---- differences ------------------------------------------------------------------------------


def difference(f: Callable[[], Array64], x: Array64, entry: int) -> tuple[float, float]:
    """∂(Σ f)/∂x at one entry of x, which f reads, and what that may be off by.

    Central differences at three steps h, 2h, 4h, each pair of them extrapolated (the h² terms
    cancel): the finer of the two counts, and how far they are apart is more than its error. Add
    the rounding of the sums, ROUNDINGS of Σ(1 + |f|), divided by h.
    """
    flat, there = x.reshape(-1), x.flat[entry]
    assert np.shares_memory(flat, x)
    slopes = []
    for h in (STEP, 2 * STEP, 4 * STEP):
        flat[entry] = there + h
        above = f()
        flat[entry] = there - h
        below = f()
        slopes.append(float(np.sum(above - below)) / (2 * h))
    flat[entry] = there
    fine, coarse = (4 * slopes[0] - slopes[1]) / 3, (4 * slopes[1] - slopes[2]) / 3
    rounding = ROUNDINGS * float(np.sum(1 + np.abs(above))) / STEP
    return fine, abs(fine - coarse) + rounding


def check_array(
    finding: Finding,
    f: Callable[[], Any],
    x: Any,
    gradient: Any,
    random: np.random.Generator,
    most: int = ENTRIES,
    least: float = 1e-30,
) -> None:
    """Some entries of one gradient, picked at random. x: float64, and what f reads.

    least: see `Finding.add`.
    """
    entries = random.permutation(x.size)[:most]
    found, tolerance = np.array([difference(f, x, int(i)) for i in entries]).T
    finding.add(gradient.reshape(-1)[entries], found, tolerance, least)


def check_pair(
    model: Gradients, name: str, backends: Mapping[str, Any], examples: int, seed: int,
    ops: Any = None,
) -> Finding:  # fmt: skip
    """A backward of `ops` (the specification) in float64 against differences of its forward;

    backends, in float32, by their bounds.
    """
    finding, random = Finding(name), np.random.default_rng(seed)
    pair, ops = model.pairs[name], ops or model.ops
    for _ in range(examples):
        inputs = model.example(name, random)
        dout = random.normal(size=pair(ops, *inputs).out.shape)
        wide = tuple(map(_wide, inputs))
        trace = pair(ops, *wide)
        gradients = _tuple(getattr(ops, trace.backward)(*trace.inputs(dout)))
        arrays = [a for a in wide if isinstance(a, np.ndarray) and a.dtype == np.float64]

        def weighted(wide: Any = wide, dout: Any = dout) -> Any:
            return dout * pair(ops, *wide).out

        for x, gradient in zip(arrays, gradients, strict=True):
            check_array(finding, weighted, x, gradient, random)
        _rival(finding, model, backends, inputs, dout.astype(np.float32))
    return finding


def _rival(
    finding: Finding, model: Gradients, backends: Mapping[str, Any], inputs: Any, dout: Any
) -> None:
    """One example, in float32: every backend gets what the specification's forward has kept."""
    trace = model.pairs[finding.name](model.ops, *inputs)
    kept = trace.inputs(dout)
    bounded = model.table[trace.backward].bound(*kept)
    bounded = (bounded,) if isinstance(bounded, Bounded) else bounded
    for backend, ops in backends.items():
        found = _tuple(getattr(ops, trace.backward)(*kept))
        for one, expected in zip(found, bounded, strict=True):
            finding.add_share(backend, one, expected)


def check_model(
    model: Gradients, backends: Mapping[str, Any], examples: int, seed: int, ops: Any = None
) -> Finding:
    """The gradient of every parameter of small random models, some entries of each tensor."""
    finding, random = Finding("model"), np.random.default_rng(seed)
    for _ in range(examples):
        whole = model.random_model(random)
        tokens, targets = model.random_batch(whole, random)
        _differ_model(finding, whole, ops or model.ops, tokens, targets, random)
        bound = model.bound(whole, tokens, targets, 1 / tokens.size)
        for backend, rival in backends.items():
            found = whole.params.zeros_like()
            other = type(whole)(whole.config, whole.params, rival)
            other.add_gradient(tokens, targets, 1 / tokens.size, found, fresh=True)
            for name, expected in bound.gradient.items():
                finding.add_share(backend, found[name], expected)
    return finding


def _differ_model(
    finding: Finding, model: Any, ops: Any, tokens: Any, targets: Any, random: np.random.Generator
) -> None:
    """One model in float64, every loss weighted differently."""
    params = Parameters(model.params.shapes, _wide(model.params.flat))
    wide = type(model)(model.config, params, ops)
    acts = wide.forward(tokens, targets)
    dlosses: Any = random.normal(size=acts.losses.shape)
    gradient = wide.backward(acts, dlosses)

    def weighted() -> Any:
        return dlosses.reshape(tokens.shape) * wide.losses(tokens, targets)

    # Beside the largest of all: some arrays learn nothing, as queries do from a single position.
    largest = max(float(np.abs(gradient.flat).max()), 1e-30)
    for name, x in params.items():
        check_array(finding, weighted, x, gradient[name], random, ENTRIES_OF_MODEL, largest)


def check(name: str, backends: Mapping[str, Any], examples: int, seed: int) -> Finding:
    """One of NAMES, on so many drawn examples; backends: the ops of that model."""
    of, _, pair = name.partition(".")
    if pair == "model":
        return check_model(MODELS[of], backends, examples, seed)
    return check_pair(MODELS[of], pair, backends, examples, seed)


def named(word: str | None) -> list[str]:
    """Which of NAMES a word means: one, all of a model, that of every model that has it, or all."""
    return [name for name in NAMES if word is None or word in (name, *name.split("."))]


def _wide(a: Any) -> Any:
    return a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype == np.float32 else a


def _tuple(result: Any) -> tuple[Any, ...]:
    """Several results as they are, one as a tuple of one."""
    return (result,) if isinstance(result, np.ndarray) else result
