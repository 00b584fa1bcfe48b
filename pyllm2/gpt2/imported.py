"""A GPT-2 out of a file of another program, one tensor at a time, whatever the container."""

from __future__ import annotations

from collections.abc import Callable

from pyllm2 import memory
from pyllm2.backends import Engine
from pyllm2.gpt2.config import GPT2Config
from pyllm2.gpt2.model import GPT2
from pyllm2.parameters import Array, Parameters

WITHOUT_LAYERS = ("wte", "wpe", "lnfw", "lnfb")  # the others have a slice per layer


def build(config: GPT2Config, engine: Engine, read: Callable[[str, int], Array]) -> GPT2:
    """The model whose tensors `read(name, layer)` gives, float32, in the order of the parameters.

    name: of `GPT2Config.shapes`   layer: 0 if the array has no layers   ->   that layer's slice

    A slice may be smaller than the array's: the rest stays zero. Rows of wte beyond the vocabulary
    are never used, and a feed-forward block that is narrower than 4C adds gelu(0) · 0.

    Needs the memory of the float32 parameters and of the largest tensor.

    Raises NotEnoughMemoryError before anything is read, and what `read` raises.
    """
    memory.require(4 * config.parameters(), "the parameters", "use a smaller model")
    params = Parameters(config.shapes())
    for name, array in params.items():
        layers = [array] if name in WITHOUT_LAYERS else list(array)
        for layer, out in enumerate(layers):
            found = read(name, layer)
            out[tuple(slice(n) for n in found.shape)] = found
    return GPT2(config, params, engine)
