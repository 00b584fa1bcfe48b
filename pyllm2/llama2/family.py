"""What training needs to know of Llama-2; `pyllm2.gpt2.family` has the same names."""

from __future__ import annotations

from pyllm2.backends import Engine
from pyllm2.llama2.checkpoint import load_config, load_parameters, save_parameters
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.initial import descriptor, initial_parameters
from pyllm2.llama2.model import Llama2, Weights
from pyllm2.llama2.training import MATRICES, TrainableLlama2, activation_floats
from pyllm2.parameters import Parameters, Quantized

__all__ = [
    "MATRICES",
    "activation_floats",
    "build",
    "decoder",
    "descriptor",
    "empty_parameters",
    "initial_parameters",
    "load_config",
    "load_parameters",
    "save_parameters",
    "trainable",
]


def empty_parameters(config: Llama2Config) -> Parameters:
    """Zeros of every shape."""
    return Parameters(config.shapes())


def build(
    config: Llama2Config, params: Parameters, engine: Engine, dropout: float = 0.0, seed: int = 0
) -> TrainableLlama2:
    """The model to train."""
    return TrainableLlama2(config, params, engine, dropout, seed)


def decoder(model: TrainableLlama2) -> Llama2:
    """The same parameters, not copied, token by token."""
    return Llama2(model.config, Weights(**model.params), model.engine)


def trainable(model: Llama2) -> TrainableLlama2:
    """A copy of the parameters in one vector, for loss and gradients.

    Raises ValueError, in words that follow the model's name, for int8, a classifier of its own, or
    a model that is beyond run.c.
    """
    if isinstance(model.weights.wq, Quantized):
        raise ValueError("is int8: loss and gradients need float32 weights")
    if model.weights.classifier is not None:
        raise ValueError("has a classifier of its own: loss and gradients need a shared one")
    for name, value in model.config.beyond_run_c.items():
        raise ValueError(f"has {name} = {value}: loss and gradients are those of run.c's model")
    params, weights = empty_parameters(model.config), model.unpacked().weights
    for name, array in params.items():
        array[...] = getattr(weights, name)
    return TrainableLlama2(model.config, params, model.engine)
