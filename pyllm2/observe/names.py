"""Names of what goes in and out of an op: arguments, results, and the weights of a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyllm2.parameters import Packed, PackedLayers, Quantized

# Results of ops that have more than one, or one that has a name in the formula.
RESULTS = {
    name: tuple(words.split())
    for name, words in {
        "embedding_backward": "dtable",
        "rmsnorm_backward": "dx dweight",
        "rope_tables": "cos sin",
        "rope_backward": "dx",
        "attention_backward": "dq dk dv",
        "swiglu_backward": "dgate dup",
        "crossentropy_backward": "dlogits",
        "quantize": "values scales",
        "encoder_backward": "dwte dwpe",
        "layernorm_forward": "out mean rstd",
        "layernorm_backward": "dx dw db",
        "attention_forward": "out att",
        "gelu_backward": "dx",
        "residual_backward": "da db",
        "softmax_forward": "probs",
        "crossentropy_softmax_backward": "dlogits",
        "adamw_update": "w m v",
    }.items()
}
# Two ops have a name in both families, and other results in each.
RESULTS_OF = {
    ("llama2", "matmul_backward"): ("dx", "dw"),
    ("gpt2", "matmul_backward"): ("dx", "dw", "db"),
    ("llama2", "crossentropy_forward"): ("losses", "probs"),
    ("gpt2", "crossentropy_forward"): ("losses",),
    ("gpt2", "attention_backward"): ("dqkv",),
}
UNSTACKED = frozenset("token_embedding final_norm classifier wte wpe lnfw lnfb cos sin".split())


def results_of(family: str, op: str, count: int) -> tuple[str, ...]:
    """Names of the results of an op that returned `count` of them."""
    names = RESULTS_OF.get((family, op)) or RESULTS.get(op) or ("out",)
    return names if len(names) == count else tuple(f"out{n}" for n in range(count))


def arguments_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the positional arguments of a function; () if it has no signature."""
    try:
        return tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return ()


class Place(NamedTuple):
    """A weight that an array is, or is a view of."""

    name: str
    layer: int | None


class Weights:
    """Finds by its address which weight an array is a view of.

    Example: the array `weights.wq[2]` is Place("wq", 2).
    """

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self._spans: list[tuple[int, int, str, int, int | None]] = []
        for name, array in arrays.items():
            if isinstance(array, PackedLayers):
                for layer in range(len(array)):
                    self._add(name, array.rows(layer), 0, layer)
                continue
            parts = [array.values, array.scales] if isinstance(array, Quantized) else [array]
            for part in parts:
                part = part.rows if isinstance(part, Packed) else part
                if isinstance(part, np.ndarray):
                    stacked = name not in UNSTACKED and part.ndim > 1
                    self._add(name, part, part.strides[0] if stacked else 0, None)

    def _add(self, name: str, part: NDArray[Any], stride: int, layer: int | None) -> None:
        """stride: bytes per layer of a stack   layer: of a matrix alone"""
        if part.size:
            first, end = np.lib.array_utils.byte_bounds(part)
            self._spans.append((first, end, name, stride, layer))

    def place(self, array: NDArray[Any]) -> Place | None:
        address = array.__array_interface__["data"][0]
        for first, end, name, stride, layer in self._spans:
            if first <= address < end:
                return Place(name, (address - first) // stride if stride else layer)
        return None


def weights_of(model: Any) -> dict[str, Any]:
    """The weights of a model of either family by name; None left out."""
    held = getattr(model, "weights", None)
    arrays = vars(held) if held is not None else dict(model.params)
    return {name: array for name, array in arrays.items() if array is not None}
