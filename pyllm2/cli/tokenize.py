"""`pyllm2 tokenize`: the ids of a text, or the text of ids."""

from __future__ import annotations

import argparse
import json
import shlex
from typing import Any

from pyllm2 import stories
from pyllm2.cli import flags
from pyllm2.cli.inputs import STDIN, argument_bytes, read_bytes
from pyllm2.cli.output import Output, escaped
from pyllm2.errors import UsageError

SUMMARY = "print the token ids of a text, or the text of token ids"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "text",
        nargs="*",
        metavar="TEXT",
        help="one text, quoted; with --decode token ids (default: standard input)",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="FILE",
        help=f"{flags.TOKENIZER_FILES}, or the words gpt2 or bytes "
        "(default: that of the story model that comes with pyllm2)",
    )
    parser.add_argument(
        "--text-file", metavar="FILE", help="read TEXT from FILE (-: standard input)"
    )
    printed = parser.add_mutually_exclusive_group()
    printed.add_argument("--decode", action="store_true", help="print the text of token ids")
    parser.add_argument(
        "--pieces", action="store_true", help="print one line per token: its id and its piece"
    )
    printed.add_argument("--count", action="store_true", help="print the number of tokens")
    printed.add_argument(
        "--json", action="store_true", help="print one object: ids, pieces, count, bytes"
    )
    parser.add_argument(
        "--no-bos", action="store_true", help="leave out what a prompt has in front of it (BOS)"
    )
    parser.add_argument("--eos", action="store_true", help="append the end-of-text token (EOS)")


def main(options: argparse.Namespace) -> int:
    from pyllm2.tokenizers import load_tokenizer

    if options.text and options.text_file is not None:
        raise UsageError("tokenize: expected either TEXT or --text-file")
    if len(options.text) > 1 and not options.decode:
        quoted = shlex.quote(" ".join(options.text))
        raise UsageError(
            f"tokenize: expected one TEXT, found {len(options.text)}: quote it: {quoted}"
        )
    for flag in ("no_bos", "eos"):
        if options.decode and getattr(options, flag):
            raise UsageError(f"tokenize: --{flag.replace('_', '-')}: not with --decode")
    if options.pieces and (options.count or options.json):
        raise UsageError(f"tokenize: --pieces: not with {'--count' if options.count else '--json'}")
    output = Output()
    tokenizer = load_tokenizer(options.tokenizer or stories.TOKENIZER)
    if options.text:
        data = argument_bytes(" ".join(options.text))
    else:
        data = read_bytes(options.text_file or STDIN)

    if options.decode:
        ids = _ids(data)
    elif options.no_bos:
        ids = tokenizer.encode(data, bos=False, eos=options.eos)
    else:
        ids = tokenizer.encode_prompt(data) + [tokenizer.end] * (options.eos and tokenizer.end >= 0)
    if options.count:
        output.write(f"{len(ids)}\n".encode())
    elif options.json:
        pieces = [_piece(tokenizer, i) for i in ids]
        found = {"ids": ids, "pieces": pieces, "count": len(ids), "bytes": len(data)}
        output.write(json.dumps(found).encode() + b"\n")
    elif options.pieces:
        for i in ids:
            shown = escaped(_piece(tokenizer, i)).replace("\n", "\\n").replace("\t", "\\t")
            output.write(f"{i:>6} {shown}\n".encode())
    elif options.decode:
        output.write(tokenizer.decode(ids), end=True)
    else:
        output.write((" ".join(map(str, ids)) + "\n").encode())
    return 0


def _piece(tokenizer: Any, i: int) -> str:
    """The piece of an id; bytes that are not UTF-8 are escaped."""
    tokenizer.decode_one(i)  # refuses an id outside the vocabulary
    return str(tokenizer.pieces[i].decode("utf-8", "backslashreplace"))


def _ids(data: bytes) -> list[int]:
    """The token ids of a text, separated by spaces or commas."""
    ids = []
    for word in data.replace(b",", b" ").split():
        if not word.isdigit() or len(word) > 10:
            raise UsageError(f"tokenize --decode: {word.decode(errors='replace')!r} is not an id")
        ids.append(int(word))
    return ids
