"""A model out of a training run: out of its folder, or out of one of its checkpoints."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import numpy as np

from pyllm2 import memory
from pyllm2.backends import Engine
from pyllm2.errors import ConfigError, FileError, FormatError
from pyllm2.formats.reader import Source
from pyllm2.gpt2 import family as gpt2
from pyllm2.gpt2 import imported as gpt2_imported
from pyllm2.gpt2.config import GPT2Config
from pyllm2.inference.session import Decoder
from pyllm2.llama2 import family as llama2
from pyllm2.llama2 import imported as llama2_imported
from pyllm2.llama2.config import Llama2Config
from pyllm2.parameters import Array, Parameters, Streamed
from pyllm2.training.checkpoint import KEY, CheckpointFile
from pyllm2.training.folder import checkpoints

MODEL_FILE = "model.bin"
FAMILIES: dict[str, tuple[Any, Any]] = {
    "llama2": (llama2, Llama2Config),
    "gpt2": (gpt2, GPT2Config),
}
WITHOUT_LAYERS = {
    "llama2": llama2_imported.WITHOUT_LAYERS,
    "gpt2": gpt2_imported.WITHOUT_LAYERS,
}
_BEGINNING = f'{{"__metadata__":{{"{KEY}":'.encode()  # of the header, after 8 bytes


def model_file(path: str) -> str:
    """The file with the model of a run folder: model.bin, or a checkpoint that is newer.

    A path that is no run folder is returned as it is.
    """
    if not os.path.isdir(path) or os.path.exists(os.path.join(path, "config.json")):
        return path
    model = os.path.join(path, MODEL_FILE)
    try:
        found = checkpoints(path)
    except FileError:
        return path
    if not os.path.isfile(model):
        return found[-1][1] if found else path
    newer = [name for _, name in found if os.path.getmtime(name) > os.path.getmtime(model)]
    return newer[-1] if newer else model


def tokenizer_file(path: str) -> str | None:
    """The tokenizer that a run folder has; None if there is none."""
    found = os.path.join(path, "tokenizer.bin")
    return found if os.path.isfile(found) and model_file(path) != path else None


def is_checkpoint(source: Source) -> bool:
    return source.head[8 : 8 + len(_BEGINNING)] == _BEGINNING


def read_model(source: Source, engine: Callable[[str], Engine], family: str | None) -> Decoder:
    """The model of a training checkpoint: its parameters, without the optimizer's moments.

    engine: gives the engine of a family   family: the one that is wanted, None: any

    Raises FileError for another family, FormatError for a damaged checkpoint.
    """
    name, config, vector = _opened(source)
    if family not in (None, name):
        raise FileError(source.path, f"is of the family {name}, expected {family}")
    of, _ = FAMILIES[name]
    memory.require(4 * len(vector), "the parameters", "take a smaller model")
    params = Parameters(config.shapes(), np.array(vector))
    return of.decoder(of.build(config, params, engine(name)))


def stream(source: Source) -> tuple[str, Streamed]:
    """The family and the model of a training checkpoint, which stays in the file.

    Raises FormatError for a damaged checkpoint.
    """
    name, config, vector = _opened(source)
    shapes = config.shapes()
    ends = list(accumulate(math.prod(shape) for shape in shapes.values()))
    places = dict(zip(shapes, [0, *ends], strict=False))

    def read(array: str, layer: int) -> Array:
        shape = shapes[array] if array in WITHOUT_LAYERS[name] else shapes[array][1:]
        n = math.prod(shape)
        start = places[array] + layer * n
        numbers: Array = vector[start : start + n]
        return numbers.reshape(shape)

    return name, Streamed(source.path, config, shapes, read)


def _opened(source: Source) -> tuple[str, Any, Any]:
    """Family, config and the vector of all parameters. Raises FormatError."""
    checkpoint = CheckpointFile(source.path)
    found = checkpoint.identity.get("model")
    name = found.get("family") if isinstance(found, dict) else None
    if name not in FAMILIES:
        raise FormatError(source.path, "metadata: the model's family is missing")
    try:
        config = FAMILIES[name][1](**{k: v for k, v in found.items() if k != "family"})
        n = operator.index(config.parameters())
        return name, config, checkpoint.params(n)
    except (TypeError, ValueError, ConfigError) as error:
        raise FormatError(source.path, f"metadata: the model's shape: {error}") from None
