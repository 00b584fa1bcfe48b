"""The parser of the command line, put together from the modules of the commands.

Each of them has SUMMARY (its line in `pyllm2 --help`), `add_flags(parser)`, and `main(options)`,
which returns the exit code. At import they load nothing heavy, not even NumPy: `--help` is quick,
and the number of threads can be set before NumPy's BLAS reads it.
"""

from __future__ import annotations

import argparse

from pyllm2 import __version__
from pyllm2.cli import (
    bench,
    chat,
    completion,
    conform,
    data,
    diff,
    doctor,
    eval,
    export,
    generate,
    gradcheck,
    lens,
    quantize,
    run,
    spec,
    step,
    tokenize,
    tokenizer,
    trace,
    train,
    vectors,
    warmup,
)
from pyllm2.cli.examples import add_examples
from pyllm2.cli.flags import Parser, sentence
from pyllm2.errors import UsageError

COMMANDS = {
    "generate": generate,
    "chat": chat,
    "tokenize": tokenize,
    "tokenizer": tokenizer,
    "doctor": doctor,
    "export": export,
    "quantize": quantize,
    "train": train,
    "data": data,
    "eval": eval,
    "warmup": warmup,
    "step": step,
    "lens": lens,
    "trace": trace,
    "diff": diff,
    "spec": spec,
    "gradcheck": gradcheck,
    "bench": bench,
    "conform": conform,
    "vectors": vectors,
    "completion": completion,
}
EXIT_CODES = """\
exit codes: 0 done; 1 refused, failed, or a check not passed; 2 wrong usage;
  3 not supported (doctor); 70 a bug in pyllm2; 129, 130, 143 ended by SIGHUP,
  Ctrl-C, SIGTERM; 141 the reader of a pipe has left"""


def command_names() -> list[str]:
    """All commands, in the order of the help."""
    return ["run", *COMMANDS]


def parser_of() -> Parser:
    """The parser of every command except `run`, which parses its own arguments."""
    parser = Parser(
        prog="pyllm2",
        description="Llama-2 and GPT-2: a readable NumPy specification, "
        "and faster backends that are tested to agree with it.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"pyllm2 {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    commands.add_parser("run", help=run.SUMMARY)
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name, help=module.SUMMARY, description=sentence(module.SUMMARY)
        )
        module.add_flags(command)
        command.set_defaults(main=module.main)
    add_examples(parser, "")
    return parser


def parse(parser: Parser, argv: list[str]) -> argparse.Namespace:
    """The options of a command line, itself (`argv`), and the program behind `--` (`program`).

    Raises UsageError.
    """
    own, program = _split(argv)
    options = parser.parse_args(own, argparse.Namespace(argv=argv))
    options.program = program or getattr(options, "program", [])
    return options


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """The words of `diff`, and the program behind `--` with its arguments."""
    if argv[:1] == ["diff"] and "--" in argv:
        at = argv.index("--")
        if at + 1 == len(argv):
            raise UsageError("PROGRAM: expected a program after --")
        return argv[:at], argv[at + 1 :]
    return argv, []
