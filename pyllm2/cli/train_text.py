"""`pyllm2 train text`: from text files to a tokenizer and a small Llama-2, in a given time."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from pyllm2 import backends
from pyllm2.cli import signals, train_run
from pyllm2.cli.output import say
from pyllm2.cli.train_command import (
    RUN_FILE,
    check_resumed,
    parser_of,
    recall,
    resume_command,
    words,
)
from pyllm2.errors import FileError, UsageError, os_errors
from pyllm2.formats.sentencepiece_model import to_vocabulary
from pyllm2.formats.text import Text, describe, open_texts
from pyllm2.llama2 import family
from pyllm2.tokenizers.sentencepiece import SentencePieceTokenizer
from pyllm2.training import launch, processes, sizing
from pyllm2.training.folder import HAS_RUN, LOCK, LOG, PID, checkpoints, locked, open_folder
from pyllm2.training.prepare import prepare
from pyllm2.training.vocabulary import train_vocabulary

DATA = "data"  # folder of the shards
UNFINISHED = {DATA, train_run.TOKENIZER_FILE, RUN_FILE, LOG, LOCK, PID}  # before a checkpoint
MAX_CONTEXT, MIN_CONTEXT = 256, 16
MOST_ROWS = 8  # of a batch
MAX_VAL_TOKENS = 50_000
TRAINING_FRACTION = 0.85  # of the time; the rest is for validation and checkpoints
VALIDATIONS, MIN_STEPS = 10, 20


def main(options: argparse.Namespace) -> int:
    out = options.out
    if (count := launch.started()) > 1:
        raise UsageError(
            f"train text: started as {count} processes, runs in one; the command that it prints "
            "can be started by mpiexec"
        )
    check_resumed(options)
    if options.resume:
        return _resume(options)
    if not options.texts:
        raise UsageError(
            "the following arguments are required: TEXT (see pyllm2 train text --help)"
        )
    _make_room(out, options.force)
    with open_texts(options.texts, options.separator) as texts, _new_run(out):
        say(describe(texts))
        tokenizer, nbytes = _tokenizer(texts)
        context, tokens = _prepare(options.out, texts, tokenizer, nbytes)
        choice = _choose(options, tokenizer.vocab_size, context, tokens)
        arguments = _arguments(options, choice, context)
        say(f"pyllm2 train llama2 {shlex.join(arguments)}")
        run = parser_of("llama2").parse_args(arguments)
        run.json = options.json
        return train_run.main(run, processes.OneProcess(), locked=True)


def _resume(options: argparse.Namespace) -> int:
    """Go on with the run in the folder, as it began; the texts are in its shards already."""
    if not os.path.exists(os.path.join(options.out, RUN_FILE)):
        raise FileError(options.out, "has no run to resume")
    family, arguments = recall(options.out)
    for flag in ("backend", "threads"):
        if (value := getattr(options, flag)) is not None:
            arguments += [f"--{flag}", str(value)]
    arguments += [
        f"--{flag}" for flag in ("other-engine", "json") if getattr(options, flag.replace("-", "_"))
    ]
    how = "--resume"
    if options.extend:
        how = f"--extend {options.extend}"
        arguments += how.split()
    say(resume_command(family, options.out, how))
    resumed = parser_of(family).parse_args([*arguments, "--resume"])
    return train_run.main(resumed, processes.OneProcess())


def _make_room(out: str, force: bool) -> None:
    """Refuse a folder that is not empty; with `force` delete the run that it holds."""
    if not os.path.lexists(out) or (os.path.isdir(out) and not os.listdir(out)):
        return
    if os.path.lexists(os.path.join(out, LOCK)):  # is another process at work there?
        with locked(out):
            if not checkpoints(out) and set(os.listdir(out)) <= UNFINISHED:
                _clear(out)  # it was killed before its first checkpoint
                return
    is_run = os.path.isdir(out) and (
        checkpoints(out) or os.path.exists(os.path.join(out, RUN_FILE))
    )
    if not is_run:
        raise FileError(out, "already exists and is no run: choose a new folder")
    if not force:
        raise FileError(out, HAS_RUN)
    with open_folder(out, resume=False, anew=train_run.OWN_FILES):
        shutil.rmtree(os.path.join(out, DATA), ignore_errors=True)


@contextmanager
def _new_run(out: str) -> Iterator[None]:
    """Make the folder `out`; without a checkpoint at the end, all that was made is deleted."""
    made = []  # the folders that do not exist yet, the lowest first
    above = os.path.abspath(out)
    while not os.path.isdir(above) and above != os.path.dirname(above):
        made.append(above)
        above = os.path.dirname(above)
    with os_errors(out):
        os.makedirs(out, exist_ok=True)
    unfinished = False
    try:
        with locked(out):
            if checkpoints(out):  # another process was faster, and has finished by now
                raise FileError(out, HAS_RUN)
            try:
                yield
            finally:
                if unfinished := not checkpoints(out):
                    _clear(out)
    finally:
        if unfinished:
            with suppress(OSError):
                for folder in made:
                    os.rmdir(folder)


def _clear(out: str) -> None:
    """Delete what a run makes before its first checkpoint."""
    shutil.rmtree(os.path.join(out, DATA), ignore_errors=True)
    for name in UNFINISHED - {DATA}:
        with suppress(OSError):
            os.unlink(os.path.join(out, name))


def _tokenizer(texts: list[Text]) -> tuple[SentencePieceTokenizer, int]:
    """A tokenizer trained on the texts, sized to suit them, and the number of bytes of text."""
    nbytes = sum(text.nbytes for text in texts)
    with signals.immediate():
        vocabulary = to_vocabulary(train_vocabulary(texts, sizing.vocabulary_size(nbytes)))
    say(f"{nbytes:,} bytes of text: a vocabulary of {len(vocabulary.pieces)} pieces")
    return SentencePieceTokenizer(vocabulary.pieces, vocabulary.scores), nbytes


def _prepare(
    out: str, texts: list[Text], tokenizer: SentencePieceTokenizer, nbytes: int
) -> tuple[int, int]:
    """Write shards to OUT/data; returns the context length and the number of training tokens."""
    estimate = nbytes // 4  # tokens
    context = MAX_CONTEXT
    while context > MIN_CONTEXT and estimate < 40 * MOST_ROWS * context:
        context //= 2
    least = MOST_ROWS * context + 1  # tokens of a batch and its targets
    if estimate < 2 * least:
        raise FileError(texts[0].name, f"a text of at least {8 * least:,} bytes is needed")
    val_tokens = max(least, min(estimate // 20, MAX_VAL_TOKENS))
    done = prepare(texts, tokenizer, os.path.join(out, DATA), val_tokens)
    tokenizer.write_tokenizer(os.path.join(out, train_run.TOKENIZER_FILE))
    return context, done.train_tokens


def _choose(options: argparse.Namespace, V: int, context: int, tokens: int) -> sizing.Choice:
    """The model's shape, chosen by measuring the training speed of several."""
    engine = backends.engine(options.backend or backends.default(), options.threads)

    def config(shape: str) -> Any:
        return family.descriptor(f"{shape},context={context}", V)

    seconds = 60 * options.minutes * TRAINING_FRACTION
    choice = sizing.choose(
        sizing.SHAPES,
        lambda shape: config(shape).parameters(),
        lambda shape: speed_of(config(shape), engine, context),
        tokens,
        seconds,
    )
    say(
        f"{tokens:,} training tokens, {options.minutes:g} minutes: a model of "
        f"{choice.parameters:,} parameters ({choice.shape}), trained on {choice.tokens:,} tokens"
    )
    return choice


