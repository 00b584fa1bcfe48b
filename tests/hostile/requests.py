"""Rows 53 and 58 to 63: prompts and flags that are refused with good files."""

from __future__ import annotations

from pyllm2.backends import NAMES
from pyllm2.cli.arguments import command_names

from ..cli.tiny import SHAPE
from .case import CHAT, GENERATE, RUN, Case, of_flags

HELP = "(see pyllm2 generate --help)"


def bad(row: int, flag: str, value: str, expected: str) -> Case:
    """A flag whose value is refused."""
    error = f"{flag}: {value!r}: expected {expected} {HELP}"
    return of_flags(row, f"{flag.lstrip('-')}={value}", error, f"{flag}={value}")


NUMBERS = [
    *(bad(58, "--temperature", value, "a number ≥ 0") for value in ("nan", "-1", "inf", "abc", "")),
    *(bad(59, "--top-p", value, "0 < p ≤ 1") for value in ("nan", "1.5", "0", "-0.1", "x")),
    *(bad(61, "--max-new-tokens", value, "a whole number") for value in ("1e3", "7.9", "")),
    bad(61, "--max-new-tokens", "-5", "a whole number ≥ 0"),
    bad(61, "--context", "0", "a whole number ≥ 1"),
    bad(61, "--threads", "0", "a whole number ≥ 1"),
    *(bad(62, "--seed", value, "a whole number") for value in ("abc", "1.0", "١")),
    *(
        bad(62, "--seed", value, "a whole number from 0 to 2^64 - 1")
        for value in ("-1", str(2**64), "9" * 29)
    ),
]
COMMANDS = ", ".join(map(repr, command_names()))
REPRS = ", ".join(map(repr, NAMES))
OTHERS = [
    of_flags(63, "backend", f"--backend: invalid choice: 'cuda' (choose from {REPRS}) {HELP}",
             "--backend", "cuda"),
    of_flags(63, "flag", "unrecognized arguments: --tempo 1 (see pyllm2 --help)", "--tempo", "1"),
    of_flags(63, "abbreviation", "unrecognized arguments: --temp 1 (see pyllm2 --help)",
             "--temp", "1"),
    of_flags(63, "flag-without-value", f"--seed: expected one argument {HELP}", "--seed"),
    of_flags(63, "two-lines", "unrecognized arguments: a\\nb\\x1b[2J (see pyllm2 --help)",
             "a\nb\x1b[2J"),
    of_flags(63, "two-prompts", f"--prompt-file: not allowed with argument --prompt {HELP}",
             "--prompt", "a", "--prompt-file", "b"),
    Case(63, "command",
         f"COMMAND: invalid choice: 'serve' (choose from {COMMANDS}) (see pyllm2 --help)",
         argv=("serve",), code=2),
    Case(63, "no-model", "the following arguments are required: MODEL (see pyllm2 chat --help)",
         argv=("chat",), code=2),
    Case(63, "run-backend", f"backend 'cuda' does not exist: choose from {', '.join(NAMES)}",
         argv=(*RUN, "--backend", "cuda")),
    Case(53, "long-prompt", f"prompt is 102 tokens, context is {SHAPE['seq_len']}",
         argv=(*GENERATE, "--prompt", "b" * 100)),
    of_flags(53, "shorter-context", "prompt is 6 tokens, context is 5", "--context", "5",
             "--prompt", "bbbb", code=1),
    Case(53, "chat", f"prompt is 102 tokens, context is {SHAPE['seq_len']}",
         argv=(*CHAT, "--prompt", "b" * 85)),
]  # fmt: skip
REQUESTS = [*NUMBERS, *OTHERS]
