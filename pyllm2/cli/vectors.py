"""`pyllm2 vectors`: golden inputs and outputs of every op as files."""

from __future__ import annotations

import argparse

from pyllm2.cli import numbers
from pyllm2.cli.output import say
from pyllm2.cli.outputs import add_force, check_folder, output
from pyllm2.errors import BackendError

SUMMARY = "write golden inputs and outputs of every op, with the bound of every element"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=output, required=True, metavar="DIR", help="new folder for the files"
    )
    parser.add_argument(
        "--format",
        choices=("npz", "safetensors", "json"),
        default="npz",
        metavar="F",
        help="npz, safetensors or json",
    )
    parser.add_argument(
        "--examples", type=numbers.positive, default=8, metavar="N", help="inputs per op, at most"
    )
    parser.add_argument(
        "--seed", type=numbers.seed, default=0, metavar="N", help="random seed of the inputs"
    )
    add_force(parser)


def main(options: argparse.Namespace) -> int:
    """Write the folder."""
    try:
        import hypothesis  # noqa: F401  (the tables of ops draw their inputs with it)
    except ImportError:
        raise BackendError("vectors needs hypothesis: pip install 'pyllm2[testing]'") from None
    from pyllm2.conform.vectors import write_vectors

    check_folder(options.out, force=options.force)
    count = write_vectors(
        options.out, options.format, options.examples, options.seed, replace=options.force
    )
    say(f"wrote {count} ops to {options.out}")
    return 0
