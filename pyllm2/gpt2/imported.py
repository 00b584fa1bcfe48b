"""A GPT-2 out of a file of another program, one tensor at a time, whatever the container."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pyllm2 import memory
from pyllm2.backends import Engine
from pyllm2.gpt2.config import GPT2Config
from pyllm2.gpt2.model import GPT2
from pyllm2.parameters import Array, Parameters

WITHOUT_LAYERS = ("wte", "wpe", "lnfw", "lnfb")  # the others have a slice per layer


def build(config: GPT2Config, engine: Engine, read: Callable[[str, int], Array]) -> GPT2:
    """The model whose tensors `read(name, layer)` gives, float32, in the order of the parameters.

    name: of `GPT2Config.shapes`   layer: 0 if the array has no layers   ->   that layer's slice

    Needs the memory of the float32 parameters and of the largest tensor.

    Raises NotEnoughMemoryError before anything is read, and what `read` raises.
    """
    memory.require(4 * config.parameters(), "the parameters", "use a smaller model")
    params = Parameters(config.shapes())
    for name, array in params.items():
        layers = [array] if name in WITHOUT_LAYERS else list(array)
        for layer, out in enumerate(layers):
            out[...] = read(name, layer)
    return GPT2(config, params, engine)


def filled(array: Array, shape: tuple[int, ...]) -> Array:
    """The array with zeros behind its numbers, up to a shape."""
    if array.shape == shape:
        return array
    return np.pad(array, [(0, n - m) for n, m in zip(shape, array.shape, strict=True)])
