"""`pyllm2 tokenizer`: train a vocabulary on text; convert one to llama2.c's tokenizer.bin."""

from __future__ import annotations

import argparse

from pyllm2.cli import flags, numbers, signals
from pyllm2.cli.output import say
from pyllm2.cli.outputs import add_force, check_output, output
from pyllm2.errors import UsageError

SUMMARY = "train a tokenizer on text, or convert one to tokenizer.bin"


def add_flags(parser: argparse.ArgumentParser) -> None:
    actions = flags.add_actions(parser)
    train = flags.add_action(
        actions, "train", "train a SentencePiece BPE model with llama2.c's settings"
    )
    flags.add_texts(train)
    train.add_argument(
        "--out",
        type=output,
        required=True,
        metavar="FILE.model",
        help="SentencePiece model to write",
    )
    train.add_argument(
        "--vocab-size",
        type=numbers.positive,
        default=1024,
        metavar="N",
        help="number of pieces, including 3 control and 256 byte pieces",
    )
    train.add_argument(
        "--like-original",
        action="store_true",
        help="merge runs of spaces into one, as llama2.c's models do",
    )
    add_force(train)
    export = flags.add_action(actions, "export", "convert a SentencePiece .model to tokenizer.bin")
    export.add_argument("source", metavar="IN", help="SentencePiece .model or tokenizer.bin")
    export.add_argument("target", type=output, metavar="OUT", help="tokenizer.bin to write")
    add_force(export)


def main(options: argparse.Namespace) -> int:
    return {"train": _train, "export": _export}[options.action](options)


def _train(options: argparse.Namespace) -> int:
    from pyllm2.formats.text import describe, open_texts
    from pyllm2.formats.writer import atomic_write
    from pyllm2.tokenizers.sentencepiece import FIRST_BYTE, N_BYTES
    from pyllm2.training.vocabulary import train_vocabulary

    if options.vocab_size <= FIRST_BYTE + N_BYTES:
        least = FIRST_BYTE + N_BYTES + 1
        raise UsageError(
            f"--vocab-size {options.vocab_size}: specials and bytes alone need {least}"
        )
    check_output(options.out, *options.texts, force=options.force)
    with open_texts(options.texts, options.separator) as texts, signals.immediate():
        model = train_vocabulary(texts, options.vocab_size, options.like_original)
    with atomic_write(options.out) as file:
        file.write(model.serialized_model_proto())
    say(f"{options.out}: {model.vocab_size()} pieces; {describe(texts)}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from pyllm2.tokenizers import load_tokenizer

    check_output(options.target, options.source, force=options.force)
    load_tokenizer(options.source).write_tokenizer(options.target)
    return 0