def _dim(shape: str) -> int:
    """Example: "dim=32,layers=3,heads=4" -> 32"""
    return int(shape.partition(",")[0].removeprefix("dim="))


def batch(per_update: int, context: int) -> int:
    """Rows per forward pass: all of an update, up to MOST_ROWS."""
    return min(MOST_ROWS, per_update // context)


def speed_of(config: Any, engine: backends.Engine, context: int) -> float:
    """Tokens per second of training a model of this shape, without updates."""
    model = family.build(config, family.initial_parameters(config), engine)
    rows = batch(sizing.LONG_RUN_PER_UPDATE, context)
    x = np.random.default_rng(0).integers(0, config.vocab_size, (rows, context))
    grads = model.params.zeros_like()
    seconds = []
    for _ in range(3):  # the first one compiles
        began = time.perf_counter()
        model.add_gradient(x, x, 1 / x.size, grads, fresh=True)
        seconds.append(time.perf_counter() - began)
    return x.size / min(seconds)


def _arguments(options: argparse.Namespace, choice: sizing.Choice, context: int) -> list[str]:
    """The arguments of `pyllm2 train llama2` that train the model."""
    total_batch = sizing.tokens_per_update(choice.tokens)
    steps = max(MIN_STEPS, choice.tokens // total_batch)
    data = os.path.join(options.out, DATA)
    flags = {
        "--init": f"{choice.shape},context={context}",
        "--train": os.path.join(data, "train*.bin"),
        "--val": os.path.join(data, "val.bin"),
        "--tokenizer": os.path.join(options.out, train_run.TOKENIZER_FILE),
        "--out": options.out,
        "--batch": batch(total_batch, context),
        "--context": context,
        "--total-batch": total_batch,
        "--steps": steps,
        "--warmup": max(1, int(sizing.WARMUP * steps)),
        "--learning-rate": sizing.learning_rate(_dim(choice.shape)),
        "--weight-decay": sizing.WEIGHT_DECAY,
        "--beta2": sizing.BETA2,
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
    return [word for flag, value in flags.items() for word in words(flag, str(value))]
