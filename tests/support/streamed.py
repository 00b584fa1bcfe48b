"""Arrays in memory as the model of a file, slice by slice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyllm2.gpt2 import imported as gpt2
from pyllm2.llama2 import imported as llama2
from pyllm2.parameters import Array, Streamed

WHOLE = {*llama2.WITHOUT_LAYERS, *gpt2.WITHOUT_LAYERS}


def streamed(config: Any, arrays: Mapping[str, Array]) -> Streamed:
    """Of either family."""
    shapes = {name: array.shape for name, array in arrays.items()}

    def read(name: str, layer: int) -> Array:
        return arrays[name] if name in WHOLE else arrays[name][layer]

    return Streamed("memory", config, shapes, read)
