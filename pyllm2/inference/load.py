"""`load`: a model from a file of any known format, with its tokenizer."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

from pyllm2 import backends, stories
from pyllm2.errors import FileError, PyLLM2Warning, TokenizerError, printable
from pyllm2.formats import llmc
from pyllm2.formats.reader import Source, open_source
from pyllm2.gpt2 import checkpoint as gpt2_checkpoint
from pyllm2.inference import gguf, training_run
from pyllm2.inference.language_model import LanguageModel
from pyllm2.inference.ranges import whole
from pyllm2.llama2 import checkpoint as llama2_checkpoint
from pyllm2.tokenizers import Tokenizer, fitted, load_tokenizer

TokenizerSource = str | os.PathLike[str] | Tokenizer | None

_CHECKPOINTS: dict[str, ModuleType] = {"llama2": llama2_checkpoint, "gpt2": gpt2_checkpoint}


def load(
    path: str | os.PathLike[str] | None = None,
    tokenizer: TokenizerSource | Callable[[], TokenizerSource] = None,
    backend: str | None = None,
    memory_map: bool = False,
    lenient: bool = False,
    threads: int | None = None,
) -> LanguageModel:
    """Open a checkpoint of llama2.c (Llama-2) or llm.c (GPT-2), or GGUF; its content tells which.

    A run folder of `pyllm2 train` stands for the model in it, and so does a checkpoint of a run.

    path: None is the bundled model, a small one that writes stories, with its tokenizer.
    tokenizer: a path or name for `tokenizers.load_tokenizer`, or a tokenizer, or a function that
    returns one of these. The function is called after the model has been read, so that an error in
    the model's file comes first. None: the one in a GGUF file or a run folder. Without a
    tokenizer the model works on ids only.
    backend: a name of `pyllm2.backends.NAMES` (None: the best available).
    memory_map: map the file into memory instead of reading it; not for bfloat16 weights, which are
    converted.
    lenient: accept faults that the original `run` does not notice, with a PyLLM2Warning; only for
    llama2.c's files.
    threads: see `pyllm2.backends.ops`.

    Raises FileError or FormatError naming the file, the field, what was found and expected;
    BackendError.
    """
    if path is None:
        path, tokenizer = stories.MODEL, tokenizer or stories.TOKENIZER
    return _load(path, None, tokenizer, backend, memory_map, lenient, threads)


def load_llama2(
    path: str | os.PathLike[str],
    tokenizer: TokenizerSource | Callable[[], TokenizerSource] = None,
    backend: str | None = None,
    memory_map: bool = False,
    lenient: bool = False,
    threads: int | None = None,
) -> LanguageModel:
    """`load` for Llama-2 only: a file of another kind is refused."""
    return _load(path, "llama2", tokenizer, backend, memory_map, lenient, threads)


def _load(
    path: str | os.PathLike[str],
    family: str | None,
    tokenizer: Any,
    backend: str | None,
    memory_map: bool,
    lenient: bool,
    threads: int | None,
) -> LanguageModel:
    """Open the file, recognise its family, read the model; then open the tokenizer."""
    name, path = backend or backends.default(), os.fsdecode(path)
    if os.path.isdir(path) and tokenizer is None:
        tokenizer = training_run.tokenizer_file(path)
    path = training_run.model_file(path)
    if threads is not None:
        threads = whole("threads", threads, "a whole number ≥ 1")
        if threads < 1:
            raise ValueError(f"threads = {threads}: expected a whole number ≥ 1")
    backends.require(name)  # before the file is read: it may be large
    engine_of = partial(backends.engine, name, threads)
    own: Tokenizer | None = None
    with open_source(path) as source:
        if gguf.is_gguf(source):
            wanted = tokenizer is None or callable(tokenizer)
            model, notes, own = gguf.read_model(source, engine_of, family, memory_map, wanted)
        elif training_run.is_checkpoint(source):
            if memory_map:
                raise FileError(path, "is a training checkpoint, which cannot be memory-mapped")
            model, notes = training_run.read_model(source, engine_of, family), []
        else:
            family = family or _family_of(source)
            read_model = _CHECKPOINTS[family].read_model
            model, notes = read_model(source, engine_of(family), memory_map, lenient)
    for note in notes:
        warnings.warn(note, PyLLM2Warning, stacklevel=3)
    if own is not None:
        tokenizer = own
    elif callable(tokenizer):
        tokenizer = tokenizer()
    V, asked_by = model.config.vocab_size, printable(path)
    if isinstance(tokenizer, (str, os.PathLike)):
        tokenizer = load_tokenizer(tokenizer, V, asked_by, lenient)
    elif tokenizer is not None and not hasattr(tokenizer, "vocab_size"):
        found = type(tokenizer).__name__
        raise TokenizerError(f"tokenizer: expected a path, a name or a tokenizer, found {found}")
    elif tokenizer is not None:
        tokenizer = fitted(tokenizer, V, asked_by)
    again = os.path.abspath(path), family, tokenizer, name, memory_map, lenient, threads
    return LanguageModel(model, tokenizer, name, path, (_load_again, again))


def _load_again(*arguments: Any) -> LanguageModel:
    """For `pickle` and `copy`: `_load` with the same arguments, whose warnings have been shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PyLLM2Warning)
        return _load(*arguments)


def _family_of(source: Source) -> str:
    """GPT-2 by llm.c's magic number, else Llama-2: its reader refuses whatever is neither."""
    return "gpt2" if source.head[:4] == llmc.MAGIC.to_bytes(4, "little") else "llama2"
