"""The bundled model as arrays and pieces: real text, real merges, real probabilities."""

from __future__ import annotations

import functools
from typing import Any

from pyllm2 import stories
from pyllm2.formats import llama2c, llama2c_vocabulary
from pyllm2.formats.reader import open_source
from pyllm2.llama2.config import Llama2Config


@functools.cache
def arrays() -> tuple[Llama2Config, dict[str, Any]]:
    """Config and arrays."""
    with open_source(stories.MODEL) as source:
        header = llama2c.read_header(source)
        sizes: Any = header.values
        config = Llama2Config(**sizes)
        found, _ = llama2c.read_tensors(source, header, config.shapes(header.shared_classifier))
    return config, found


@functools.cache
def pieces() -> tuple[tuple[int, bytes, float], ...]:
    """Id, piece and score of every token."""
    with open_source(stories.TOKENIZER) as source:
        found = llama2c_vocabulary.read_vocabulary(source, arrays()[0].vocab_size)
    return tuple(zip(range(len(found.pieces)), found.pieces, found.scores, strict=True))
