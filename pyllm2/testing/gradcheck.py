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

from pyllm2.gpt2 import ops as specification
from pyllm2.gpt2.config import GPT2Config
from pyllm2.gpt2.model import GPT2
from pyllm2.testing.bounds import Array64, Bounded
from pyllm2.testing.gpt2_model_bound import training_bound
from pyllm2.testing.gpt2_ops import GPT2_OPS
from pyllm2.testing.gpt2_strategies import random_parameters
from pyllm2.training.parameters import Parameters

STEP = 2.0**-11
ROUNDINGS = 100 * 2.0**-53  # of a forward in float64, relative to what it puts out
ENTRIES, ENTRIES_OF_MODEL = 12, 3  # of each array that are tried in an example


@dataclass(frozen=True)
class Trace:
    """A forward that was run: its result, its backward's name and what that takes after dout."""

    out: NDArray[Any]
    backward: str
    inputs: Callable[[NDArray[Any]], tuple[Any, ...]]


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

    def add(self, gradient: Array64, found: Array64, tolerance: Array64) -> None:
        """Entries of a gradient, the differences there, and what those may be off by."""
        off = np.abs(gradient - found)
        largest = max(float(np.abs(gradient).max()), float(np.abs(found).max()), 1e-30)
        self.relative = float(np.maximum(self.relative, off.max() / largest))
        self.allowed = float(np.maximum(self.allowed, (off / tolerance).max()))

    def add_share(self, backend: str, found: NDArray[Any], bounded: Bounded) -> None:
        """What a backend gave for a gradient."""
        off = np.abs(found.astype(np.float64) - bounded.value)
        with np.errstate(over="ignore"):  # of an exact result that is not
            share = np.where(off == 0, 0.0, off / np.maximum(bounded.error, 2.0**-1074))
        self.shares = self.shares or {}
        self.shares[backend] = float(np.maximum(self.shares.get(backend, 0.0), share.max()))


# ---- forwards, each with its backward --------------------------------------------------------


def encoder(ops: Any, tokens: Any, wte: Any, wpe: Any) -> Trace:
    zeros = np.zeros_like(wte), np.zeros_like(wpe)
    out = ops.encoder_forward(tokens, wte, wpe)
    return Trace(out, "encoder_backward", lambda dout: (dout, tokens, *zeros))


def layernorm(ops: Any, x: Any, w: Any, b: Any) -> Trace:
    out, mean, rstd = ops.layernorm_forward(x, w, b)
    return Trace(out, "layernorm_backward", lambda dout: (dout, x, w, mean, rstd))


def matmul(ops: Any, x: Any, w: Any, b: Any) -> Trace:
    return Trace(ops.matmul_forward(x, w, b), "matmul_backward", lambda dout: (dout, x, w))


def attention(ops: Any, qkv: Any, NH: int) -> Trace:
    out, att = ops.attention_forward(qkv, NH)
    return Trace(out, "attention_backward", lambda dout: (dout, qkv, att))


def gelu(ops: Any, x: Any) -> Trace:
    return Trace(ops.gelu_forward(x), "gelu_backward", lambda dout: (dout, x))


def residual(ops: Any, a: Any, b: Any) -> Trace:
    return Trace(ops.residual_forward(a, b), "residual_backward", lambda dout: (dout,))


def crossentropy(ops: Any, logits: Any, V: int, targets: Any) -> Trace:
    probs = ops.softmax_forward(logits, V)
    losses = ops.crossentropy_forward(probs, targets)
    return Trace(
        losses, "crossentropy_softmax_backward", lambda dlosses: (dlosses, probs, targets, V)
    )


PAIRS: dict[str, Callable[..., Trace]] = {
    pair.__name__: pair
    for pair in (encoder, layernorm, matmul, attention, gelu, residual, crossentropy)
}
NAMES = (*PAIRS, "model")


def example(name: str, random: np.random.Generator) -> tuple[Any, ...]:
    """Inputs of a forward: small shapes, normal deviates."""
    B, T, C, OC = (int(n) for n in random.integers(1, [4, 7, 13, 13]))
    NH, V = (int(n) for n in random.integers(1, [4, 9]))

    def normal(*shape: int) -> NDArray[np.float32]:
        return random.normal(size=shape).astype(np.float32)

    shapes: dict[str, tuple[Any, ...]] = {
        "encoder": (random.integers(0, V, (B, T)), normal(V + 1, C), normal(T + 1, C)),
        "layernorm": (normal(B, T, C), normal(C), normal(C)),
        "matmul": (normal(B, T, C), normal(OC, C), normal(OC)),
        "attention": (normal(B, T, 3 * NH * C), NH),
        "gelu": (2 * normal(B, T, C),),
        "residual": (normal(B, T, C), normal(B, T, C)),
        "crossentropy": (normal(B, T, V + 2), V, random.integers(0, V, (B, T))),
    }
    return shapes[name]


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
) -> None:
    """Some entries of one gradient, picked at random. x: float64, and what f reads."""
    entries = random.permutation(x.size)[:most]
    found, tolerance = np.array([difference(f, x, int(i)) for i in entries]).T
    finding.add(gradient.reshape(-1)[entries], found, tolerance)


