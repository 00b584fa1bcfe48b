"""What `pyllm2 train llama2` needs to know of Llama-2; `pyllm2.gpt2.family` has the same names."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from pyllm2.errors import FileError
from pyllm2.formats import llama2c
from pyllm2.formats.reader import open_source
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.initial import descriptor, initial_parameters
from pyllm2.llama2.model import Llama2, Weights
from pyllm2.llama2.tokenizer import Tokenizer, from_vocabulary_file
from pyllm2.llama2.training import MATRICES, TrainableLlama2, shapes
from pyllm2.loading import check_config
from pyllm2.training.parameters import Parameters

__all__ = [
    "MATRICES", "activations", "build", "decoder", "descriptor", "empty_parameters",
    "initial_parameters", "load_config", "load_parameters", "load_tokenizer", "save_parameters",
]  # fmt: skip


def load_tokenizer(which: str | os.PathLike[str]) -> Tokenizer:
    """A `tokenizer.bin` or a SentencePiece model. Raises FileError or FormatError."""
    return from_vocabulary_file(which)[0]


def load_config(path: str | os.PathLike[str]) -> Llama2Config:
    """The shape of a checkpoint. Raises FileError or FormatError."""
    with open_source(path) as source:
        header = llama2c.read_header(source)
        if header.version == 2 or not header.shared_classifier:
            what = "int8" if header.version == 2 else "a model with a classifier of its own"
            raise FileError(
                source.path, f"is {what}: training goes on from float32 and a shared classifier"
            )
        return check_config(source, header)


def load_parameters(path: str | os.PathLike[str]) -> tuple[Llama2Config, Parameters]:
    """Shape and weights of a version 0 or 1 checkpoint. Raises FileError or FormatError."""
    config = load_config(path)
    with open_source(path) as source:
        arrays, _ = llama2c.read_tensors(source, llama2c.read_header(source))
    params = empty_parameters(config)
    for name, array in params.items():
        array[...] = arrays[name]
    return config, params


def save_parameters(path: str | os.PathLike[str], config: Llama2Config, params: Parameters) -> None:
    """Write a version 0 checkpoint, which every `run` plays, atomically."""
    llama2c.write_checkpoint(path, dataclasses.asdict(config), params)


def empty_parameters(config: Llama2Config) -> Parameters:
    """Room for what a checkpoint holds."""
    return Parameters(shapes(config))


def activations(config: Llama2Config, B: int, T: int) -> int:
    """How many float32 a forward of (B, T) keeps for its backward."""
    C, F, L, NH = config.dim, config.hidden_dim, config.n_layers, config.n_heads
    layer = 6 * C + 2 * config.kv_dim + 4 * F + NH * T
    return B * T * (L * layer + 3 * C + 2 * config.vocab_size + config.head_size)


def build(
    config: Llama2Config, params: Parameters, ops: Any, dropout: float = 0.0, seed: int = 0
) -> TrainableLlama2:
    """The model to train."""
    return TrainableLlama2(config, params, ops, dropout, seed)


def decoder(model: TrainableLlama2) -> Llama2:
    """The same weights, token by token."""
    return Llama2(model.config, Weights(**model.params), model.ops)
