"""`load`: a model out of a file, whatever it is, with its tokenizer."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from pyllm2 import backends, stories
from pyllm2.errors import ConfigError, FileError, FormatError, PyLLM2Warning, printable
from pyllm2.formats import llama2c, llama2c_q8, llmc
from pyllm2.formats.reader import Source, open_source
from pyllm2.gpt2.decoding import Decoder
from pyllm2.gpt2.files import load_parameters
from pyllm2.gpt2.model import GPT2
from pyllm2.gpt2.tokenizer import GPT2Tokenizer, load_tokenizer
from pyllm2.language_model import GPT2LanguageModel, LanguageModel
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.model import Llama2, Weights
from pyllm2.llama2.quantized import Quantized
from pyllm2.llama2.tokenizer import Tokenizer, from_vocabulary_file


def load(
    path: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | Tokenizer | GPT2Tokenizer | None = None,
    backend: str | None = None,
    memory_map: bool = False,
    lenient: bool = False,
    threads: int | None = None,
) -> LanguageModel:
    """Open a checkpoint of llama2.c or, GPT-2, of llm.c; its content tells which.

    path: None is the model in the box, a small one that writes stories, with its tokenizer.
    tokenizer: for Llama-2 a `tokenizer.bin` or a SentencePiece `.model`; for GPT-2 llm.c's
    tokenizer file, a rank file of tiktoken, or the words `gpt2` or `bytes`; or one that is loaded
    already. Without one the model works on ids only.
    backend: a name of `pyllm2.backends.NAMES`; None takes the best there is.
    memory_map: page the weights in from the file instead of copying them into memory.
    threads: see `pyllm2.backends.ops`.
    lenient: accept with a PyLLM2Warning what the original `run` accepts without noticing.

    Raises FileError or FormatError naming the file, the field, what was found and expected;
    BackendError.
    """
    name = backend or backends.default()
    if path is None:
        path, tokenizer = stories.MODEL, tokenizer or stories.TOKENIZER
    backends.require(name)  # before the file is looked at: it may be large
    if _is_gpt2(path):
        return _load_gpt2(path, tokenizer, name, threads)
    return load_llama2(path, tokenizer, name, memory_map, lenient, threads)


def load_llama2(
    path: str | os.PathLike[str],
    tokenizer: Any = None,
    backend: str | None = None,
    memory_map: bool = False,
    lenient: bool = False,
    threads: int | None = None,
) -> LanguageModel:
    """`load` where nothing but a Llama-2 will do."""
    name = backend or backends.default()
    model = _load_llama2(path, backends.ops(name, threads), memory_map, lenient)
    if not isinstance(tokenizer, (Tokenizer, type(None))):
        asked_by = printable(os.fspath(path))
        tokenizer, notes = from_vocabulary_file(
            tokenizer, model.config.vocab_size, asked_by, lenient
        )
        _warn(notes)
    return LanguageModel(model, tokenizer, name, os.fspath(path))


def _is_gpt2(path: str | os.PathLike[str]) -> bool:
    with open_source(path) as source:
        return source.head[:4] == llmc.MAGIC.to_bytes(4, "little")


def _load_gpt2(
    path: str | os.PathLike[str], tokenizer: Any, backend: str, threads: int | None
) -> LanguageModel:
    ops = backends.ops(backend, threads, "gpt2")
    config, params = load_parameters(path)
    if not isinstance(tokenizer, (GPT2Tokenizer, type(None))):
        tokenizer = load_tokenizer(tokenizer)
    if tokenizer is not None and tokenizer.vocab_size != config.vocab_size:
        raise FileError(
            tokenizer.name,
            f"has {tokenizer.vocab_size} tokens, {printable(os.fspath(path))} expects "
            f"{config.vocab_size}",
        )
    gpt2 = GPT2(config, params, ops)
    return GPT2LanguageModel(Decoder(gpt2), gpt2, tokenizer, backend, os.fspath(path))


def _load_llama2(path: str | os.PathLike[str], ops: Any, memory_map: bool, lenient: bool) -> Llama2:
    with open_source(path) as source:
        header = llama2c.read_header(source)
        config = check_config(source, header)
        if header.version == 2:
            arrays, notes = llama2c_q8.read_q8_tensors(source, header, memory_map, lenient)
            weights = _quantized_weights(arrays, header.group_size, ops)
        else:
            tensors, notes = llama2c.read_tensors(source, header, memory_map, lenient)
            weights = Weights(**tensors)
    _warn(notes)
    return Llama2(config, weights, ops)


def check_config(source: Source, header: llama2c.Header) -> Llama2Config:
    """The hyperparameters of a header, if they can be those of a model.

    Raises FormatError naming the field and its byte.
    """
    try:
        return Llama2Config(**header.values)
    except ConfigError as error:
        byte = header.byte_of[error.name]
        llama2c.refuse_if_another_kind(source)
        raise FormatError.field(
            source.path, error.name, error.found, byte, error.expected
        ) from None


def _quantized_weights(arrays: dict[str, NDArray[Any]], group_size: int, ops: Any) -> Weights:
    """int8 matrices with their scales; the embedding expanded once, and kept as classifier too."""
    tensors: dict[str, Any] = {}
    for name, array in arrays.items():
        scales = arrays.get(f"{name}_scales")
        if scales is not None:
            tensors[name] = Quantized(array, scales, group_size)
        elif not name.endswith("_scales"):
            tensors[name] = array
    embedding = tensors["token_embedding"][0]
    tensors["classifier"] = tensors["classifier"][0] if "classifier" in tensors else embedding
    tensors["token_embedding"] = ops.dequantize(embedding.values, embedding.scales, group_size)
    return Weights(**tensors)


def _warn(notes: Sequence[str]) -> None:
    for note in notes:
        warnings.warn(note, PyLLM2Warning, stacklevel=3)
