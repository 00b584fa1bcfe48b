"""What the modern commands share: opening a model, reading a prompt, the line about speed."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import time
from collections.abc import Callable

from pyllm2.cli.output import tell
from pyllm2.errors import FileError
from pyllm2.formats.reader import open_source
from pyllm2.language_model import LanguageModel
from pyllm2.loading import load
from pyllm2.session import Session

DEFAULT_TOKENIZER = "tokenizer.bin"
_STDIN = "-"
MOST_PROMPT_BYTES = 2**26


def open_model(
    options: argparse.Namespace, load: Callable[..., LanguageModel] = load
) -> LanguageModel:
    """The model and tokenizer that the flags name."""
    tokenizer = options.tokenizer
    if options.model is not None and tokenizer is None:
        tokenizer = _find_tokenizer(options.model)
    return load(options.model, tokenizer, options.backend, options.mmap, threads=options.threads)


def _find_tokenizer(model: str) -> str:
    beside = os.path.join(os.path.dirname(model), DEFAULT_TOKENIZER)
    for path in (beside, DEFAULT_TOKENIZER):
        if os.path.exists(path):
            return path
    raise FileError(beside, "no such file: name the vocabulary with --tokenizer FILE")


def positions_of(options: argparse.Namespace, model: LanguageModel) -> int:
    """The context to use: the model's, or fewer by --context."""
    return min(model.config.seq_len, options.context or model.config.seq_len)


def read_bytes(path: str) -> bytes:
    """A whole file, or stdin for `-`."""
    if path != _STDIN:
        with open_source(path) as source:
            if source.size > MOST_PROMPT_BYTES:
                raise FileError(
                    path, f"{source.size} bytes, a text has at most {MOST_PROMPT_BYTES}"
                )
            return source.read_all().tobytes()
    return b"" if sys.stdin is None else sys.stdin.buffer.read(MOST_PROMPT_BYTES)


def argument_bytes(text: str) -> bytes:
    """A command-line argument as the bytes that the user typed."""
    return os.fsencode(text)


def pick_seed(options: argparse.Namespace) -> int:
    """The seed asked for, or a new one from the system's entropy."""
    return options.seed if options.seed is not None else secrets.randbits(32)


class Clock:
    """Times the prompt and the tokens after it apart, and reports on stderr."""

    def __init__(self, session: Session, prompt_tokens: int) -> None:
        self.session, self.prompt_tokens = session, prompt_tokens
        self.began = time.perf_counter()
        self.first: float | None = None
        self.tokens = 0

    def tick(self) -> None:
        """A token has come."""
        self.tokens += 1
        if self.first is None:
            self.first = time.perf_counter()

    def report(self, seed: int) -> None:
        now = time.perf_counter()
        prompt_seconds = (self.first or now) - self.began
        parts = [
            f"backend {self.session.backend}",
            f"seed {seed}",
            f"prompt {self.prompt_tokens} tokens in {prompt_seconds:.2f} s",
            f"{self.tokens} new tokens",
        ]
        if self.first is not None and self.tokens > 1 and now > self.first:
            parts[-1] += f" at {(self.tokens - 1) / (now - self.first):.1f} tokens/s"
        say(", ".join(parts))


def say(line: str) -> None:
    """A line on stderr."""
    tell(f"pyllm2: {line}")
