"""The modern commands' flags: names, ranges, defaults and help. Imports nothing heavy."""

from __future__ import annotations

import argparse
import math
from typing import Any, NoReturn

from pyllm2 import __version__, backends
from pyllm2.errors import UsageError

SHAPES = ("260K", "15M", "42M", "110M")


class Parser(argparse.ArgumentParser):
    """argparse, but a usage error is our one line and `--temp` is not `--temperature`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        raise UsageError(f"{message} (see {self.prog} --help)")


def at_least_zero(text: str) -> float:
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number ≥ 0")
    return value


temperature = at_least_zero


def minutes(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number > 0")
    return value


def fraction(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 0 to 1")
    return value


def beta(text: str) -> float:
    value = _number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 0 ≤ β < 1")
    return value


def top_p(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 0 < p ≤ 1")
    return value


def seed(text: str) -> int:
    return _seed(text, 64)


def seed32(text: str) -> int:
    return _seed(text, 32)


def _seed(text: str, bits: int) -> int:
    value = _whole(text)
    if not 0 <= value < 2**bits:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a whole number from 0 to 2^{bits} - 1"
        )
    return value


def count(text: str) -> int:
    value = _whole(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number ≥ 0")
    return value


def positive(text: str) -> int:
    value = _whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number ≥ 1")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan  # outside every range above


def _whole(text: str) -> int:
    """Digits with a sign at most: int() would take `1_000` and Arabic digits too."""
    digits = text.removeprefix("-")
    if digits.isascii() and digits.isdigit() and len(digits) <= 30:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number")


def parser_of() -> Parser:
    """The parser of every command but `run`, which has the original's own grammar."""
    parser = Parser(
        prog="pyllm2",
        description="Llama-2 and GPT-2: a readable NumPy specification and its rivals.",
    )
    parser.add_argument("--version", action="version", version=f"pyllm2 {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    def command(name: str, summary: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
        )

    commands.add_parser(
        "run", help="drop-in for llama2.c's run: pyllm2 run MODEL [-t -p -s -n ...]"
    )

    generate = command("generate", "continue a prompt")
    generate.add_argument(
        "model", nargs="?", metavar="MODEL",
        help="a checkpoint of llama2.c or llm.c; by default the model in the box",
    )  # fmt: skip
    _add_engine(generate)
    source = generate.add_mutually_exclusive_group()
    source.add_argument(
        "--prompt", default="", metavar="TEXT", help="what to continue, default nothing"
    )
    source.add_argument(
        "--prompt-file", metavar="FILE", help="read the prompt from a file; - is stdin"
    )
    _add_sampling(generate)
    generate.add_argument(
        "--max-new-tokens",
        type=count,
        default=256,
        metavar="N",
        help="stop after so many, default %(default)s",
    )
    generate.add_argument(
        "--ignore-eos", action="store_true", help="go on past the model's end of text"
    )
    generate.add_argument("--no-echo", action="store_true", help="print only what is new")

    chat = command("chat", "talk to a chat-tuned model in Llama-2's format")
    chat.add_argument("model", metavar="MODEL", help="a llama2.c checkpoint")
    _add_engine(chat)
    chat.add_argument(
        "--system", default="", metavar="TEXT", help="the system prompt, default none"
    )
    chat.add_argument("--prompt", metavar="TEXT", help="the first message; the rest from stdin")
    _add_sampling(chat)
    chat.add_argument(
        "--max-new-tokens",
        type=count,
        default=1024,
        metavar="N",
        help="longest single reply, default %(default)s",
    )

    tokenize = command("tokenize", "show the ids of a text, or the text of ids")
    tokenize.add_argument("text", nargs="?", metavar="TEXT", help="text, or ids with --decode")
    tokenize.add_argument("--tokenizer", required=True, metavar="FILE", help="see generate")
    tokenize.add_argument("--text-file", metavar="FILE", help="read it from a file; - is stdin")
    tokenize.add_argument("--decode", action="store_true", help="ids in, text out")
    tokenize.add_argument("--pieces", action="store_true", help="one line a token: id and piece")
    tokenize.add_argument("--no-bos", action="store_true", help="leave out the begin-of-text id")
    tokenize.add_argument("--eos", action="store_true", help="add the end-of-text id")

    tokenizer = command("tokenizer", "train a tokenizer on text, or write one as tokenizer.bin")
    actions = tokenizer.add_subparsers(
        dest="action", metavar="ACTION", required=True, parser_class=Parser
    )
    train = actions.add_parser("train", help="byte-pair pieces of texts, by llama2.c's settings")
    train.add_argument("texts", nargs="+", metavar="TEXT", help="text files, UTF-8")
    train.add_argument("--out", required=True, metavar="FILE.model", help="the file to write")
    train.add_argument(
        "--vocab-size", type=positive, default=1024, metavar="N",
        help="pieces, the 259 specials and bytes included, default %(default)s",
    )  # fmt: skip
    train.add_argument(
        "--like-original", action="store_true", help="collapse runs of spaces, as llama2.c's do"
    )
    to_bin = actions.add_parser("export", help="from SentencePiece's .model to tokenizer.bin")
    to_bin.add_argument("source", metavar="IN", help="a SentencePiece .model or a tokenizer.bin")
    to_bin.add_argument("target", metavar="OUT", help="the tokenizer.bin to write")

    export = command("export", "write a checkpoint in another of llama2.c's formats")
    export.add_argument("source", metavar="IN", help="a checkpoint of any version")
    export.add_argument("target", metavar="OUT", help="the file to write")
    export.add_argument(
        "--format", choices=("v0", "v1", "v2"), required=True, help="float32, float32, int8"
    )
    _add_group_size(export)

    quantize = command("quantize", "write a checkpoint in int8, with a scale for each group")
    quantize.add_argument("source", metavar="IN", help="a float32 checkpoint")
    quantize.add_argument("target", metavar="OUT", help="the file to write")
    _add_group_size(quantize)
    quantize.add_argument("--report", action="store_true", help="say what it cost, by tensor")
    quantize.add_argument("--text", metavar="FILE", help="and on this text (with --tokenizer)")
    quantize.add_argument("--tokenizer", metavar="FILE", help="see generate")

    from pyllm2.cli import training_arguments  # which imports this module

    training_arguments.add_train(command("train", "train a model from token shards"))
    training_arguments.add_data(command("data", "make token shards to train on"))
    training_arguments.add_eval(command("eval", "see how well a model does on a set of questions"))

    warmup = command("warmup", "compile every backend now, so that no later start waits")
    warmup.add_argument("--threads", type=positive, metavar="N", help="by default all processors")

    gradcheck = command("gradcheck", "hold gradients to differences, and backends to gradients")
    gradcheck.add_argument(
        "op", nargs="?", metavar="OP",
        help="gpt2, llama2, or one op of theirs: attention, llama2.rope, …; by default all",
    )  # fmt: skip
    gradcheck.add_argument(
        "--examples", type=positive, default=20, metavar="N",
        help="drawn inputs for each, default %(default)s",
    )  # fmt: skip
    gradcheck.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="of the inputs, default %(default)s"
    )

    bench = command("bench", "race the backends, as shares of the machine's limits")
    bench.add_argument("model", nargs="?", metavar="MODEL", help="a checkpoint; or see --shape")
    bench.add_argument("--shape", choices=SHAPES, help="random weights of a published shape")
    bench.add_argument("--save", metavar="FILE", help="keep the random checkpoint here")
    bench.add_argument("--backends", metavar="A,B", help="by default all but the strict ones")
    bench.add_argument(
        "--against", action="append", default=[], metavar="PROGRAM",
        help="also race a program that takes run.c's flags",
    )  # fmt: skip
    bench.add_argument("--threads", type=positive, metavar="N", help="by default all processors")
    for flag, default, what in (
        ("--prompt-tokens", 128, "length of the prompt"),
        ("--new-tokens", 64, "steps to decode"),
        ("--repeats", 5, "how often each is measured"),
    ):
        bench.add_argument(
            flag, type=positive, default=default, metavar="N", help=f"{what}, default %(default)s"
        )
    bench.add_argument("--json", metavar="FILE", help="also write all samples")
    bench.add_argument("--plot", metavar="FILE", help="also draw the shares (PNG, SVG, PDF)")
    return parser


