"""`pyllm2 export`: a checkpoint in another layout."""

from __future__ import annotations

import argparse
import os
import warnings

from pyllm2.cli.common import say
from pyllm2.errors import PyLLM2Warning, UsageError
from pyllm2.export import export


def main(options: argparse.Namespace) -> int:
    convert(options, options.format)
    return 0


def convert(options: argparse.Namespace, to: str) -> int:
    """Write the file and say what it is; the group size, 0 for float32."""
    both_exist = os.path.exists(options.source) and os.path.exists(options.target)
    if both_exist and os.path.samefile(options.source, options.target):
        raise UsageError(f"{options.target}: the output would overwrite the input")
    size, notes = export(
        options.source, options.target, to, options.group_size, options.like_original
    )
    for note in notes:
        warnings.warn(note, PyLLM2Warning, stacklevel=1)
    groups = f", groups of {size}" if size else ""
    if size and size != options.group_size:
        groups += f" ({options.group_size} does not divide the widths)"
    say(f"{options.target}: {to}{groups}, {os.path.getsize(options.target)} bytes")
    return size
