"""A Llama-2 out of a file of another program, one tensor at a time, whatever the container."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyllm2 import memory
from pyllm2.backends import Engine
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.model import Llama2, Weights
from pyllm2.parameters import Blocks, Packed, PackedLayers, Streamed

# The others have a slice per layer.
WITHOUT_LAYERS = ("token_embedding", "final_norm", "classifier")


def build(source: Streamed, engine: Engine, unpack: bool = False) -> Llama2:
    """The model of a file, its tensors read in the order of `Weights`.

    Matrices that are in blocks stay so, unless `unpack`; everything else becomes float32. Needs the
    memory of the weights and of the largest tensor.

    Raises NotEnoughMemoryError before anything is read, and what `source.read` raises.
    """
    config = source.config

    def blocks(name: str) -> list[Blocks | None]:
        layers = 1 if name in WITHOUT_LAYERS else config.n_layers
        return [None if unpack else source.blocks(name, layer) for layer in range(layers)]

    found = {name: blocks(name) for name in source.shapes}
    nbytes = sum(_nbytes(source.shapes[name], found[name]) for name in found)
    memory.require(nbytes, "the parameters", "use a smaller model")
    arrays: dict[str, Any] = {}
    for name, shape in source.shapes.items():
        first = found[name][0]
        if name in WITHOUT_LAYERS:
            arrays[name] = Packed(first.read(), first.kind) if first else source.read(name, 0)
        elif any(found[name]):
            arrays[name] = _packed_layers(source, name, found[name])
        else:
            arrays[name] = np.empty(shape, np.float32)
            for layer in range(config.n_layers):
                arrays[name][layer] = source.read(name, layer)
    return Llama2(config, Weights(**arrays), engine)


def _nbytes(shape: tuple[int, ...], layers: list[Blocks | None]) -> int:
    """Bytes of an array in memory."""
    floats = 4 * math.prod(shape) // len(layers)
    return sum(shape[-2] * b.row_bytes if b else floats for b in layers)


def _packed_layers(source: Streamed, name: str, layers: list[Blocks | None]) -> PackedLayers:
    _, OC, C = source.shapes[name]
    kinds, sizes = zip(*((b.kind, b.row_bytes) if b else (0, 4 * C) for b in layers), strict=True)
    stack = PackedLayers.empty(kinds, sizes, OC, C)
    for layer, b in enumerate(layers):
        rows = b.read() if b else source.read(name, layer).view(np.uint8)
        stack.rows(layer)[...] = rows
    return stack


def rotated_heads(config: Llama2Config) -> dict[str, int]:
    """The arrays whose rows are in the order of the rotation, and how many heads they have."""
    NH, NKV = config.n_heads, config.n_kv_heads
    return {"wq": NH, "bq": NH, "wk": NKV, "bk": NKV, "q_norm": 1, "k_norm": 1}
