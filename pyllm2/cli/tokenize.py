"""`pyllm2 tokenize`: the ids of a text, or the text of ids."""

from __future__ import annotations

import argparse
import warnings

from pyllm2.cli.common import argument_bytes, read_bytes
from pyllm2.cli.output import Output, escaped
from pyllm2.errors import PyLLM2Warning, UsageError
from pyllm2.llama2.tokenizer import from_vocabulary_file


def main(options: argparse.Namespace) -> int:
    if (options.text is None) == (options.text_file is None):
        raise UsageError("tokenize: expected either TEXT or --text-file")
    output = Output()
    tokenizer, notes = from_vocabulary_file(options.tokenizer)
    for note in notes:
        warnings.warn(note, PyLLM2Warning, stacklevel=1)
    if options.text_file is not None:
        data = read_bytes(options.text_file)
    else:
        data = argument_bytes(options.text)

    ids = _ids(data) if options.decode else tokenizer.encode(data, not options.no_bos, options.eos)
    if options.pieces:
        for i in ids:
            tokenizer.decode_one(i)  # refuses an id outside the vocabulary
            piece = tokenizer.pieces[i].decode("utf-8", "backslashreplace")
            shown = escaped(piece).replace("\n", "\\n").replace("\t", "\\t")
            output.write(f"{i:>6} {shown}\n".encode())
    elif options.decode:
        output.write(tokenizer.decode(ids), end=True)
    else:
        output.write((" ".join(map(str, ids)) + "\n").encode())
    return 0


def _ids(data: bytes) -> list[int]:
    ids = []
    for word in data.replace(b",", b" ").split():
        if not word.isdigit() or len(word) > 10:
            raise UsageError(f"tokenize --decode: {word.decode(errors='replace')!r} is not an id")
        ids.append(int(word))
    return ids
