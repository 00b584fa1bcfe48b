"""A Llama-2 out of a file of another program, one tensor at a time, whatever the container."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import numpy as np

from pyllm2 import memory
from pyllm2.backends import Engine
from pyllm2.errors import ConfigError
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


def config_of(values: dict[str, Any]) -> Llama2Config:
    """The config of these values. Raises ConfigError if another one is not run.c's."""
    known = {field.name for field in fields(Llama2Config)}
    plain: dict[str, Any] = {"norm_epsilon": 1e-5, "rope_base": 10000.0, "rope_scaling": None}
    plain["windows"] = ()
    plain["head_size"] = values["dim"] // max(1, values["n_heads"])
    for name, value in values.items():
        default = plain.get(name, False)
        close = isinstance(default, float) and abs(value - default) <= 1e-6 * default
        same = close or value == default or (name == "head_size" and value == 0)
        if name not in known and not same:
            raise ConfigError(name, value, f"only {default} is supported")
    return Llama2Config(**{name: value for name, value in values.items() if name in known})


def complete(config: Llama2Config) -> Any:
    """The config, with run.c's values for fields that it does not have."""
    values: dict[str, Any] = {"norm_epsilon": 1e-5, "rope_base": 10000.0, "rope_scaling": None}
    values |= dict.fromkeys("qkv_bias output_bias ffn_bias head_norm".split(), False)
    values |= {"windows": (), "head_size": config.head_size}
    return SimpleNamespace(**values | {f.name: getattr(config, f.name) for f in fields(config)})
