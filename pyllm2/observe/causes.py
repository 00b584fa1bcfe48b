"""The usual causes of a layer that differs: a change of our layer that gives the other's result.

Each cause makes a model that is wrong (or right) in one way. If a layer then gives, inside the
bound, what the other program has, that is the difference between the two, whichever is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyllm2.llama2.model import Llama2
from pyllm2.llama2.rotary_order import half_split, interleaved
from pyllm2.observe.ensemble import exact_run
from pyllm2.observe.judge import measure
from pyllm2.parameters import Parameters, Quantized

Array = NDArray[Any]


class Cause(NamedTuple):
    """words: "with `wq and wk exchanged`"   op: the one that it concerns   names: its weights"""

    words: str
    op: str
    names: tuple[str, ...]
    change: Callable[[Any, int], Any]  # (model, layer) -> the changed model; None: not possible
    ops: Callable[[Any], Any] | None = None  # the ops of a model -> others

    def where(self, layer: int) -> str:
        """Example: "layer 1 wq and wk rope" """
        place = "every layer" if layer < 0 else f"layer {layer}"
        return " ".join([place, *[" and ".join(self.names)] * bool(self.names), self.op])


def causes(family: str) -> list[Cause]:
    """Those of a family, the most common first."""
    return list(_llama2() if family == "llama2" else _gpt2())


def _llama2() -> Iterator[Cause]:
    names = ("wq", "wk")
    unpermuted = "the rows of wq and wk taken for half-split (RoPE unpermuted)"
    yield Cause(unpermuted, "rope", names, _reordered(interleaved, names))
    twice = "the rows of wq and wk permuted back to half-split (RoPE permuted once too often)"
    yield Cause(twice, "rope", names, _reordered(half_split, names))
    for pair in (("wq", "wk"), ("wk", "wv"), ("w1", "w3"), ("attention_norm", "ffn_norm")):
        op = {"w1": "swiglu", "attention_norm": "rmsnorm"}.get(pair[0], "matmul")
        yield Cause(f"{pair[0]} and {pair[1]} exchanged", op, pair, _exchanged(*pair))
    for name in names:
        order = f"the rows of {name} alone in another order (RoPE turns other pairs)"
        for reorder in (interleaved, half_split):
            yield Cause(order, "rope", (name,), _reordered(reorder, (name,)))
    for name in ("wq", "wk", "wv", "wo", "w1", "w2", "w3"):
        yield Cause(f"{name} transposed", "matmul", (name,), _transposed(name))
    for epsilon in (1e-5, 1e-6):
        yield Cause(f"a norm epsilon of {epsilon:g}", "rmsnorm", (), _config(norm_epsilon=epsilon))
    for base in (10000.0, 500000.0, 1000000.0):
        yield Cause(f"a RoPE base of {base:g}", "rope", (), _config(rope_base=base))
    yield Cause("no RoPE scaling", "rope", (), _config(rope_scaling=None))
    yield Cause("no window", "attention", (), _config(windows=()))


def _gpt2() -> Iterator[Cause]:
    for a, b in ((0, 1), (1, 2), (0, 2)):
        parts = f"{'qkv'[a]} and {'qkv'[b]}"
        change = _exchanged_parts(a, b)
        yield Cause(f"the {parts} parts of qkvw exchanged", "matmul_forward", ("qkvw",), change)
    yield Cause("ln1 and ln2 exchanged", "layernorm_forward", ("ln1w", "ln2w"), _exchanged_norms)
    for name in ("attprojw", "qkvw", "fcw", "fcprojw"):
        yield Cause(f"{name} transposed", "matmul_forward", (name,), _transposed(name))
    yield Cause(
        "the exact gelu (erf), not tanh's", "gelu_forward", (), lambda model, _: model, _ExactGelu
    )


def find_cause(
    model: Any, family: str, run: Any, layers: Sequence[int], name: str, wanted: Sequence[Any]
) -> tuple[int, Cause] | None:
    """The layer and the cause with which a run gives what another program has; layer -1: all.

    name: of the run's result, (T, n)   wanted: pairs of the other's array and the error allowed
    """
    if isinstance(model, Llama2):
        model = model.unpacked()
    for cause in causes(family):
        for layer in [*layers, -1] if len(layers) > 1 else layers:
            changed = model
            for n in layers if layer < 0 else [layer]:
                changed = changed and cause.change(changed, n)
            if changed is None:
                continue
            value = exact_run(changed, family, run, cause.ops)[name]
            if all(measure(found, value, e).inside for found, e in wanted):
                return layer, cause
    return None


# ---- changes -----------------------------------------------------------------------------------


def _with(model: Any, layer: int, arrays: dict[str, Any]) -> Any:
    """A model with other arrays in one layer."""
    held = getattr(model, "weights", None)
    if held is not None:
        changed: dict[str, Any] = {}
        for name, array in arrays.items():
            old = getattr(held, name)
            if isinstance(old, Quantized):
                values, scales = old.values.copy(), old.scales.copy()
                values[layer], scales[layer] = array
                changed[name] = replace(old, values=values, scales=scales)
            else:
                changed[name] = old.copy()
                changed[name][layer] = array
        return _like(model, replace(held, **changed))
    params = Parameters(model.params.shapes, model.params.flat.copy())
    for name, array in arrays.items():
        params[name][layer] = array
    return _like(model, params)


def _like(model: Any, arrays: Any, config: Any = None) -> Any:
    """The same class of model with other weights or another config."""
    return type(model)(config or model.config, arrays, model.engine)


def _of(model: Any, name: str, layer: int) -> Any:
    """A layer's slice of an array; of int8 the values and the scales. None: there is none."""
    held = getattr(model, "weights", None)
    array = getattr(held, name, None) if held is not None else model.params[name]
    if isinstance(array, Quantized):
        return array.values[layer], array.scales[layer]
    return None if array is None else array[layer]