def command_names() -> list[str]:
    """All commands, in the order of the help."""
    (commands,) = (a for a in parser_of()._actions if isinstance(a, argparse._SubParsersAction))
    return list(commands.choices)


def _add_group_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--group-size", type=positive, default=64, metavar="N",
        help="of int8; halved until it divides both widths, default %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--like-original", action="store_true",
        help="halve it until it divides dim only, which may lose inputs of w2",
    )  # fmt: skip


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tokenizer",
        metavar="FILE",
        help="tokenizer.bin or SentencePiece .model; by default tokenizer.bin beside MODEL "
        "or in the current folder",
    )
    parser.add_argument("--backend", choices=backends.NAMES, help="by default the best there is")
    parser.add_argument("--threads", type=positive, metavar="N", help="by default all processors")
    parser.add_argument("--mmap", action="store_true", help="map the weights instead of reading")
    parser.add_argument(
        "--context", type=positive, metavar="N", help="use fewer positions than the model has"
    )


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--temperature",
        type=temperature,
        default=1.0,
        metavar="T",
        help="0 is greedy, default %(default)s",
    )
    parser.add_argument(
        "--top-p",
        type=top_p,
        default=0.9,
        metavar="P",
        help="1 keeps every token, default %(default)s",
    )
    parser.add_argument(
        "--seed", type=seed, metavar="N", help="0 to 2^64 - 1; by default a new one, said on stderr"
    )
