"""`pyllm2 data prepare`: texts to the token shards that training reads."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyllm2.cli.common import say
from pyllm2.formats import kinds
from pyllm2.formats.reader import open_source
from pyllm2.gpt2.tokenizer import load_tokenizer
from pyllm2.llama2.tokenizer import from_vocabulary_file
from pyllm2.training.prepare import prepare


def main(options: argparse.Namespace) -> int:
    tokenizer = _load_tokenizer(options.tokenizer)
    total = sum(os.path.getsize(text) for text in options.texts if os.path.isfile(text))
    with _bar(total) as progress:
        done = prepare(
            options.texts,
            tokenizer,
            options.out,
            options.val_tokens,
            options.shard_tokens,
            progress,
        )
    say(
        f"{options.out}: {', '.join(done.files)}: {done.documents} documents, "
        f"{done.train_tokens} tokens to train on, {done.val_tokens} to validate"
    )
    return 0


def _load_tokenizer(which: str) -> Any:
    """GPT-2's or Llama-2's: a file is recognised by its content."""
    if os.path.exists(which):
        with open_source(which) as source:
            llama2 = kinds.is_llama2_tokenizer(source.head)
        if llama2:
            return from_vocabulary_file(which)[0]
    return load_tokenizer(which)


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], object]]:
    """A bar on a terminal, where tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda _: None
        return
    with tqdm(total=total, unit="B", unit_scale=True, file=sys.stderr, disable=None) as bar:
        yield bar.update
