"""Opening the model, tokenizer and context that the flags of generate and chat name."""

from __future__ import annotations

import argparse
import os
import secrets
from collections.abc import Callable
from functools import partial

from pyllm2 import memory
from pyllm2.cli.output import say
from pyllm2.errors import FileError, UsageError
from pyllm2.inference.language_model import LanguageModel
from pyllm2.inference.load import load

DEFAULT_TOKENIZER = "tokenizer.bin"


def open_model(
    options: argparse.Namespace, load: Callable[..., LanguageModel] = load
) -> LanguageModel:
    """The model and tokenizer that the flags name."""
    tokenizer = options.tokenizer
    if options.model is not None and tokenizer is None:
        tokenizer = partial(find_tokenizer, options.model)  # called after the model is read
    return load(
        options.model,
        tokenizer,
        options.backend,
        options.mmap,
        threads=options.threads,
        download=options.download,
        unpack=options.unpack,
    )


def find_tokenizer(model: str) -> str:
    """tokenizer.bin beside the model or in its folder, else in the current folder.

    Called for a model that has no tokenizer of its own. Raises FileError.
    """
    folder = model if os.path.isdir(model) else os.path.dirname(model)
    beside = os.path.join(folder, DEFAULT_TOKENIZER)
    for path in (beside, DEFAULT_TOKENIZER):
        if os.path.exists(path):
            return path
    raise FileError(beside, "no such file: name the tokenizer with --tokenizer FILE")


def context_length(options: argparse.Namespace, model: LanguageModel) -> int:
    """--context; without it what a quarter of the memory can hold, and a note.

    A model of 131,072 positions has a cache of gigabytes; nothing less than 2,048 is chosen.

    Raises UsageError for more positions than the model has.
    """
    S = int(model.config.seq_len)
    if options.context is not None:
        if options.context > S:
            raise UsageError(f"--context {options.context}: the model has {S} positions")
        return int(options.context)
    positions = S
    while positions >= 4096 and 4 * model.model.cache_nbytes(positions) > memory.limit():
        positions //= 2
    if positions < S:
        say(f"context of {positions} tokens, as the memory allows: the model has {S} (--context N)")
    return positions


def pick_seed(options: argparse.Namespace) -> int:
    """--seed, or a new seed from the operating system."""
    return options.seed if options.seed is not None else secrets.randbits(32)
