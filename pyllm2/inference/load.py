"""`load`: a model from a file of any known format, with its tokenizer."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from pyllm2 import backends, stories
from pyllm2.errors import FileError, PyLLM2Warning, TokenizerError, printable
from pyllm2.formats.reader import open_source
from pyllm2.inference import containers, hub, training_run
from pyllm2.inference.language_model import LanguageModel
from pyllm2.inference.ranges import whole
from pyllm2.tokenizers import Tokenizer, fitted, load_tokenizer

TokenizerSource = str | os.PathLike[str] | Tokenizer | None


def load(
    path: str | os.PathLike[str] | None = None,
    tokenizer: TokenizerSource | Callable[[], TokenizerSource] = None,
    backend: str | None = None,
    memory_map: bool = False,
    lenient: bool = False,
    threads: int | None = None,
    download: bool = False,
    unpack: bool = False,
) -> LanguageModel:
    """Open a model: a folder of Hugging Face or Meta, or a file, whose content tells what it is:
    GGUF, or a checkpoint of llama2.c (Llama-2) or llm.c (GPT-2).

    A run folder of `pyllm2 train` stands for the model in it, and so does a checkpoint of a run.

    path: or the name `org/model` of a model in Hugging Face's local cache. None is the bundled
    model, a small one that writes stories, with its tokenizer.
    tokenizer: a path or name for `tokenizers.load_tokenizer`, or a tokenizer, or a function that
    returns one of these. The function is called after the model has been read, so that an error in
    the model's file comes first. None: the one in the folder or GGUF file. Without a tokenizer the
    model works on ids only.
    backend: a name of `pyllm2.backends.NAMES` (None: the best available).
    memory_map: map the file into memory instead of reading it; only for checkpoints of llama2.c
    and llm.c, and not for bfloat16 weights, which are converted.
    lenient: accept faults that the original `run` does not notice, with a PyLLM2Warning; only for
    llama2.c's files.
    threads: see `pyllm2.backends.ops`.
    download: fetch a model by its name `org/model` from the internet if the cache has it not.
    unpack: expand the quantised matrices of a Llama-2 in GGUF to float32, once, while they are read
    (False: they stay as they are in the file and are expanded where they are used).

    Raises FileError or FormatError naming the file, the field, what was found and expected;
    BackendError.
    """
    if path is None:
        path, tokenizer = stories.MODEL, tokenizer or stories.TOKENIZER
    path = hub.folder_of(path, download)
    return _load(path, None, tokenizer, backend, memory_map, lenient, threads, unpack)


def load_llama2(
    path: str | os.PathLike[str],
    tokenizer: TokenizerSource | Callable[[], TokenizerSource] = None,
    backend: str | None = None,
    memory_map: bool = False,
    lenient: bool = False,
    threads: int | None = None,
    unpack: bool = False,
) -> LanguageModel:
    """`load` for Llama-2 only: a file of another kind is refused."""
    return _load(path, "llama2", tokenizer, backend, memory_map, lenient, threads, unpack)


def _load(
    path: str | os.PathLike[str],
    family: str | None,
    tokenizer: Any,
    backend: str | None,
    memory_map: bool,
    lenient: bool,
    threads: int | None,
    unpack: bool,
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
    end_ids: tuple[int, ...] | None = None
    model, notes = _read_checkpoint(path, family, engine_of, memory_map, lenient)
    if model is None:
        container = containers.open_container(path)
        _require(container, family, memory_map, lenient)
        notes, end_ids = container.notes, container.end_ids
        if tokenizer is None or callable(tokenizer):
            own = container.tokenizer()
            own = own and fitted(own, container.streamed.config.vocab_size, printable(path))
        model = container.model(engine_of(container.family), unpack)
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
    again = os.path.abspath(path), family, tokenizer, name, memory_map, lenient, threads, unpack
    return LanguageModel(model, tokenizer, name, path, (_load_again, again), end_ids)


def _read_checkpoint(
    path: str, family: str | None, engine_of: Any, memory_map: bool, lenient: bool
) -> tuple[Any, list[str]]:
    """The model of a file of llama2.c or llm.c, and warnings; None for another container."""
    if os.path.isdir(path):
        return None, []
    with open_source(path) as source:
        if containers.is_gguf(source):
            return None, []
        if training_run.is_checkpoint(source):
            if memory_map:
                raise FileError(path, "is a training checkpoint, which cannot be memory-mapped")
            return training_run.read_model(source, engine_of, family), []
        family = family or containers.family_of(source)
        read_model = containers.CHECKPOINTS[family].read_model
        model, notes = read_model(source, engine_of(family), memory_map, lenient)
        return model, notes


def _require(
    container: containers.Container, family: str | None, memory_map: bool, lenient: bool
) -> None:
    """Refuse options that are for checkpoints only, and a model of another family."""
    path, kind = container.path, container.kind
    if memory_map:
        words = "only checkpoints of llama2.c and llm.c can be memory-mapped"
        raise FileError(path, f"is {kind}, and {words}")
    if lenient:
        raise FileError(path, f"is {kind}: lenient is for llama2.c checkpoints only")
    if family not in (None, container.family):
        raise FileError(path, f"is of the family {container.family}, expected {family}")


def _load_again(*arguments: Any) -> LanguageModel:
    """For `pickle` and `copy`: `_load` with the same arguments, whose warnings have been shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PyLLM2Warning)
        return _load(*arguments)
