"""The flags of the commands about training. Imports nothing heavy."""

from __future__ import annotations

import argparse
from typing import Any

from pyllm2 import backends
from pyllm2.cli.arguments import (
    Parser,
    at_least_zero,
    beta,
    count,
    fraction,
    minutes,
    positive,
    seed32,
)

SCHEDULES = ("constant", "linear", "cosine", "wsd", "llama2")
DECAY_RULES = ("matrices", "all")


def add_data(command: argparse.ArgumentParser) -> None:
    """`pyllm2 data prepare`"""
    prepare = _action(command, "prepare", "write texts as token shards, documents apart")
    prepare.add_argument("texts", nargs="+", metavar="TEXT", help="text files")
    prepare.add_argument("--out", required=True, metavar="DIR", help="a new folder to write")
    prepare.add_argument(
        "--tokenizer", required=True, metavar="WHICH",
        help="gpt2 (downloaded by tiktoken), bytes (257 ids, for small models), or a file: a "
        "tokenizer.bin of llm.c or llama2.c, a rank file of tiktoken, a SentencePiece model",
    )  # fmt: skip
    prepare.add_argument(
        "--val-tokens", type=count, default=2**15, metavar="N",
        help="the first so many are for validation, default %(default)s",
    )  # fmt: skip
    prepare.add_argument(
        "--shard-tokens", type=positive, default=10**8, metavar="N",
        help="most tokens in one file, default %(default)s",
    )  # fmt: skip


def add_eval(command: argparse.ArgumentParser) -> None:
    """`pyllm2 eval hellaswag`"""
    hellaswag = _action(command, "hellaswag", "multiple choice, by mean loss of each completion")
    hellaswag.add_argument("model", metavar="MODEL", help="an llm.c GPT-2 checkpoint")
    hellaswag.add_argument("--data", required=True, metavar="FILE", help="hellaswag_val.bin")
    hellaswag.add_argument(
        "--batch", type=positive, default=1, metavar="N",
        help="examples at a time, 4 rows each, default %(default)s",
    )  # fmt: skip
    hellaswag.add_argument("--backend", choices=backends.NAMES, help="by default the best there is")
    hellaswag.add_argument(
        "--threads", type=positive, metavar="N", help="by default all processors"
    )


def _action(command: argparse.ArgumentParser, name: str, summary: str) -> argparse.ArgumentParser:
    """The parser of `pyllm2 COMMAND NAME`, the only action so far."""
    actions = command.add_subparsers(
        dest="action", metavar="ACTION", required=True, parser_class=Parser
    )
    return actions.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + "."
    )


def add_train(train: argparse.ArgumentParser) -> None:
    """`pyllm2 train gpt2`, and what other kinds of models there will be."""
    models = train.add_subparsers(
        dest="family", metavar="MODEL", required=True, parser_class=Parser
    )
    gpt2 = models.add_parser(
        "gpt2",
        help="GPT-2, as llm.c trains it",
        description="Train a GPT-2 from token shards, with llm.c's optimizer and schedules.",
        usage="pyllm2 train gpt2 --init MODEL --train GLOB --val GLOB --out FOLDER [flags]",
    )
    gpt2.add_argument(
        "--init", required=True, metavar="MODEL",
        help="checkpoint of llm.c, or new: d12, layers=4,heads=4,channels=128[,context=,vocab=]",
    )  # fmt: skip
    add_training(gpt2)
    gpt2.set_defaults(dropout=0.0)
    _add_llama2(models)
    _add_text(models)


def _add_text(models: Any) -> None:
    """`pyllm2 train text`: everything is chosen, and said."""
    text = models.add_parser(
        "text",
        help="from a text to a small Llama that plays, in one command and a given time",
        description="Train a vocabulary and a small Llama on texts, in sizes that fit them and "
        "the time given.",
    )
    text.add_argument("texts", nargs="+", metavar="TEXT", help="text files, UTF-8")
    text.add_argument("--out", required=True, metavar="FOLDER", help="a new folder")
    text.add_argument(
        "--minutes", type=minutes, default=10.0, metavar="M",
        help="how long, about, default %(default)s",
    )  # fmt: skip
    text.add_argument("--seed", type=seed32, default=1337, metavar="N", help="default %(default)s")
    text.add_argument("--backend", choices=backends.NAMES, help="by default the best there is")
    text.add_argument("--threads", type=positive, metavar="N", help="by default all processors")


