"""The parser class, and the flags that several commands have."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from pyllm2 import backends
from pyllm2.cli import numbers
from pyllm2.errors import UsageError

TOKENIZER_FILES = "Hugging Face folder, tokenizer.json, .model or .bin, GGUF, tiktoken rank file"


class HelpFormatter(argparse.HelpFormatter):
    """Appends the default to every help line that has one, and keeps the lines of an example."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **{"max_help_position": 26, **options})
        self._action_max_length = 14  # argparse forgets the indentation of subcommands

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return (
            text
            if text.startswith(("example:", "examples:", "exit codes:"))
            else super()._fill_text(text, width, indent)
        )

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        if not action.help or default is None or default is False or default in ("", []):
            return action.help
        if default == argparse.SUPPRESS:
            return action.help
        if action.help.endswith(")"):
            return f"{action.help[:-1]}; default: %(default)s)"
        return f"{action.help} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations of flags; a usage error is a UsageError of one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": HelpFormatter, "allow_abbrev": False, **options})
        self._words: list[str] = []  # what is parsed

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._words = list(args or ())
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:  # here, and not at the top: the error names the page of this command
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._meant(unknown)}")
        return found, unknown

    def _meant(self, unknown: list[str]) -> str:
        """ "; did you mean --prompt?" for a flag that looks like one of this command."""
        for word in unknown:
            if word.startswith("-"):
                flag = word.partition("=")[0]
                if len(flag) == 2:  # no flag of ours has one letter: those of run.c
                    meant = ORIGINAL.get(flag)
                    known = meant in self._option_string_actions
                    return f"; did you mean {meant}?" if known else ""
                return did_you_mean(flag, self._option_string_actions)
        return ""

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        flag, _, problem = message.rpartition(": ")
        if problem == "expected one argument" and flag in self._words[:-1]:
            value = self._words[self._words.index(flag) + 1]
            if value.partition("=")[0] not in self._option_string_actions:
                message += f"; a value with a dash in front: {flag}={shlex.quote(value)}"
        if choice := _CHOICE.fullmatch(message):
            meant = did_you_mean(choice[2], re.findall(r"[\w.-]+", choice[3]))
            message = f"{choice[1]}{meant}" if meant else message
        raise UsageError(f"{message} (see {self.prog} --help)")


