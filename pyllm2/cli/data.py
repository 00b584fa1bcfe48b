"""`pyllm2 data`: `prepare` writes texts as token shards, `hellaswag` an evaluation file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyllm2.cli import flags, numbers
from pyllm2.cli.inputs import read_bytes
from pyllm2.cli.output import say
from pyllm2.cli.outputs import add_force, check_folder, check_output, output

SUMMARY = "convert texts to token shards for training, HellaSwag to an evaluation file"


def add_flags(parser: argparse.ArgumentParser) -> None:
    actions = flags.add_actions(parser)
    _add_hellaswag_flags(actions)
    prepare = flags.add_action(
        actions,
        "prepare",
        "write the documents of text files as token shards",
    )
    flags.add_texts(prepare)
    prepare.add_argument(
        "--out", type=output, required=True, metavar="FOLDER", help="new folder for the shards"
    )
    prepare.add_argument(
        "--tokenizer",
        required=True,
        metavar="FILE",
        help="gpt2 (downloaded by tiktoken), bytes (257 ids, for small models), or a file: "
        f"{flags.TOKENIZER_FILES}",
    )
    prepare.add_argument(
        "--val-tokens",
        type=numbers.count,
        default=2**15,
        metavar="N",
        help="size of the validation shard, taken from the beginning, in tokens",
    )
    prepare.add_argument(
        "--shard-tokens",
        type=numbers.positive,
        default=10**8,
        metavar="N",
        help="maximum number of tokens per training shard",
    )
    add_force(prepare)


def _add_hellaswag_flags(actions: Any) -> None:
    parser = flags.add_action(
        actions,
        "hellaswag",
        "write llm.c's evaluation file from the JSON lines that HellaSwag is published as",
    )
    parser.add_argument(
        "source", metavar="JSONL", help="hellaswag_val.jsonl of github.com/rowanz/hellaswag"
    )
    parser.add_argument(
        "--out", type=output, required=True, metavar="FILE", help="evaluation file to write"
    )
    parser.add_argument(
        "--tokenizer",
        required=True,
        metavar="FILE",
        help="tokenizer file of the model, or the words gpt2 or bytes",
    )
    add_force(parser)


def main(options: argparse.Namespace) -> int:
    return _hellaswag(options) if options.action == "hellaswag" else _prepare(options)


def _hellaswag(options: argparse.Namespace) -> int:
    from pyllm2.formats.llmc_evaluation import write_examples
    from pyllm2.tokenizers import load_tokenizer
    from pyllm2.training.hellaswag import examples

    check_output(options.out, options.source, options.tokenizer, force=options.force)
    tokenizer = load_tokenizer(options.tokenizer)
    found = list(examples(options.source, read_bytes(options.source), tokenizer))
    write_examples(options.out, found)
    say(f"{options.out}: {len(found)} examples")
    return 0


def _prepare(options: argparse.Namespace) -> int:
    from pyllm2.formats.text import describe, open_texts
    from pyllm2.tokenizers import load_tokenizer
    from pyllm2.training.prepare import prepare

    check_folder(options.out, *options.texts, force=options.force)
    tokenizer = load_tokenizer(options.tokenizer)
    with (
        open_texts(options.texts, options.separator) as texts,
        _bar(sum(text.nbytes for text in texts)) as progress,
    ):
        done = prepare(
            texts,
            tokenizer,
            options.out,
            options.val_tokens,
            options.shard_tokens,
            progress,
            replace=options.force,
        )
    say(
        f"{options.out}: {', '.join(done.files)}: {done.documents} documents, "
        f"{done.train_tokens} training tokens, {done.val_tokens} validation tokens; "
        f"{describe(texts)}"
    )
    if done.val_tokens > done.train_tokens:
        say("most tokens are for validation: --val-tokens N takes fewer")
    return 0


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], object]]:
    """A progress bar in bytes, if tqdm is installed and stderr is a terminal."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda _: None
        return
    with tqdm(total=total, unit="B", unit_scale=True, file=sys.stderr, disable=None) as bar:
        yield bar.update
