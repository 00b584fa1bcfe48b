"""`pyllm2 spec`: the specification of every op as a page."""

from __future__ import annotations

import argparse
import shutil
from typing import Any

from pyllm2.cli.output import Output, say
from pyllm2.cli.outputs import add_force, check_folder, output
from pyllm2.errors import UsageError

SUMMARY = "show an op: formula, NumPy, Numba and C side by side, laws, bound"
EXAMPLE = """\
examples:
  pyllm2 spec                        list of ops
  pyllm2 spec rmsnorm                one op; side by side from 165 columns on
  pyllm2 spec --html site --measure  a page per op: open site/index.html"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLE
    parser.add_argument("op", nargs="?", metavar="OP", help="name of an op (default: list all)")
    parser.add_argument(
        "--model",
        choices=("llama2", "gpt2", "adamw"),
        metavar="NAME",
        help="whose op: llama2, gpt2 or adamw (default: all that have it)",
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="also measure the error of every backend on drawn inputs, as a share of the bound",
    )
    parser.add_argument(
        "--html", type=output, metavar="DIR", help="write a page per op into the new folder DIR"
    )
    add_force(parser)


def main(options: argparse.Namespace) -> int:
    from pyllm2.observe import spec, spec_site, spec_text

    if options.html is not None:
        if options.op is not None or options.model is not None:
            raise UsageError("--html writes the pages of all ops: leave out OP and --model")
        check_folder(options.html, force=options.force)
        shares = {}
        if options.measure:
            every = [(model, op) for model in spec.PACKAGES for op in spec.ops_of(model)]
            shares = {(model, op): _measured(model, op) for model, op in every}
        count = spec_site.write_site(options.html, shares, options.force)
        say(f"{count} files: open {options.html}/index.html")
        return 0
    width = shutil.get_terminal_size((100, 24)).columns
    if options.op is None:
        if options.measure or options.model:
            raise UsageError("name an op (see pyllm2 spec)")
        text = spec_site.overview(width)
    else:
        text = "\n\n\n".join(
            spec_text.page_text(
                page, width, _measured(page.model, page.op) if options.measure else None
            )
            for page in spec.pages(options.op, options.model)
        )
    Output().write(f"{text}\n".encode())
    return 0


def _measured(model: str, op: str) -> Any:
    from pyllm2 import backends
    from pyllm2.observe.spec_measured import measured_shares

    able = [name for name in backends.NAMES if backends.why_not(name) is None]
    return measured_shares(model, op, able)