def check_pair(
    name: str, backends: Mapping[str, Any], examples: int, seed: int, ops: Any = specification
) -> Finding:
    """A backward of `ops` in float64 against differences of its forward; backends by bounds."""
    finding, random = Finding(name), np.random.default_rng(seed)
    for _ in range(examples):
        inputs = example(name, random)
        dout = random.normal(size=PAIRS[name](ops, *inputs).out.shape)
        _differ(finding, ops, tuple(map(_wide, inputs)), dout, random)
        _rival(finding, backends, inputs, dout.astype(np.float32))
    return finding


def _differ(
    finding: Finding, ops: Any, inputs: tuple[Any, ...], dout: Array64, random: np.random.Generator
) -> None:
    """One example, in float64."""
    pair = PAIRS[finding.name]
    trace = pair(ops, *inputs)
    gradients = _tuple(getattr(ops, trace.backward)(*trace.inputs(dout)))
    arrays = [a for a in inputs if isinstance(a, np.ndarray) and a.dtype == np.float64]
    for x, gradient in zip(arrays, gradients, strict=True):
        check_array(finding, lambda: dout * pair(ops, *inputs).out, x, gradient, random)


def _rival(
    finding: Finding, backends: Mapping[str, Any], inputs: tuple[Any, ...], dout: Any
) -> None:
    """One example, in float32: every backend gets what the specification's forward has kept."""
    trace = PAIRS[finding.name](specification, *inputs)
    kept = trace.inputs(dout)
    bounded = GPT2_OPS[trace.backward].bound(*kept)
    bounded = (bounded,) if isinstance(bounded, Bounded) else bounded
    for backend, ops in backends.items():
        found = _tuple(getattr(ops, trace.backward)(*kept))
        for one, expected in zip(found, bounded, strict=True):
            finding.add_share(backend, one, expected)


def check_model(
    backends: Mapping[str, Any], examples: int, seed: int, ops: Any = specification
) -> Finding:
    """The gradient of every parameter of small random models, some entries of each tensor."""
    finding, random = Finding("model"), np.random.default_rng(seed)
    for _ in range(examples):
        model = random_model(random)
        B, T = int(random.integers(1, 4)), int(random.integers(1, model.config.max_seq_len + 1))
        tokens, targets = random.integers(0, model.config.vocab_size, (2, B, T))
        _differ_model(finding, model, ops, tokens, targets, random)
        bound = training_bound(model, tokens, targets, 1 / (B * T))
        for backend, rival in backends.items():
            found = model.params.zeros_like()
            whole = GPT2(model.config, model.params, rival)
            whole.add_gradient(tokens, targets, 1 / (B * T), found, fresh=True)
            for name, expected in bound.gradient.items():
                finding.add_share(backend, found[name], expected)
    return finding


def _differ_model(
    finding: Finding, model: GPT2, ops: Any, tokens: Any, targets: Any, random: np.random.Generator
) -> None:
    """One model in float64, every loss weighted differently."""
    params = Parameters(model.params.shapes, _wide(model.params.flat))
    wide = GPT2(model.config, params, ops)
    dlosses: Any = random.normal(size=tokens.shape)
    gradient = wide.backward(wide.forward(tokens, targets), dlosses)

    def weighted() -> Any:
        return dlosses * wide.losses(tokens, targets)

    for name, x in params.items():
        check_array(finding, weighted, x, gradient[name], random, ENTRIES_OF_MODEL)


def check(name: str, backends: Mapping[str, Any], examples: int, seed: int) -> Finding:
    """One of NAMES, on so many drawn examples."""
    if name == "model":
        return check_model(backends, examples, seed)
    return check_pair(name, backends, examples, seed)


def random_model(random: np.random.Generator) -> GPT2:
    """One or two layers, a few heads, padding rows that are not zero.

    At least four channels: a norm of two leaves nothing but signs, and no gradient.
    """
    L, NH, hs, V, S = (int(n) for n in random.integers([1, 1, 4, 2, 2], [3, 4, 8, 20, 8]))
    config = GPT2Config(S, V, L, NH, NH * hs, V + int(random.integers(0, 4)))
    return GPT2(config, random_parameters(config, int(random.integers(2**32))), specification)


def _wide(a: Any) -> Any:
    return a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype == np.float32 else a


def _tuple(result: Any) -> tuple[Any, ...]:
    """Several results as they are, one as a tuple of one."""
    return (result,) if isinstance(result, np.ndarray) else result
