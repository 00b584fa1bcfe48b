"""`pyllm2 tokenize`: the ids of a text, or the text of ids."""

from __future__ import annotations

import argparse

from pyllm2.cli import flags
from pyllm2.cli.inputs import argument_bytes, read_bytes
from pyllm2.cli.output import Output, escaped
from pyllm2.errors import UsageError

SUMMARY = "print the token ids of a text, or the text of token ids"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", nargs="?", metavar="TEXT", help="text, or token ids with --decode")
    parser.add_argument(
        "--tokenizer",
        required=True,
        metavar="FILE",
        help=f"{flags.TOKENIZER_FILES}, or the words gpt2 or bytes",
    )
    parser.add_argument(
        "--text-file", metavar="FILE", help="read TEXT from FILE (-: standard input)"
    )
    parser.add_argument("--decode", action="store_true", help="print the text of token ids")
    parser.add_argument(
        "--pieces", action="store_true", help="print one line per token: its id and its piece"
    )
    parser.add_argument(
        "--no-bos", action="store_true", help="leave out what a prompt has in front of it (BOS)"
    )
    parser.add_argument("--eos", action="store_true", help="append the end-of-text token (EOS)")


def main(options: argparse.Namespace) -> int:
    from pyllm2.tokenizers import load_tokenizer

    if (options.text is None) == (options.text_file is None):
        raise UsageError("tokenize: expected either TEXT or --text-file")
    output = Output()
    tokenizer = load_tokenizer(options.tokenizer)
    if options.text_file is not None:
        data = read_bytes(options.text_file)
    else:
        data = argument_bytes(options.text)

    if options.decode:
        ids = _ids(data)
    elif options.no_bos:
        ids = tokenizer.encode(data, bos=False, eos=options.eos)
    else:
        ids = tokenizer.encode_prompt(data) + [tokenizer.end] * (options.eos and tokenizer.end >= 0)
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
    """The token ids of a text, separated by spaces or commas."""
    ids = []
    for word in data.replace(b",", b" ").split():
        if not word.isdigit() or len(word) > 10:
            raise UsageError(f"tokenize --decode: {word.decode(errors='replace')!r} is not an id")
        ids.append(int(word))
    return ids
