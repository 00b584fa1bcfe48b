"""A model in GGUF: the family is that of its architecture, the tokenizer is in the metadata."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from pyllm2.backends import Engine
from pyllm2.errors import FileError
from pyllm2.formats.gguf import MAGIC, read_gguf
from pyllm2.formats.reader import Source
from pyllm2.gpt2 import gguf as gpt2_gguf
from pyllm2.gpt2 import imported as gpt2_imported
from pyllm2.inference.session import Decoder
from pyllm2.llama2 import gguf as llama2_gguf
from pyllm2.llama2 import imported as llama2_imported
from pyllm2.tokenizers import Tokenizer, from_gguf

FAMILIES: dict[str, ModuleType] = {"llama2": llama2_gguf, "gpt2": gpt2_gguf}
_FAMILY_OF = {arch: name for name, module in FAMILIES.items() for arch in module.ARCHITECTURES}


def is_gguf(source: Source) -> bool:
    return source.head[: len(MAGIC)] == MAGIC


def read_model(
    source: Source,
    engine: Callable[[str], Engine],
    family: str | None,
    memory_map: bool,
    with_tokenizer: bool,
) -> tuple[Decoder, list[str], Tokenizer | None]:
    """The model of an open file, warnings, and the tokenizer in it, None if there is none.

    engine: gives the engine of a family   family: the one that is wanted, None: any
    with_tokenizer: whether the tokenizer is read. Its `stop` are all ids that llama.cpp ends a
    text at; rows of the embedding beyond its tokens are ids without text.

    Raises FileError, FormatError: which entry or tensor, what was found and expected.
    """
    gguf = read_gguf(source)
    if memory_map:
        words = "only checkpoints of llama2.c and llm.c can be memory-mapped"
        raise FileError(source.path, f"is GGUF, and {words}")
    found = _FAMILY_OF[gguf.architecture(tuple(_FAMILY_OF))]
    if family not in (None, found):
        raise FileError(source.path, f"is of the family {found}, expected {family}")
    streamed, notes = FAMILIES[found].stream(gguf)
    config, tokenizer = streamed.config, None
    if with_tokenizer and "tokenizer.ggml.model" in gguf.metadata:
        tokenizer = from_gguf(gguf.metadata, source.path)
        tokenizer.padded(config.vocab_size)
    if found == "gpt2":
        return gpt2_imported.build(config, engine(found), streamed.read), notes, tokenizer
    shared = "classifier" not in streamed.shapes
    model = llama2_imported.build(config, engine(found), streamed.read, shared)
    return model, notes, tokenizer
