"""`pyllm2 diff`: compare backends op by op, run by run, token by token."""

from __future__ import annotations

import argparse

from pyllm2.cli import flags
from pyllm2.cli.output import Output
from pyllm2.cli.trace import add_model_and_prompt, open_with_prompt

SUMMARY = "show where backends differ by more than rounding, op by op"
EXAMPLE = """\
example:
  pyllm2 diff --backends numpy,numba,c --prompt 'One day' --backward"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLE
    add_model_and_prompt(parser)
    parser.add_argument(
        "--backends",
        metavar="A,B",
        help="backends to compare with the specification (default: all that can run here)",
    )
    flags.add_threads(parser)
    parser.add_argument(
        "--backward",
        action="store_true",
        help="compare a training step of the prompt: losses and gradients",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def main(options: argparse.Namespace) -> int:
    """Exit code 0: everything is inside its bound; 1: something is outside."""
    import json

    from pyllm2 import backends
    from pyllm2.observe.diff import diff
    from pyllm2.observe.judge import require_bounds

    require_bounds()
    able = [name for name in backends.NAMES if backends.why_not(name) is None]
    names = options.backends.split(",") if options.backends else able
    for name in names:
        backends.require(name)
    model, prompt = open_with_prompt(options, backend="numpy")
    report = diff(model, names, prompt, options.backward)
    text = json.dumps(report.as_json()) if options.json else str(report)
    Output().write(f"{text}\n".encode())
    return 0 if report.passed else 1
