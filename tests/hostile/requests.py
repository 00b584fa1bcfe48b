"""Rows 53 and 58 to 63: prompts and flags that are refused although the files are valid."""

from __future__ import annotations

from pyllm2.backends import NAMES
from pyllm2.cli.parser import command_names
from tests.hostile.case import CHAT, GENERATE, RUN, Case, of_flags
from tests.support.llama2_files import SHAPE

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
    *(bad(61, "--threads", n, "a whole number from 1 to 1024") for n in ("0", "1025", "9" * 29)),
    *(bad(62, "--seed", value, "a whole number") for value in ("abc", "1.0", "١")),
    *(
        bad(62, "--seed", value, "a whole number from 0 to 2^64 - 1")
        for value in ("-1", str(2**64), "9" * 29)
    ),
]

COMMANDS = ", ".join(map(repr, command_names()))
REPRS = ", ".join(map(repr, NAMES))
MEANT = "; did you mean --temperature?"
ALL, S = "(see pyllm2 --help)", SHAPE["seq_len"]
NO_SERVE = f"COMMAND: invalid choice: 'serve' (choose from {COMMANDS}) {ALL}"
NO_CUDA = f"--backend: invalid choice: 'cuda' (choose from {REPRS}) {HELP}"
NO_RUN_CUDA = f"backend 'cuda' does not exist: choose from {', '.join(NAMES)}"
NO_MODEL = "the following arguments are required: MODEL (see pyllm2 chat --help)"
ONE_PROMPT = f"--prompt-file: not allowed with argument --prompt {HELP}"
CONTROL = "a\nb\x1b[2J"
SHORT = "prompt is 6 tokens, context is 5"

OTHERS = [
    of_flags(63, "backend", NO_CUDA, "--backend", "cuda"),
    of_flags(63, "flag", f"unrecognized arguments: --tempo 1 {HELP}", "--tempo", "1"),
    of_flags(63, "abbreviation", f"unrecognized arguments: --temp 1{MEANT} {HELP}", "--temp", "1"),
    of_flags(63, "flag-without-value", f"--seed: expected one argument {HELP}", "--seed"),
    of_flags(63, "two-lines", f"unrecognized arguments: a\\nb\\x1b[2J {HELP}", CONTROL),
    of_flags(63, "two-prompts", ONE_PROMPT, *"--prompt a --prompt-file b".split()),
    Case(63, "command", NO_SERVE, argv=("serve",), code=2),
    Case(63, "no-model", NO_MODEL, argv=("chat",), code=2),
    Case(63, "run-backend", NO_RUN_CUDA, argv=(*RUN, "--backend", "cuda")),
    *(
        Case(53, name, f"prompt is 102 tokens, context is {S}", argv=(*argv, "--prompt", text))
        for name, argv, text in (("long-prompt", GENERATE, "b" * 100), ("chat", CHAT, "b" * 85))
    ),
    of_flags(53, "shorter-context", SHORT, *"--context 5 --prompt bbbb".split(), code=1),
]
REQUESTS = [*NUMBERS, *OTHERS]
