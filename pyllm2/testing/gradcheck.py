"""Check gradients: the specification against finite differences, backends against its bounds.

Finite differences test a backward knowing nothing but its forward. The NumPy ops compute in float64
on float64 inputs, where differences are good to about nine digits. A float32 backend is then
checked against the bound around the formula that has passed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.backends import Engine
from pyllm2.parameters import Parameters
from pyllm2.testing.bounds import Array64, Bounded
from pyllm2.testing.gpt2.gradients import GRADIENTS as GPT2
from pyllm2.testing.gradients import Gradients
from pyllm2.testing.llama2.gradients import GRADIENTS as LLAMA2
from pyllm2.testing.model_bound import training_bound

STEP = 2.0**-11
ROUNDINGS = 100 * 2.0**-53  # relative error of a forward in float64
MODELS = {"gpt2": GPT2, "llama2": LLAMA2}
NAMES = tuple(f"{of}.{name}" for of, model in MODELS.items() for name in model.names)
ENTRIES, ENTRIES_OF_MODEL = 12, 3  # checked per array and example


@dataclass
class Finding:
    """The largest errors over many examples."""

    name: str
    relative: float = 0.0  # |gradient - difference| / largest entry of the gradient
    tolerance_used: float = 0.0  # |gradient - difference| / error of the difference
    bound_used: dict[str, float] = field(default_factory=dict)  # per backend: error / bound

    @property
    def passed(self) -> bool:
        """NaN does not pass."""
        return self.tolerance_used <= 1 and all(used <= 1 for used in self.bound_used.values())

    def add(
        self, gradient: Array64, found: Array64, tolerance: Array64, least: float = 1e-30
    ) -> None:
        """Add entries of a gradient, the differences there, and the errors of those.

        least: lower limit of the largest entry, which `relative` divides by
        """
        off = np.abs(gradient - found)
        largest = max(float(np.abs(gradient).max()), float(np.abs(found).max()), least)
        self.relative = float(np.maximum(self.relative, off.max() / largest))
        self.tolerance_used = float(np.maximum(self.tolerance_used, (off / tolerance).max()))

    def add_backend(self, backend: str, found: NDArray[Any], bounded: Bounded) -> None:
        """Add a gradient computed by a backend."""
        off = np.abs(found.astype(np.float64) - bounded.value)
        with np.errstate(over="ignore"):  # an error where none is allowed
            used = np.where(off == 0, 0.0, off / np.maximum(bounded.error, 2.0**-1074))
        before = self.bound_used.get(backend, 0.0)
        self.bound_used[backend] = float(np.maximum(before, used.max()))


# ---- differences ------------------------------------------------------------------------------


def difference(f: Callable[[], Array64], x: Array64, entry: int) -> tuple[float, float]:
    """∂(Σ f)/∂x at one entry of x, which f reads, and the error of that.

    Central differences with steps h, 2h and 4h; each neighbouring pair is extrapolated, so that the
    h² terms cancel. The finer extrapolation is the result. Its error is less than the distance of
    the two, plus the rounding of the sums: ROUNDINGS times Σ(1 + |f|) / h.
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
    """Check random entries of one gradient. x: float64, read by f; least: see `Finding.add`."""
    entries = random.permutation(x.size)[:most]
    found, tolerance = np.array([difference(f, x, int(i)) for i in entries]).T
    finding.add(gradient.reshape(-1)[entries], found, tolerance, least)


def check_pair(
    model: Gradients,
    name: str,
    engines: Mapping[str, Engine],
    examples: int,
    seed: int,
    ops: Any = None,
) -> Finding:
    """Check a backward of `ops` (default: the specification) and that of every engine.

    ops in float64 against differences of its forward; engines in float32 against the op's bound.
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
        _check_backends(finding, model, engines, inputs, dout.astype(np.float32))
    return finding


def _check_backends(
    finding: Finding, model: Gradients, engines: Mapping[str, Engine], inputs: Any, dout: Any
) -> None:
    """One example in float32; all backends get the results kept by the specification's forward."""
    trace = model.pairs[finding.name](model.ops, *inputs)
    kept = trace.inputs(dout)
    bounded = model.table[trace.backward].bound(*kept)
    bounded = (bounded,) if isinstance(bounded, Bounded) else bounded
    for backend, engine in engines.items():
        found = _tuple(getattr(engine.ops, trace.backward)(*kept))
        for one, expected in zip(found, bounded, strict=True):
            finding.add_backend(backend, one, expected)


def check_model(
    model: Gradients, engines: Mapping[str, Engine], examples: int, seed: int, ops: Any = None
) -> Finding:
    """Check the gradient of every parameter of small random models, some entries per array."""
    finding, random = Finding("model"), np.random.default_rng(seed)
    for _ in range(examples):
        whole = model.random_model(random)
        tokens, targets = model.random_batch(whole, random)
        _check_specification(finding, whole, ops or model.ops, tokens, targets, random)
        bound = training_bound(whole, tokens, targets, 1 / tokens.size)
        for backend, engine in engines.items():
            found = whole.params.zeros_like()
            other = type(whole)(whole.config, whole.params, engine)
            other.add_gradient(tokens, targets, 1 / tokens.size, found, fresh=True)
            for name, expected in bound.gradient.items():
                finding.add_backend(backend, found[name], expected)
    return finding


def _check_specification(
    finding: Finding, model: Any, ops: Any, tokens: Any, targets: Any, random: np.random.Generator
) -> None:
    """Check one model in float64 against differences of a weighted sum of its losses."""
    params = Parameters(model.params.shapes, _wide(model.params.flat))
    wide = type(model)(model.config, params, Engine(ops))
    acts = wide.forward(tokens, targets)
    dlosses: Any = random.normal(size=acts.losses.shape)
    gradient = wide.backward(acts, dlosses)

    def weighted() -> Any:
        return dlosses.reshape(tokens.shape) * wide.losses(tokens, targets)

    # Relative to the largest entry of all arrays: some have no gradient (queries, if T is 1).
    largest = max(float(np.abs(gradient.flat).max()), 1e-30)
    for name, x in params.items():
        check_array(finding, weighted, x, gradient[name], random, ENTRIES_OF_MODEL, largest)


def check(name: str, engines: Mapping[str, Engine], examples: int, seed: int) -> Finding:
    """Check one of NAMES on random examples; engines: by backend name, of the model's family."""
    of, _, pair = name.partition(".")
    if pair == "model":
        return check_model(MODELS[of], engines, examples, seed)
    return check_pair(MODELS[of], pair, engines, examples, seed)


def named(word: str | None) -> list[str]:
    """The NAMES that a word selects: one of them, a model, or an op of every model; None: all."""
    return [name for name in NAMES if word is None or word in (name, *name.split("."))]


def _wide(a: Any) -> Any:
    return a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype == np.float32 else a


def _tuple(result: Any) -> tuple[Any, ...]:
    """A single result as a tuple of one."""
    return (result,) if isinstance(result, np.ndarray) else result
