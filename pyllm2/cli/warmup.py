"""`pyllm2 warmup`: compile every backend into its cache."""

from __future__ import annotations

import argparse

from pyllm2 import backends
from pyllm2.cli import flags
from pyllm2.cli.output import Output

SUMMARY = "compile all backends now, so that no later command has to"
FAMILIES = ("llama2", "gpt2")
WORKS = ("inference", "training")
EXAMPLE = """\
example:
  pyllm2 warmup --only numba,c,llama2"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLE
    parser.add_argument(
        "--only",
        type=flags.names_of((*backends.NAMES, *FAMILIES, *WORKS)),
        metavar="A,B",
        help="compile only for these backends, families and kinds of work; words: "
        f"{', '.join(backends.NAMES)}; {', '.join(FAMILIES)}; {', '.join(WORKS)} "
        "(default: everything that can run here)",
    )
    flags.add_threads(parser)


def chosen(only: list[str] | None, words: tuple[str, ...]) -> list[str]:
    """Those of `words` that --only names, or all of them if it names none."""
    return [word for word in words if word in (only or [])] or list(words)


def main(options: argparse.Namespace) -> int:
    """Print one line per job, with its time; on a terminal also a progress bar."""
    from pyllm2.cli.warmup_jobs import Progress, jobs_of

    output = Output()
    ready = []
    for name in chosen(options.only, backends.NAMES):
        if name in (options.only or []):
            backends.require(name)
        reason = backends.why_not(name)
        if reason is None and name == "numpy":
            reason = "has nothing to compile"
        if reason is None:
            ready.append(name)
        else:
            output.write(f"{name}: {reason}\n".encode())
    families, works = chosen(options.only, FAMILIES), chosen(options.only, WORKS)
    with jobs_of(ready, families, works, options.threads) as jobs:
        progress = Progress(len(jobs), output)
        for job in jobs:
            progress.run(job)
        progress.close()
    return 0
