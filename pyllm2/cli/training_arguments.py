"""The flags of the commands about training. Imports nothing heavy."""

from __future__ import annotations

import argparse

from pyllm2 import backends
from pyllm2.cli.arguments import Parser, count, positive


def add_data(command: argparse.ArgumentParser) -> None:
    """`pyllm2 data prepare`"""
    prepare = _action(command, "prepare", "write texts as token shards, documents apart")
    prepare.add_argument("texts", nargs="+", metavar="TEXT", help="text files")
    prepare.add_argument("--out", required=True, metavar="DIR", help="a new folder to write")
    prepare.add_argument(
        "--tokenizer", required=True, metavar="WHICH",
        help="gpt2 (downloaded by tiktoken), bytes (257 ids, for small models), or a file: "
        "tokenizer.bin or a rank file of tiktoken",
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