# The flags of llama2.c's `run` and their names here.
ORIGINAL = {
    "-t": "--temperature",
    "-p": "--top-p",
    "-s": "--seed",
    "-n": "--max-new-tokens",
    "-i": "--prompt",
    "-z": "--tokenizer",
    "-y": "--system",
}
_CHOICE = re.compile(r"(.*: invalid choice: '(.*)') \(choose from (.*)\)")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Example: "atention", ["attention", "rope"] -> "; did you mean attention?" """
    from difflib import get_close_matches

    bare = {name.lstrip("-"): name for name in known}
    word = word.lstrip("-")
    begun = [name for name in bare if word and name.startswith(word)]
    found = [bare[name] for name in (begun or get_close_matches(word, bare, cutoff=0.6))[:2]]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def names_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    """argparse type: names with commas between them, each of which counts once.

    Example: names_of(("a", "b", "c"))("b,a,b") -> ["b", "a"]
    """

    def parse(text: str) -> list[str]:
        names = list(dict.fromkeys(text.split(",")))
        for name in names:
            if name not in known:
                choices = ", ".join(map(repr, known))
                raise argparse.ArgumentTypeError(
                    f"invalid choice: {name!r} (choose from {choices})"
                )
        return names

    return parse


def one_of(words: Sequence[str]) -> str:
    """Example: ("v0", "v1", "v2") -> "v0, v1 or v2" """
    return f"{', '.join(words[:-1])} or {words[-1]}"


def sentence(summary: str) -> str:
    """The description of a command whose line in the list of commands is `summary`."""
    return summary[0].upper() + summary[1:] + "."


def add_actions(
    parser: argparse.ArgumentParser, dest: str = "action", metavar: str = "ACTION"
) -> Any:
    """Subcommands of a command: `pyllm2 tokenizer train`."""
    return parser.add_subparsers(dest=dest, metavar=metavar, required=True, parser_class=Parser)


def add_action(actions: Any, name: str, summary: str, **options: Any) -> argparse.ArgumentParser:
    """The parser of one subcommand."""
    parser: argparse.ArgumentParser = actions.add_parser(
        name, help=summary, **{"description": sentence(summary), **options}
    )
    return parser


def add_no_mpi(parser: Any) -> None:
    parser.add_argument(
        "--no-mpi", action="store_true", help="ignore the other processes that mpiexec has started"
    )


def add_machine(parser: Any) -> None:
    """--backend and --threads."""
    parser.add_argument(
        "--backend",
        choices=backends.NAMES,
        metavar="NAME",
        help=f"{one_of(backends.NAMES)} (default: the first of these that can run here)",
    )
    add_threads(parser)


def add_threads(parser: Any) -> None:
    parser.add_argument(
        "--threads",
        type=numbers.threads,
        metavar="N",
        help="number of threads (default: all processors)",
    )


def add_loading(parser: Any) -> None:
    """How a model to generate text with is opened."""
    parser.add_argument(
        "--tokenizer",
        metavar="FILE",
        help=f"{TOKENIZER_FILES}, or the words gpt2 or bytes "
        "(default: that of MODEL, else tokenizer.bin beside it or here)",
    )
    add_machine(parser)
    parser.add_argument(
        "--download",
        action="store_true",
        help="fetch MODEL, as org/model, from Hugging Face",
    )
    parser.add_argument(
        "--mmap", action="store_true", help="map the weights into memory instead of reading them"
    )
    parser.add_argument(
        "--unpack",
        action="store_true",
        help="expand quantised weights of GGUF to float32",
    )
    parser.add_argument(
        "--context",
        type=numbers.positive,
        metavar="N",
        help="context in tokens (default: all that memory can hold)",
    )


def add_sampling(parser: Any) -> None:
    parser.add_argument(
        "--temperature",
        type=numbers.temperature,
        default=1.0,
        metavar="T",
        help="sampling temperature (0: greedy)",
    )
    parser.add_argument(
        "--top-p",
        type=numbers.top_p,
        default=0.9,
        metavar="P",
        help="sample from the most probable tokens that add up to probability P (1: from all)",
    )
    parser.add_argument(
        "--seed",
        type=numbers.seed,
        metavar="N",
        help="random seed, 0 to 2^64 - 1 (default: a new one)",
    )


def add_chat_template(parser: Any) -> None:
    parser.add_argument(
        "--chat-template",
        metavar="FILE|NAME",
        help="Jinja file, or llama2, llama3, chatml, zephyr or plain (default: the model's)",
    )


def _a_text(text: str) -> str:
    """The argument of a flag that needs a text of at least one byte."""
    if not text:
        raise argparse.ArgumentTypeError("'': expected a text that is not empty")
    return text


def add_stop(parser: Any) -> None:
    parser.add_argument(
        "--stop",
        type=_a_text,
        action="append",
        default=[],
        metavar="TEXT",
        help="also end before TEXT (may be repeated)",
    )


def add_texts(parser: Any, nargs: str = "+") -> None:
    """TEXT ... and --separator."""
    parser.add_argument("texts", nargs=nargs, metavar="TEXT", help="text file (-: standard input)")
    parser.add_argument(
        "--separator",
        metavar="LINE",
        help="what separates documents: lines LINE, or the words blank-line or none "
        "(default: <|endoftext|> if it is a line of the text, else blank-line)",
    )
    parser.add_argument(
        "--one-document",
        dest="separator",
        action="store_const",
        const="none",
        help="do not cut texts at blank lines: the same as --separator none",
    )


def add_group_size(parser: Any) -> None:
    parser.add_argument(
        "--group-size",
        type=numbers.positive,
        default=64,
        metavar="N",
        help="int8 values per scale; halved until it divides dim and hidden_dim",
    )
    parser.add_argument(
        "--like-original",
        action="store_true",
        help="halve the group size until it divides dim only, as llama2.c does; "
        "the last inputs of w2 may then be lost",
    )
