"""The runs that `diff` compares: a prompt with a cache, and a training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.backends import Engine
from pyllm2.llama2.model import Llama2
from pyllm2.observe.names import UNSTACKED
from pyllm2.observe.trace import Recorder
from pyllm2.parameters import PackedLayers, Parameters, Quantized

Array = NDArray[Any]
SINGLE_TOKENS = 3  # at the end of a prompt, that are fed one by one


class Prompt:
    """Ids through a model with a cache: all but the last few at once, then one by one."""

    name = "inference"

    def __init__(self, ids: Sequence[int], singles: int = SINGLE_TOKENS) -> None:
        self.ids = np.array(ids, np.int64)
        self.cut = len(ids) - min(singles, len(ids) // 2)

    def __call__(self, model: Any, recorder: Recorder | None = None) -> dict[str, Array]:
        """Logits, and the keys and values of the cache."""
        T, cut = len(self.ids), self.cut
        cache = model.new_cache(T)
        found = [model.forward(self.ids[:cut], 0, cache)]
        found += [model.forward(self.ids[t : t + 1], t, cache) for t in range(cut, T)]
        results = {"logits": np.concatenate(found)}
        if hasattr(cache, "keys"):
            return {"keys": cache.keys, "values": cache.values, **results}
        return {"qkv": cache.qkv[:, 0], **results}


class Step:
    """A training step: losses and the gradient of their mean."""

    name = "training"

    def __init__(self, x: NDArray[np.integer], y: NDArray[np.integer]) -> None:
        self.x, self.y, self.dloss = x, y, float(np.float32(1 / x.size))

    def __call__(self, model: Any, recorder: Recorder | None = None) -> dict[str, Array]:
        """Losses, and the gradient of every parameter."""
        if recorder is None:
            grads = model.params.zeros_like()
            losses = model.add_gradient(self.x, self.y, self.dloss, grads, fresh=True)
        else:
            acts = model.forward(self.x, self.y)
            grads = model.backward(acts, np.full_like(acts.losses, self.dloss))
            losses = acts.losses
        return {"losses": losses.reshape(self.x.shape), **grads}


class Layer:
    """One layer on a given stream.

    stream: (T, C)   norm: with the final norm after it
    """

    name = "a layer"

    def __init__(self, layer: int, stream: Array, norm: bool = False) -> None:
        self.layer, self.stream, self.norm = layer, stream, norm

    def __call__(self, model: Any, recorder: Recorder | None = None) -> dict[str, Array]:
        """The stream after the layer, (T, C)."""
        ops, layer, T = model.ops, self.layer, len(self.stream)
        cache = model.new_cache(T)
        if recorder is not None:
            recorder.records.clear()  # the tables of RoPE
            recorder.begin_pass(0, T, cache)
        gpt2 = hasattr(model, "params")
        residual = ops.residual_forward if gpt2 else ops.residual
        x = self.stream[None] if gpt2 else self.stream
        x = residual(x, model.attention_block(x, layer, 0, cache))
        x = residual(x, model.ffn_block(x, layer))
        if self.norm and gpt2:
            x = ops.layernorm_forward(x, model.params.lnfw, model.params.lnfb)[0]
        elif self.norm:
            x = ops.rmsnorm(x, model.weights.final_norm)
        return {"stream": x.reshape(self.stream.shape)}


def on_engine(model: Any, engine: Engine) -> Any:
    """The same model on another engine."""
    if isinstance(model, Llama2):
        return Llama2(model.config, model.weights, engine)
    if hasattr(model, "dropout"):
        return type(model)(model.config, model.params, engine, model.dropout, model.seed)
    return type(model)(model.config, model.params, engine)


# ---- smaller models, to look inside a whole pass ------------------------------------------------

LAST: dict[str, tuple[str, ...]] = {"attention": ("w2", "fcprojw", "fcprojb", "b2"), "layer": ()}
NOTHING_BUT_ENDS = (*LAST["attention"], "wo", "bo", "attprojw", "attprojb")


def layers_of(config: Any, first: int, count: int, **changes: Any) -> Any:
    """The config of some of the layers."""
    changes["n_layers" if hasattr(config, "n_layers") else "num_layers"] = count
    windows = getattr(config, "windows", ())
    if windows:
        changes["windows"] = windows[first : first + count]
    return replace(config, **changes)


def zeroed(array: Any) -> Any:
    if isinstance(array, Quantized):
        return replace(array, values=np.zeros_like(array.values))
    if isinstance(array, PackedLayers):
        return np.zeros(array.shape, np.float32)
    return np.zeros_like(array)


def shortened(model: Any, count: int, zero: Sequence[str]) -> Any:
    """A trainable model with the first layers, in the last of which some weights are zero."""
    config = layers_of(model.config, 0, count)
    params = Parameters(config.shapes())
    for name, array in params.items():
        array[...] = model.params[name] if name in UNSTACKED else model.params[name][:count]
        if name in zero:
            array[-1] = 0
    parts = (config, params, model.engine)
    return type(model)(*parts, 0.0, 0) if hasattr(model, "dropout") else type(model)(*parts)


def probe(model: Llama2, layer: int, stream: Array, zero: Sequence[str]) -> Llama2:
    """One layer whose input and output can be seen: a Llama-2 of a single layer.

    Its embedding is the stream that enters the layer, so that id t is the input at position t; its
    final norm is 1 and its classifier the identity, so that the logits are the normalised stream.
    stream: (P, C)   zero: names of weights to put to zero
    """
    (P, C), config = stream.shape, model.config
    V = max(P, C)
    table, identity = np.zeros((V, C), np.float32), np.zeros((V, C), np.float32)
    table[:P], identity[:C] = stream, np.eye(C, dtype=np.float32)
    ends = {"token_embedding": table, "classifier": identity, "final_norm": np.ones(C, np.float32)}
    found: dict[str, Any] = {}
    for name, array in vars(model.weights).items():
        if name in ends or array is None:
            found[name] = ends.get(name)
        else:
            packed = isinstance(array, PackedLayers)
            one = array.part(layer, layer + 1) if packed else array[layer : layer + 1]
            found[name] = zeroed(one) if name in zero else one
    small = layers_of(config, layer, 1, vocab_size=V)
    return Llama2(small, type(model.weights)(**found), model.engine)
