"""`pyllm2 conform`: drive another program and find where it differs from llama2.c's run."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

from pyllm2.cli import numbers
from pyllm2.cli.output import Output, is_terminal, say
from pyllm2.cli.outputs import add_force, check_output, output
from pyllm2.errors import UsageError

SUMMARY = "test another program, such as a port of llama2.c, and shrink what differs"
EPILOG = """\
examples:
  pyllm2 conform ./run --only attention
  pyllm2 conform --list
exit code: 0 all pass, 1 something differs, 2 it cannot be driven"""
EXIT_DIFFERS, EXIT_NOT_DRIVABLE = 1, 2


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "program",
        nargs="*",
        metavar="PROGRAM",
        help="the program; words with a dash after --, such as -- java -jar port.jar",
    )
    parser.add_argument(
        "--args",
        metavar="TEMPLATE",
        help="its arguments, with {model} {tokenizer} {temperature} {topp} {seed} {steps} "
        "{prompt} {system}; [...] is dropped without its value (default: as run.c)",
    )
    parser.add_argument(
        "--trainer",
        action="store_true",
        help="the program trains as llm.c's train_gpt2 does, without arguments: compare its losses",
    )
    parser.add_argument(
        "--chat", action="store_true", help="test its chat instead: run.c's -m chat, lines on stdin"
    )
    parser.add_argument("--list", action="store_true", help="print the properties and exit")
    parser.add_argument("--replay", metavar="DIR", help="run one finding again")
    parser.add_argument("--against", metavar="PROG", help="compare with this program instead")
    parser.add_argument("--only", action="append", metavar="NAME", help="this property only")
    parser.add_argument("--skip", action="append", metavar="NAME", help="not this property")
    parser.add_argument(
        "--budget", type=numbers.above_0, default=60, metavar="S", help="seconds for all runs"
    )
    parser.add_argument(
        "--timeout", type=numbers.above_0, default=10, metavar="S", help="seconds for one run"
    )
    parser.add_argument(
        "--memory", type=numbers.positive, default=2048, metavar="MIB", help="MiB for one run"
    )
    parser.add_argument(
        "--out",
        type=output,
        default="conform.d",
        metavar="DIR",
        help="gets a new folder per finding",
    )
    parser.add_argument("--json", type=output, metavar="FILE", help="write the report as JSON too")
    add_force(parser)
    reading = parser.add_argument_group("how the program differs")
    reading.add_argument(
        "--cwd-tokenizer", metavar="PATH", help="where it looks for its vocabulary, if unnamed"
    )
    reading.add_argument(
        "--tokenizer-format",
        choices=("new", "old"),
        default="new",
        metavar="F",
        help="new, or old: pieces without scores, as of July 2023",
    )
    reading.add_argument("--begin", metavar="REGEX", help="what precedes the text on stdout")
    reading.add_argument("--end", metavar="REGEX", help="what follows it")
    reading.add_argument("--env", action="append", metavar="K=V", help="environment variable")
    reading.add_argument(
        "--vocab-size", type=numbers.positive, metavar="N", help="the only size it takes"
    )
    reading.add_argument(
        "--no-invalid-utf8", action="store_true", help="prompts are valid UTF-8 only"
    )
    reading.add_argument(
        "--like", type=_date, metavar="DATE", help="expect run.c of this day, such as 2023-08-02"
    )
    parser.epilog = EPILOG


def _check_regex(flag: str, text: str | None) -> None:
    try:
        re.compile((text or "").encode())
    except re.error as error:
        raise UsageError(f"{flag}: {text!r}: {error}") from None


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected YYYY-MM-DD") from None


def main(options: argparse.Namespace) -> int:
    """Print the report; exit codes as in the epilog."""
    from pyllm2.conform import report

    output = Output()
    if options.list and options.trainer:
        from pyllm2.conform import trainer

        lines = [f"{case.name:<16} {case.cause}" for case in trainer.CASES]
        output.write("\n".join(lines).encode() + b"\n")
        return 0
    if options.list:
        output.write(report.listing().encode() + b"\n")
        return 0
    if options.replay:
        return _replay(options, output)
    if not options.program:
        raise UsageError("PROGRAM: expected a program to test (see pyllm2 conform --help)")
    if options.json:
        check_output(options.json, force=options.force)
    if options.trainer:
        return _trainer(options, output)
    session = _session(options)
    began = time.monotonic()
    outcome = session.smoke()
    if outcome is not None:
        _explain(session, outcome, output)
        return EXIT_NOT_DRIVABLE
    progress = _Progress(session)
    try:
        for result in session.check_all():
            progress.clear()
            output.write(report.line(result).encode() + b"\n")
    finally:
        progress.close()
    seconds = time.monotonic() - began
    for result in report.failures(session):
        output.write(b"\n" + report.details(result).encode() + b"\n")
    output.write(b"\n" + report.summary(session, seconds).encode() + b"\n")
    if options.json:
        _write_json(options.json, report.as_json(session, seconds))
    return EXIT_DIFFERS if session.failed else 0


def _trainer(options: argparse.Namespace, output: Output) -> int:
    """One line per case; exit codes as in the epilog."""
    from pyllm2.conform import trainer
    from pyllm2.conform.adapter import program_of
    from pyllm2.conform.child import Limits

    for flag in (
        "args",
        "chat",
        "against",
        "like",
        "cwd_tokenizer",
        "begin",
        "end",
        "vocab_size",
        "env",
    ):
        if getattr(options, flag):
            raise UsageError(f"--{flag.replace('_', '-')}: not with --trainer")
    names = [case.name for case in trainer.CASES]
    for name in [*(options.only or ()), *(options.skip or ())]:
        if name not in names:
            raise UsageError(f"--only, --skip: {name!r} is none of {', '.join(names)}")
    program = program_of(options.program)
    limits = Limits(options.timeout, options.memory * 2**20)
    results: list[Any] = []
    for case in trainer.CASES:
        if case.name not in (options.only or names) or case.name in (options.skip or ()):
            continue
        result, outcome = trainer.check(program, case, limits, Path(options.out))
        if not results and not trainer.read_losses(outcome.out):
            say(f"no losses came out: {outcome.ended}")
            say(f"it finds {trainer.MODEL}, {trainer.TOKENIZER} and {trainer.DATA}*.bin")
            output.write(outcome.out[:1000] + outcome.err[-1000:])
            return EXIT_NOT_DRIVABLE
        results.append(result)
        lines = [f"{result.status:<8} {result.name:<14} {result.says}".rstrip()]
        if result.status != "passes":
            lines += [f"         usual cause: {result.cause}", f"         folder: {result.folder}"]
        output.write("\n".join(lines).encode() + b"\n")
    if options.json:
        _write_json(options.json, {"results": [vars(result) for result in results]})
    return EXIT_DIFFERS if any(r.status != "passes" for r in results) else 0


def _session(options: argparse.Namespace) -> Any:
    """Raises UsageError and FileError for what cannot be meant."""
    from pyllm2.conform import dialects, drawn
    from pyllm2.conform.adapter import RUN_C, RUN_C_CHAT, Adapter, parse, program_of
    from pyllm2.conform.child import Limits
    from pyllm2.conform.properties import BY_NAME
    from pyllm2.conform.session import Options, Session, reference_of

    for flag, names in (("--only", options.only), ("--skip", options.skip)):
        for name in names or ():
            if name not in BY_NAME and name not in drawn.NAMES:
                raise UsageError(f"{flag}: {name!r} is no property (see pyllm2 conform --list)")
            if options.chat != (name in BY_NAME and BY_NAME[name].chat):
                raise UsageError(f"{flag}: {name} is {'not ' * options.chat}tested by --chat")
    _check_regex("--begin", options.begin)
    _check_regex("--end", options.end)
    environment = {}
    for pair in options.env or ():
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise UsageError(f"--env: {pair!r}: expected NAME=VALUE")
        environment[key] = value
    if options.vocab_size is not None and options.vocab_size < 600:
        raise UsageError(f"--vocab-size: {options.vocab_size}: expected at least 600")
    if options.cwd_tokenizer and Path(options.cwd_tokenizer).is_absolute():
        raise UsageError(f"--cwd-tokenizer: {options.cwd_tokenizer!r}: expected a relative path")
    usual = RUN_C_CHAT if options.chat else RUN_C
    template = parse(usual if options.args is None else options.args)
    cwd_tokenizer = options.cwd_tokenizer or ""
    if "tokenizer" not in template.words and not cwd_tokenizer:
        cwd_tokenizer = "tokenizer.bin"
    adapter = Adapter(
        program_of(options.program),
        template,
        cwd_tokenizer,
        options.tokenizer_format == "new",
        options.begin or "",
        options.end or "",
        environment,
        Limits(options.timeout, options.memory * 2**20),
    )
    chosen = Options(
        budget=options.budget,
        only=tuple(options.only or ()),
        skip=tuple(options.skip or ()),
        dialect=dialects.of_date(options.like) if options.like else dialects.TODAY,
        vocab_size=options.vocab_size,
        invalid_utf8=not options.no_invalid_utf8,
        out=Path(options.out),
        chat=options.chat,
    )
    against = None
    if options.against:
        against = reference_of(program_of([options.against]), adapter, options.chat)
    return Session(adapter, chosen, against)


def _explain(session: Any, outcome: Any, output: Output) -> None:
    """A program that does not say the ids of the smallest model."""
    from pyllm2.conform import propose

    say(f"no ids of a model of one layer came out: {outcome.ended}")
    say(f"it was called as: {propose.last_command(session)}")
    for name, data in (("stdout", outcome.out), ("stderr", outcome.err)):
        output.write(f"--- {name}, {len(data)} bytes ---\n".encode())
        output.write(data[:2000], end=True)
        output.write(b"\n")
    found = None if session.options.chat else propose.propose(session)
    if found is not None:
        template, cwd = found
        extra = f" --cwd-tokenizer {cwd}" if cwd else ""
        say(f"with this it answers: --args '{template}'{extra}")
    else:
        say("describe its command line with --args, and where its text stands with --begin, --end")


def _replay(options: argparse.Namespace, output: Output) -> int:
    from pyllm2.conform import finding
    from pyllm2.conform.adapter import program_of
    from pyllm2.conform.child import Limits

    limits = Limits(options.timeout, options.memory * 2**20)
    program = program_of(options.program) if options.program else ()
    against = program_of([options.against]) if options.against else ()
    found = finding.replay(Path(options.replay), limits, program, against)
    verdict = "agrees now" if found.same else "differs still"
    lines = [f"{found.name}: {verdict} ({found.ended})"]
    lines.append(f"  expected  {' '.join(map(str, found.expected)) or 'no ids'}")
    lines.append(f"  got       {' '.join(map(str, found.found)) or 'no ids'}")
    output.write("\n".join(lines).encode() + b"\n")
    return 0 if found.same else EXIT_DIFFERS


def _write_json(path: str, report: dict[str, Any]) -> None:
    from pyllm2.formats.writer import atomic_write

    with atomic_write(path) as file:
        file.write(json.dumps(report, indent=1).encode() + b"\n")


class _Progress:
    """A bar over the properties, if stderr is a terminal and tqdm is installed."""

    def __init__(self, session: Any) -> None:
        self.bar: Any = None
        if is_terminal(sys.stderr):
            session.tell = self._tell

    def _tell(self, name: str, done: int, total: int) -> None:
        if self.bar is None:
            try:
                from tqdm import tqdm
            except ImportError:
                return
            bar_format = "{n_fmt}/{total_fmt} {bar} {elapsed} | {postfix}"
            self.bar = tqdm(total=total, dynamic_ncols=True, bar_format=bar_format, leave=False)
        self.bar.n = done
        self.bar.set_postfix_str(name)

    def clear(self) -> None:
        if self.bar is not None:
            self.bar.clear()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
