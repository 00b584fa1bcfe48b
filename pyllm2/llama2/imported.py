"""A Llama-2 out of a file of another program, one tensor at a time, whatever the container."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pyllm2 import memory
from pyllm2.backends import Engine
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.model import Llama2, Weights
from pyllm2.parameters import Array

# The others have a slice per layer.
WITHOUT_LAYERS = ("token_embedding", "final_norm", "classifier")


def build(
    config: Llama2Config,
    engine: Engine,
    read: Callable[[str, int], Array],
    shared_classifier: bool,
) -> Llama2:
    """The model whose tensors `read(name, layer)` gives, float32, in the order of `Weights`.

    name: of a field of `Weights`   layer: 0 if the array has no layers   ->   that layer's slice

    Needs the memory of the float32 weights and of the largest tensor.

    Raises NotEnoughMemoryError before anything is read, and what `read` raises.
    """
    memory.require(
        4 * config.parameters(shared_classifier), "the parameters", "use a smaller model"
    )
    arrays: dict[str, Any] = {}
    for name, shape in config.shapes(shared_classifier).items():
        if name in WITHOUT_LAYERS:
            arrays[name] = read(name, 0)
        else:
            arrays[name] = np.empty(shape, np.float32)
            for layer in range(config.n_layers):
                arrays[name][layer] = read(name, layer)
    return Llama2(config, Weights(**arrays), engine)


def rotated_heads(config: Llama2Config) -> dict[str, int]:
    """The arrays whose rows are in the order of the rotation, and how many heads they have."""
    NH, NKV = config.n_heads, config.n_kv_heads
    return {"wq": NH, "bq": NH, "wk": NKV, "bk": NKV, "q_norm": 1, "k_norm": 1}