def _add_llama2(models: Any) -> None:
    """`pyllm2 train llama2`: llama2.c's settings, but for a batch that a processor can bear."""
    llama2 = models.add_parser(
        "llama2",
        help="Llama-2, as llama2.c trains it",
        description="Train a Llama-2 from token shards, with llama2.c's optimizer and schedule.",
        usage="pyllm2 train llama2 --init MODEL --train GLOB --val GLOB --out FOLDER [flags]",
    )
    llama2.add_argument(
        "--init", required=True, metavar="MODEL",
        help="checkpoint of llama2.c, or new: 15M, dim=64,layers=5,heads=8[,kv_heads=,hidden=,…]",
    )  # fmt: skip
    llama2.add_argument(
        "--dropout", type=beta, default=0.0, metavar="P", help="while training, default %(default)s"
    )
    add_training(llama2)
    llama2.set_defaults(
        batch=16, context=256, learning_rate=5e-4, warmup=100, schedule="llama2",
        weight_decay=0.1, seed=1337,
    )  # fmt: skip


def add_training(parser: argparse.ArgumentParser) -> None:
    """What every kind of model is trained with."""
    add = parser.add_argument
    add("--train", required=True, metavar="GLOB", help="token shards to learn from")
    add("--val", required=True, metavar="GLOB", help="token shards to be tried on")
    add("--out", required=True, metavar="FOLDER", help="log, checkpoints, and at last model.bin")
    add("--tokenizer", metavar="FILE", help="to show samples as text: a file, gpt2, or bytes")
    _add_recipe(parser)
    _add_plan(parser)
    add("--resume", action="store_true", help="go on from the newest checkpoint in --out")
    add("--force", action="store_true", help="resume even with another backend or thread count")
    add(
        "--backend", choices=backends.NAMES, metavar="NAME",
        help=f"{', '.join(backends.NAMES)}; by default the best",
    )  # fmt: skip
    add("--threads", type=positive, metavar="N", help="by default all processors")
    add("--plot", metavar="FILE", help="draw the loss here (by default FOLDER/loss.png)")


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    """What determines the numbers."""

    def number(flag: str, kind: object, default: object, metavar: str, text: str) -> None:
        parser.add_argument(
            flag, type=kind, default=default, metavar=metavar,  # type: ignore[arg-type]
            help=f"{text}, default %(default)s",
        )  # fmt: skip

    number("--batch", positive, 4, "N", "rows of a forward")
    number("--context", positive, 64, "N", "tokens of a row")
    parser.add_argument(
        "--total-batch",
        type=positive,
        metavar="N",
        help="tokens of an update; by default one batch",
    )
    parser.add_argument("--steps", type=positive, metavar="N", help="updates; by default one epoch")
    number("--learning-rate", at_least_zero, 3e-4, "X", "at its highest")
    number("--warmup", count, 0, "N", "updates until then")
    parser.add_argument(
        "--schedule", choices=SCHEDULES, default="cosine", metavar="NAME",
        help=f"{', '.join(SCHEDULES)}; default %(default)s",
    )  # fmt: skip
    number("--final-fraction", fraction, 0.0, "X", "of the learning rate, at the end")
    number("--weight-decay", at_least_zero, 0.0, "X", "a step, times the learning rate")
    parser.add_argument(
        "--decay", choices=DECAY_RULES, default="matrices", metavar="WHAT",
        help="matrices (as on a GPU) or all (as on the CPU); default %(default)s",
    )  # fmt: skip
    number("--beta1", beta, 0.9, "X", "memory of the gradient")
    number("--beta2", beta, 0.95, "X", "memory of its square")
    number("--clip", at_least_zero, 1.0, "X", "longest gradient; 0: any")
    number("--skip-loss-z", at_least_zero, 0.0, "Z", "skip updates of a loss so far out; 0: none")
    number("--skip-norm-z", at_least_zero, 0.0, "Z", "likewise of a gradient; 0: none")
    number("--seed", seed32, 42, "N", "of data order and new weights")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    """What happens besides."""
    for flag, default, text in (
        ("--val-every", 20, "validate every N updates; 0: at the end"),
        ("--val-batches", 20, "on so many batches; 0: all"),
        ("--sample-every", 0, "write a text every N updates; 0: never"),
        ("--sample-tokens", 64, "of so many tokens"),
        ("--save-every", 0, "checkpoint every N updates; 0: at the end"),
    ):
        parser.add_argument(
            flag, type=count, default=default, metavar="N", help=f"{text}, default %(default)s"
        )
    parser.add_argument(
        "--keep", type=positive, default=2, metavar="N",
        help="newest checkpoints that stay, default %(default)s",
    )  # fmt: skip