def _shape(slice_: Any) -> tuple[int, ...]:
    return (slice_[0] if isinstance(slice_, tuple) else slice_).shape


def _exchanged(a: str, b: str) -> Callable[[Any, int], Any]:
    def change(model: Any, layer: int) -> Any:
        one, other = _of(model, a, layer), _of(model, b, layer)
        if one is None or other is None or _shape(one) != _shape(other):
            return None
        return _with(model, layer, {a: other, b: one})

    return change


def _reordered(
    reorder: Callable[[Array, int], Array], names: tuple[str, ...]
) -> Callable[[Any, int], Any]:
    def change(model: Any, layer: int) -> Any:
        heads = {"wq": model.config.n_heads, "wk": model.config.n_kv_heads}
        found: dict[str, Any] = {}
        for name in names:
            array = _of(model, name, layer)
            if isinstance(array, tuple):
                values, scales = array
                rows = scales.reshape(len(values), -1)
                if rows.size * len(values) == 0 or scales.size % len(values):
                    return None  # groups that span rows
                scales = reorder(rows, heads[name]).reshape(scales.shape)
                found[name] = (reorder(values, heads[name]), scales)
            else:
                found[name] = reorder(array, heads[name])
        return _with(model, layer, found)

    return change


def _transposed(name: str) -> Callable[[Any, int], Any]:
    def change(model: Any, layer: int) -> Any:
        array = _of(model, name, layer)
        if array is None or isinstance(array, tuple):
            return None
        square = array.shape[0] == array.shape[1]
        # Another shape, but as many numbers: read in the other order of axes.
        other = array.T if square else np.ascontiguousarray(array).reshape(array.shape[::-1]).T
        return _with(model, layer, {name: other})

    return change


def _config(**fields: Any) -> Callable[[Any, int], Any]:
    """The model with other hyperparameters, if it has them and other values."""

    def change(model: Any, layer: int) -> Any:
        for name, value in fields.items():
            if getattr(model.config, name, value) == value:
                return None
        return _like(model, model.weights, replace(model.config, **fields))

    return change


def _exchanged_parts(a: int, b: int) -> Callable[[Any, int], Any]:
    def change(model: Any, layer: int) -> Any:
        order = [0, 1, 2]
        order[a], order[b] = b, a
        found = {}
        for name in ("qkvw", "qkvb"):
            array = _of(model, name, layer)
            found[name] = array.reshape(3, -1, *array.shape[1:])[order].reshape(array.shape)
        return _with(model, layer, found)

    return change


def _exchanged_norms(model: Any, layer: int) -> Any:
    pairs = (("ln1w", "ln2w"), ("ln1b", "ln2b"))
    return _with(
        model,
        layer,
        {x: _of(model, y, layer) for a, b in pairs for x, y in ((a, b), (b, a))},
    )


class _ExactGelu:
    """The ops of a model, with x·Φ(x) in place of its approximation."""

    def __init__(self, ops: Any) -> None:
        self._ops = ops

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def gelu_forward(self, x: Array) -> Array:
        import math

        erf = np.vectorize(math.erf, otypes=[np.float64])
        return 0.5 * x * (1 + erf(x / math.sqrt(2)))
