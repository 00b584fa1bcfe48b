"""`pyllm2 train text`: from a text to a model that writes in its manner, in one command."""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

import numpy as np

from pyllm2 import backends
from pyllm2.cli import train
from pyllm2.cli.arguments import parser_of
from pyllm2.cli.common import say
from pyllm2.cli.tokenizer import lines_of
from pyllm2.errors import FileError
from pyllm2.formats.sentencepiece_model import to_vocabulary, train_sentencepiece
from pyllm2.llama2 import family
from pyllm2.llama2.tokenizer import Tokenizer
from pyllm2.training import sizing
from pyllm2.training.folder import checkpoints
from pyllm2.training.prepare import prepare

CONTEXT, SHORTEST_CONTEXT, BATCH, UPDATE_ROWS = 256, 16, 8, 16
MOST_VALIDATION = 50_000  # tokens
SHARE_TO_TRAIN = 0.85  # of the minutes; the rest goes into validation and checkpoints
VALIDATIONS, LEAST_STEPS = 10, 20


def main(options: argparse.Namespace) -> int:
    out = options.out
    if os.path.isdir(out) and checkpoints(out):
        raise FileError(out, "has a run already: name another folder")
    if os.path.lexists(out) and (not os.path.isdir(out) or os.listdir(out)):
        raise FileError(out, "is there already: name a new folder")
    tokenizer, nbytes = _tokenizer(options.texts)
    context, tokens = _prepare(options, tokenizer, nbytes)
    choice = _choose(options, tokenizer.vocab_size, context, tokens)
    arguments = _arguments(options, choice, context)
    say("pyllm2 " + " ".join(arguments))
    return train.main(parser_of().parse_args(arguments))


def _tokenizer(texts: list[str]) -> tuple[Tokenizer, int]:
    """A vocabulary that suits the size of the text; how many bytes that has."""
    lines = list(lines_of(texts))
    nbytes = sum(len(line.encode()) for line in lines)
    if not lines:
        raise FileError(texts[0], "no text to train on")
    vocabulary = to_vocabulary(train_sentencepiece(lines, sizing.vocabulary_size(nbytes)))
    say(f"{nbytes:,} bytes of text: a vocabulary of {len(vocabulary.pieces)} pieces")
    return Tokenizer(vocabulary.pieces, vocabulary.scores), nbytes


def _prepare(options: argparse.Namespace, tokenizer: Tokenizer, nbytes: int) -> tuple[int, int]:
    """Shards in OUT/data; the context that the text allows, and the number of tokens."""
    estimate = nbytes // 4  # tokens
    context = CONTEXT
    while context > SHORTEST_CONTEXT and estimate < 40 * BATCH * context:
        context //= 2
    least = BATCH * context + 1  # of a batch and its targets
    if estimate < 2 * least:
        raise FileError(options.texts[0], f"a text of at least {8 * least:,} bytes is needed")
    val_tokens = max(least, min(estimate // 20, MOST_VALIDATION))
    os.makedirs(options.out, exist_ok=True)
    done = prepare(options.texts, tokenizer, os.path.join(options.out, "data"), val_tokens)
    tokenizer.write_tokenizer(os.path.join(options.out, train.TOKENIZER_FILE))
    return context, done.train_tokens


def _choose(options: argparse.Namespace, V: int, context: int, tokens: int) -> sizing.Choice:
    """The shape, by trying how quickly this machine learns with each."""
    ops = backends.ops(options.backend or backends.default(), options.threads)

    def config(shape: str) -> Any:
        return family.descriptor(f"{shape},context={context}", V)

    def speed(shape: str) -> float:
        model = family.build(config(shape), family.initial_parameters(config(shape)), ops)
        x = np.random.default_rng(0).integers(0, V, (BATCH, context))
        grads = model.params.zeros_like()
        seconds = []
        for _ in range(3):  # the first compiles and warms up
            began = time.perf_counter()
            model.add_gradient(x, x, 1 / x.size, grads, fresh=True)
            seconds.append(time.perf_counter() - began)
        return x.size / min(seconds)

    seconds = 60 * options.minutes * SHARE_TO_TRAIN
    choice = sizing.choose(
        sizing.SHAPES, lambda shape: config(shape).parameters(), speed, tokens, seconds
    )
    say(
        f"{tokens:,} tokens to learn from, {options.minutes:g} minutes: a model of "
        f"{choice.parameters:,} parameters ({choice.shape}), which sees {choice.tokens:,} tokens"
    )
    return choice


def _arguments(options: argparse.Namespace, choice: sizing.Choice, context: int) -> list[str]:
    """The command that does the rest, as a person could have typed it."""
    total_batch = UPDATE_ROWS * context
    steps = max(LEAST_STEPS, choice.tokens // total_batch)
    data = os.path.join(options.out, "data")
    flags = {
        "--init": f"{choice.shape},context={context}",
        "--train": os.path.join(data, "train*.bin"),
        "--val": os.path.join(data, "val.bin"),
        "--tokenizer": os.path.join(options.out, train.TOKENIZER_FILE),
        "--out": options.out,
        "--batch": BATCH,
        "--context": context,
        "--total-batch": total_batch,
        "--steps": steps,
        "--warmup": max(1, steps // 20),
        "--learning-rate": 2e-3,
        "--val-every": max(1, steps // VALIDATIONS),
        "--val-batches": 5,
        "--save-every": max(1, steps // VALIDATIONS),
        "--sample-every": max(1, steps // 3),
        "--seed": options.seed,
    }
    if options.backend:
        flags["--backend"] = options.backend
    if options.threads:
        flags["--threads"] = options.threads
    return ["train", "llama2", *(word for flag, v in flags.items() for word in (flag, str(v)))]
