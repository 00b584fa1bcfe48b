"""`pyllm2 tokenizer train|export`: make a vocabulary from text; write it as llama2.c reads it."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Sequence

from pyllm2.cli.common import say
from pyllm2.errors import FileError, FormatError, PyLLM2Warning, UsageError
from pyllm2.formats.reader import open_source
from pyllm2.formats.sentencepiece_model import train_sentencepiece
from pyllm2.formats.vocabulary import write_vocabulary
from pyllm2.formats.writer import atomic_write
from pyllm2.llama2.tokenizer import FIRST_BYTE, N_BYTES, from_vocabulary_file


def main(options: argparse.Namespace) -> int:
    return {"train": _train, "export": _export}[options.action](options)


def _train(options: argparse.Namespace) -> int:
    if options.vocab_size <= FIRST_BYTE + N_BYTES:
        least = FIRST_BYTE + N_BYTES + 1
        raise UsageError(
            f"--vocab-size {options.vocab_size}: specials and bytes alone need {least}"
        )
    lines = list(lines_of(options.texts))
    if not lines:
        raise FileError(options.texts[0], "no text to train on")
    model = train_sentencepiece(lines, options.vocab_size, options.like_original)
    with atomic_write(options.out) as file:
        file.write(model.serialized_model_proto())
    say(f"{options.out}: {model.vocab_size()} pieces")
    return 0


def lines_of(paths: Sequence[str]) -> Iterator[str]:
    """The lines of all files that are not blank. Raises FormatError where they are not UTF-8."""
    for path in paths:
        with open_source(path) as source:
            data = source.read_all().tobytes()
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise FormatError(path, f"byte {error.start}: not UTF-8") from None
        yield from filter(str.strip, text.splitlines())


def _export(options: argparse.Namespace) -> int:
    if options.source == options.target:
        raise FileError(options.target, "is the input as well")
    tokenizer, notes = from_vocabulary_file(options.source)
    for note in notes:
        warnings.warn(note, PyLLM2Warning, stacklevel=1)
    write_vocabulary(options.target, tokenizer.pieces, tokenizer.scores)
    return 0
