"""A GPT-2 out of llm.c's checkpoint, and back into one."""

from __future__ import annotations

import dataclasses
import os

from pyllm2 import memory
from pyllm2.errors import ConfigError, FormatError
from pyllm2.formats import llmc
from pyllm2.formats.reader import Source, open_source
from pyllm2.gpt2.config import GPT2Config
from pyllm2.training.parameters import Parameters


def load_config(path: str | os.PathLike[str]) -> GPT2Config:
    """Shape alone, of a file whose size is right. Raises FileError or FormatError."""
    with open_source(path) as source:
        return _config_of(source)[0]


def load_parameters(path: str | os.PathLike[str]) -> tuple[GPT2Config, Parameters]:
    """Shape and weights; bfloat16 ones become float32, which holds each of them exactly.

    Raises FileError or FormatError; NotEnoughMemoryError before anything large is read.
    """
    with open_source(path) as source:
        config, header, n = _config_of(source)
        memory.require(4 * n, f"{n} parameters", "take a smaller model")
        numbers = llmc.read_numbers(source, header)
    return config, Parameters(config.shapes(), numbers)


def _config_of(source: Source) -> tuple[GPT2Config, llmc.Header, int]:
    """Shape, header, and the number of parameters, which the file's size has confirmed."""
    header = llmc.read_header(source)
    try:
        config = GPT2Config(**header.values)
    except ConfigError as error:
        byte = llmc.BYTE_OF[error.name]
        raise FormatError.field(
            source.path, error.name, error.found, byte, error.expected
        ) from None
    return config, header, llmc.check_size(source, header)


def save_parameters(path: str | os.PathLike[str], config: GPT2Config, params: Parameters) -> None:
    """Write a float32 checkpoint (version 3), atomically; the padding rows of wte as they are.

    Raises FileError from the operating system.
    """
    llmc.write_checkpoint(path, dataclasses.asdict(config), params)
