"""What training needs to know of GPT-2; `pyllm2.llama2.family` has the same names."""

from __future__ import annotations

from pyllm2.backends import Engine
from pyllm2.gpt2.checkpoint import load_config, load_parameters, save_parameters
from pyllm2.gpt2.config import GPT2Config
from pyllm2.gpt2.initial import descriptor, initial_parameters
from pyllm2.gpt2.model import GPT2
from pyllm2.gpt2.training import MATRICES, TrainableGPT2, activation_floats
from pyllm2.parameters import Parameters

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


def empty_parameters(config: GPT2Config) -> Parameters:
    """Zeros of every shape."""
    return Parameters(config.shapes())


def build(
    config: GPT2Config, params: Parameters, engine: Engine, dropout: float = 0.0, seed: int = 0
) -> TrainableGPT2:
    """The model to train, without dropout, as llm.c trains it."""
    return TrainableGPT2(config, params, engine)


def decoder(model: TrainableGPT2) -> GPT2:
    """The same parameters, not copied, token by token."""
    return GPT2(model.config, model.params, model.engine)


def trainable(model: GPT2) -> TrainableGPT2:
    """The same parameters, not copied, for loss and gradients."""
    return TrainableGPT2(model.config, model.params, model.engine)
