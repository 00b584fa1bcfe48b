"""`pyllm2 lens`: the model read layer by layer."""

from __future__ import annotations

import argparse
import os
import shutil
import sys

from pyllm2.cli import flags, numbers
from pyllm2.cli.output import Output, is_terminal, say
from pyllm2.cli.outputs import add_force, check_outputs, output
from pyllm2.cli.trace import add_model_and_prompt, amount, open_with_prompt
from pyllm2.errors import UsageError

SUMMARY = "show the next token after each layer, attention maps, norms"
EXAMPLE = """\
examples:
  pyllm2 lens --prompt 'One day' --new-tokens 8
  pyllm2 lens --layer 2                 and the attention maps of layer 2
  pyllm2 lens --html lens.html          one file, to be opened in a browser"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLE
    add_model_and_prompt(parser)
    flags.add_machine(parser)
    parser.add_argument(
        "--new-tokens",
        type=numbers.count,
        default=0,
        metavar="N",
        help="also look at the N most probable tokens that continue the prompt",
    )
    parser.add_argument(
        "--layer", type=numbers.count, metavar="N", help="show the attention maps of layer N"
    )
    parser.add_argument("--html", type=output, metavar="FILE", help="write one self-contained page")
    parser.add_argument(
        "--png",
        type=output,
        metavar="FILE",
        help="write a picture (.png, .svg, .pdf); needs matplotlib",
    )
    add_force(parser)


def main(options: argparse.Namespace) -> int:
    from pyllm2.formats.writer import atomic_write
    from pyllm2.observe.lens import lens
    from pyllm2.observe.lens_text import lens_text
    from pyllm2.training.plot import image_format, require_plot

    check_outputs((options.html, options.png), options.model, force=options.force)
    if options.png is not None:
        require_plot()
        image_format(options.png)
    model, prompt = open_with_prompt(options)
    layers = getattr(model.config, "n_layers", None) or model.config.num_layers
    if options.layer is not None and options.layer >= layers:
        raise UsageError(f"--layer: {options.layer}: the model has layers 0 to {layers - 1}")
    found = lens(model, prompt, options.new_tokens)
    if options.html is not None:
        from pyllm2.observe.lens_html import lens_page

        page = lens_page(found).encode()
        with atomic_write(options.html) as file:
            file.write(page)
        say(f"{options.html}: {len(found.tokens)} tokens, {amount(len(page))}")
    if options.png is not None:
        from pyllm2.observe.lens_png import save_lens

        save_lens(found, options.png, options.layer)
        say(f"{options.png}: {len(found.tokens)} tokens")
    if options.html is None and options.png is None:
        width = shutil.get_terminal_size((100, 24)).columns
        coloured = is_terminal(sys.stdout) and not os.environ.get("NO_COLOR")
        text = lens_text(found, width, coloured, options.layer)
        Output().write_raw(f"{text}\n".encode("utf-8", "replace"))
    return 0
