"""What `pyllm2 train gpt2` needs to know of GPT-2; `pyllm2.llama2.family` has the same names."""

from __future__ import annotations

from typing import Any

from pyllm2.gpt2.activations import activations
from pyllm2.gpt2.config import GPT2Config
from pyllm2.gpt2.decoding import Decoder
from pyllm2.gpt2.files import load_config, load_parameters, save_parameters
from pyllm2.gpt2.initial import descriptor, initial_parameters
from pyllm2.gpt2.model import GPT2, MATRICES
from pyllm2.gpt2.tokenizer import load_tokenizer
from pyllm2.training.parameters import Parameters

__all__ = [
    "MATRICES", "activations", "build", "decoder", "descriptor", "empty_parameters",
    "initial_parameters", "load_config", "load_parameters", "load_tokenizer", "save_parameters",
]  # fmt: skip


def empty_parameters(config: GPT2Config) -> Parameters:
    """Room for what a checkpoint holds."""
    return Parameters(config.shapes())


def build(
    config: GPT2Config, params: Parameters, ops: Any, dropout: float = 0.0, seed: int = 0
) -> GPT2:
    """The model to train; GPT-2 is trained without dropout, as llm.c does."""
    return GPT2(config, params, ops)


def decoder(model: GPT2) -> Decoder:
    """The same model, token by token."""
    return Decoder(model)
