"""`pyllm2 train`: the flags of its subcommands. The work is in `train_run` and `train_text`."""

from __future__ import annotations

import argparse

from pyllm2.cli import numbers
from pyllm2.cli.flags import add_action, add_actions, add_machine, add_texts
from pyllm2.cli.outputs import add_force, output
from pyllm2.cli.train_flags import (
    REPLACE_RUN,
    add_extend,
    add_gpt2_flags,
    add_json,
    add_llama2_flags,
    add_other_engine,
)
from pyllm2.errors import PyLLM2Error

SUMMARY = "train a GPT-2 or a Llama-2"
USAGE = "pyllm2 train {} --init MODEL --train GLOB --val GLOB --out FOLDER\n{:>32}"
GPT2_EXAMPLE = """\
example:
  pyllm2 data prepare text.txt --tokenizer bytes --out data
  pyllm2 train gpt2 --init layers=4,heads=4,channels=128,context=64 --out run \\
    --train 'data/train*.bin' --val data/val.bin --tokenizer data/tokenizer.bin"""
LLAMA2_EXAMPLE = """\
example:
  pyllm2 tokenizer train text.txt --vocab-size 1024 --out text.model
  pyllm2 data prepare text.txt --tokenizer text.model --out data
  pyllm2 train llama2 --init dim=64,layers=5,heads=8 --tokenizer text.model \\
    --train 'data/train*.bin' --val data/val.bin --out run"""


def main(options: argparse.Namespace) -> int:
    if options.family == "text":
        from pyllm2.cli import train_text

        return train_text.main(options)
    from pyllm2.cli import ranks
    from pyllm2.cli.train_command import recalled

    try:
        options = recalled(options)
    except PyLLM2Error as error:
        ranks.refuse(options.argv, error)
    options.asked = {"threads": options.threads}  # before the processes share the processors
    with ranks.of_this_run(options) as processes:
        from pyllm2.cli import train_run

        return train_run.main(options, processes)


def add_flags(parser: argparse.ArgumentParser) -> None:
    families = add_actions(parser, "family", "MODEL")
    for name, summary, add, example in (
        ("gpt2", "train a GPT-2 on token shards, as llm.c does", add_gpt2_flags, GPT2_EXAMPLE),
        (
            "llama2",
            "train a Llama-2 on token shards, as llama2.c does",
            add_llama2_flags,
            LLAMA2_EXAMPLE,
        ),
    ):
        usage = USAGE.format(name, "[OPTION ...]")
        add(add_action(families, name, summary, usage=usage, epilog=example))
    _add_text_flags(
        add_action(
            families,
            "text",
            "make a tokenizer and a small Llama-2 from text files in a given time",
        )
    )


def _add_text_flags(parser: argparse.ArgumentParser) -> None:
    add_texts(parser, "*")
    parser.add_argument(
        "--out", type=output, required=True, metavar="FOLDER", help="new folder for the results"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in FOLDER, with the flags that it began with",
    )
    add_extend(parser)
    add_other_engine(parser)
    add_force(parser, REPLACE_RUN)
    add_json(parser)
    parser.add_argument(
        "--minutes",
        type=numbers.above_0,
        default=10.0,
        metavar="M",
        help="approximate training time in minutes",
    )
    parser.add_argument(
        "--seed",
        type=numbers.seed32,
        default=1337,
        metavar="N",
        help="random seed, 0 to 2^32 - 1",
    )
    add_machine(parser)
