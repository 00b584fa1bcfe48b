"""`pyllm2 export`: write a checkpoint in another format of llama2.c."""

from __future__ import annotations

import argparse
import os
import warnings

from pyllm2.cli import flags
from pyllm2.cli.output import say
from pyllm2.cli.outputs import check_output
from pyllm2.errors import PyLLM2Warning

SUMMARY = "convert a checkpoint to another format of llama2.c"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IN", help="checkpoint of llama2.c, any version")
    parser.add_argument("target", metavar="OUT", help="file to write")
    parser.add_argument(
        "--format",
        choices=("v0", "v1", "v2"),
        required=True,
        help="version of the format: v0 (float32, the original layout), v1 (float32), v2 (int8)",
    )
    flags.add_group_size(parser)


def main(options: argparse.Namespace) -> int:
    convert(options, options.format)
    return 0


def convert(options: argparse.Namespace, to: str) -> int:
    """Write the file, print what it is; returns the group size, 0 for float32."""
    from pyllm2.llama2.checkpoint import export

    check_output(options.target, options.source)
    size, notes = export(
        options.source, options.target, to, options.group_size, options.like_original
    )
    for note in notes:
        warnings.warn(note, PyLLM2Warning, stacklevel=1)
    groups = f", groups of {size}" if size else ""
    if size and size != options.group_size:
        groups += f" ({options.group_size} does not divide the widths)"
    nbytes = f", {os.path.getsize(options.target)} bytes" if os.path.isfile(options.target) else ""
    say(f"{options.target}: {to}{groups}{nbytes}")
    return size
