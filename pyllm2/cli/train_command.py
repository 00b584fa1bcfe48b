"""The command of a run, kept in its folder: `--resume` needs no other flag than `--out`."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from typing import Any

from pyllm2.cli.flags import Parser
from pyllm2.cli.train_flags import add_gpt2_flags, add_llama2_flags
from pyllm2.errors import FileError, FormatError, UsageError
from pyllm2.formats.writer import atomic_write
from pyllm2.training.folder import checkpoints

RUN_FILE = "run.json"
PATTERNS = ("train", "val")  # flags that name files
PATHS = ("tokenizer", "init", "plot")  # and those that may
REQUIRED = ("init", "train", "val")  # of a new run
NOT_KEPT = ("out", "resume", "extend", "other_engine", "force", "no_mpi", "json")
_ADD = {"gpt2": add_gpt2_flags, "llama2": add_llama2_flags}


def parser_of(family: str) -> Parser:
    """The parser of `pyllm2 train gpt2` or `pyllm2 train llama2`."""
    parser = Parser(prog=f"pyllm2 train {family}")
    _ADD[family](parser)
    return parser


def recalled(options: argparse.Namespace) -> argparse.Namespace:
    """The flags of a run; of one that is resumed those that it began with, before those given.

    Raises UsageError for flags that are missing, FormatError for a damaged file, FileError for a
    folder without a run.
    """
    check_resumed(options)
    if options.resume and os.path.exists(os.path.join(options.out, RUN_FILE)):
        family, arguments = recall(options.out)
        if family != options.family:
            raise UsageError(
                f"{options.out} is a run of {family}: {resume_command(family, options.out)}"
            )
        kept = parser_of(family).parse_args([*arguments, *options.argv[2:]])
        kept.resume = True  # also with --extend
        return argparse.Namespace(**{**vars(options), **vars(kept)})
    missing = [f"--{name}" for name in REQUIRED if getattr(options, name) is None]
    if missing and options.resume:
        lacks = "its flags: give all again" if _has_checkpoint(options.out) else "a run to resume"
        raise FileError(options.out, f"does not hold {lacks}")
    if missing:
        prog = f"pyllm2 train {options.family}"
        raise UsageError(
            f"the following arguments are required: {', '.join(missing)} (see {prog} --help)"
        )
    return options


def check_resumed(options: argparse.Namespace) -> None:
    """Check the flags that go on with a run or begin a new one; --extend implies --resume.

    Raises UsageError for flags that exclude each other, FileError if there is no checkpoint.
    """
    going_on = "--extend" if options.extend else "--resume" if options.resume else None
    if options.force and going_on:
        hint = "; --other-engine takes another backend or number of threads"
        raise UsageError(f"--force begins a new run, {going_on} goes on with the old one{hint}")
    if options.other_engine and not going_on:
        raise UsageError("--other-engine: only with --resume")
    if not options.extend:
        return
    if getattr(options, "steps", None) is not None:
        raise UsageError("--extend and --steps: expected one of them")
    if not _has_checkpoint(options.out):
        raise FileError(options.out, "has no checkpoint to go on from")
    options.resume = True


def extended(folder: str, updates: int, planned: int) -> int:
    """The number of steps of a run whose end is put so many updates further.

    planned: its number of steps; with a constant rate a checkpoint may be beyond it
    """
    newest = max((step for step, _ in checkpoints(folder)), default=0)
    return max(planned, newest) + updates


def remember(options: argparse.Namespace) -> None:
    """Write the flags of a run to its folder. Paths are absolute, so that any folder will do."""
    found = {"family": options.family, "folder": os.path.abspath(options.out)}
    text = json.dumps({**found, "arguments": _arguments(options)}, indent=1)
    with atomic_write(os.path.join(options.out, RUN_FILE)) as file:
        file.write(text.encode() + b"\n")


def recall(folder: str) -> tuple[str, list[str]]:
    """(family, arguments) of the run in a folder, which may have been moved since it began.

    Raises FormatError for a file that `remember` did not write.
    """
    path = os.path.join(folder, RUN_FILE)
    from pyllm2.cli.inputs import read_bytes

    try:
        found = json.loads(read_bytes(path))
        family, before, arguments = (found[name] for name in ("family", "folder", "arguments"))
    except (ValueError, TypeError, KeyError, RecursionError):
        raise FormatError(path, "is no record of a run: give all flags again") from None
    words = [before, *arguments] if isinstance(arguments, list) else [None]
    if family not in _ADD or not all(isinstance(word, str) for word in words):
        raise FormatError(path, "is no record of a run: give all flags again")
    now = os.path.abspath(folder)
    return family, [
        now + word.removeprefix(before) if word.startswith(before + os.sep) else word
        for word in arguments
    ] + ["--out", folder]


def resume_command(family: str, out: str, how: str = "--resume") -> str:
    """What to type to go on with a run."""
    return f"pyllm2 train {family} {shlex.join(words('--out', out))} {how}"


def words(flag: str, value: str) -> tuple[str, ...]:
    """A flag with its value, as one argument if the value would be taken for a flag."""
    return (f"{flag}={value}",) if value.startswith("-") else (flag, value)


def _has_checkpoint(folder: str) -> bool:
    from pyllm2.training.folder import checkpoints

    return os.path.isdir(folder) and bool(checkpoints(folder))


def _arguments(options: argparse.Namespace) -> list[str]:
    """The flags as words of a command line, all but NOT_KEPT."""
    found: list[str] = []
    for action in parser_of(options.family)._actions:
        name = action.dest
        value: Any = getattr(options, name, None)
        if not action.option_strings or name in ("help", *NOT_KEPT) or value is None:
            continue
        values = value if isinstance(value, list) else [value]
        is_path = name in PATTERNS or (name in PATHS and os.path.exists(str(value)))
        texts = [os.path.abspath(text) if is_path else str(text) for text in values]
        flag = action.option_strings[-1]
        found += [flag, *texts] if len(texts) > 1 else words(flag, texts[0])
    return found
