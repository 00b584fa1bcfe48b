"""Read and write GPT-2 models as llm.c's checkpoints."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from itertools import accumulate

from pyllm2 import memory
from pyllm2.backends import Engine
from pyllm2.errors import ConfigError, FileError, FormatError
from pyllm2.formats import llmc
from pyllm2.formats.llmc_header import HEADER_BYTES
from pyllm2.formats.reader import Source, open_source
from pyllm2.formats.tensors import Place
from pyllm2.gpt2.config import GPT2Config
from pyllm2.gpt2.imported import WITHOUT_LAYERS, filled
from pyllm2.gpt2.model import GPT2
from pyllm2.parameters import Array, Parameters, Streamed, check_shapes, slices


def load_config(path: str | os.PathLike[str]) -> GPT2Config:
    """The config of a checkpoint of the right size. Raises FileError or FormatError."""
    with open_source(path) as source:
        header = llmc.read_header(source)
        config = read_config(source, header)
        llmc.check_size(source, header, config.shapes())
        return config


def load_parameters(path: str | os.PathLike[str]) -> tuple[GPT2Config, Parameters]:
    """Config and parameters; bfloat16 ones are converted to float32, exactly.

    Raises FileError or FormatError; NotEnoughMemoryError before the parameters are read.
    """
    with open_source(path) as source:
        return _read_parameters(source)


def save_parameters(
    path: str | os.PathLike[str], config: GPT2Config, params: Mapping[str, Array]
) -> None:
    """Write a float32 checkpoint (version 3), atomically.

    Raises FileError from the operating system.
    """
    check_shapes(params, config.shapes())

    def read(name: str, layer: int) -> Array:
        return params[name] if name in WITHOUT_LAYERS else params[name][layer]

    save(path, Streamed("the parameters", config, config.shapes(), read))


def save(path: str | os.PathLike[str], source: Streamed, version: int = llmc.FLOAT32) -> None:
    """Write a model as a checkpoint of version 3 or 5, atomically, one slice at a time.

    The token table gets the rows that llm.c's sizes ask for: zeros behind those that are there.

    Raises FileError from the operating system, and what `source.read` raises.
    """
    config = source.config
    shapes = slices(config.shapes(), WITHOUT_LAYERS)
    parts = (filled(source.read(*key), shape) for key, shape in shapes.items())
    llmc.write_checkpoint(path, dataclasses.asdict(config), parts, version)


def stream(source: Source) -> tuple[Streamed, list[str]]:
    """The model of an open file, and warnings (there are none). Raises FileError or FormatError."""
    header, path = llmc.read_header(source), source.path
    config = read_config(source, header)
    shapes = config.shapes()
    llmc.check_size(source, header, shapes)
    sizes = [math.prod(shape) for shape in shapes.values()]
    places = dict(zip(shapes, [0, *accumulate(sizes)], strict=False))
    of_slice = {name: s if name in WITHOUT_LAYERS else s[1:] for name, s in shapes.items()}
    dtype = "F32" if header.version == llmc.FLOAT32 else "BF16"

    def read(name: str, layer: int) -> Array:
        n = math.prod(of_slice[name])
        start = HEADER_BYTES + header.bytes_per_number * (places[name] + layer * n)
        return Place(path, dtype, of_slice[name], start).read(name)

    return Streamed(path, config, shapes, read, lambda name, layer: dtype), []


def read_model(
    source: Source, engine: Engine, memory_map: bool = False, lenient: bool = False
) -> tuple[GPT2, list[str]]:
    """The model of an open file, and warnings (there are none).

    memory_map: see `pyllm2.load`. Raises FileError or FormatError; FileError for `lenient`, which
    is for llama2.c's files, and for memory_map of bfloat16 weights.
    """
    if lenient:
        raise FileError(source.path, "is of llm.c: lenient is for llama2.c checkpoints only")
    config, params = _read_parameters(source, memory_map)
    return GPT2(config, params, engine), []


def read_config(source: Source, header: llmc.Header) -> GPT2Config:
    """The config of a header. Raises FormatError naming a field that is out of range."""
    try:
        return GPT2Config(**header.values)
    except ConfigError as error:
        byte = llmc.BYTE_OF[error.name]
        raise FormatError.field(
            source.path, error.name, error.found, byte, error.expected
        ) from None


def _read_parameters(source: Source, memory_map: bool = False) -> tuple[GPT2Config, Parameters]:
    header = llmc.read_header(source)
    config = read_config(source, header)
    llmc.check_size(source, header, config.shapes())
    if memory_map and header.version == llmc.BFLOAT16:
        raise FileError(source.path, "is bfloat16, and only float32 can be memory-mapped")
    if not memory_map:
        memory.require(4 * config.parameters(), "the parameters", "use a smaller model")
    return config, Parameters(config.shapes(), llmc.read_numbers(source, header, memory_map))
