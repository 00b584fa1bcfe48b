"""`pyllm2 quantize`: write a checkpoint in int8, and measure the error."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

from pyllm2.cli import flags
from pyllm2.cli.export import convert
from pyllm2.cli.inputs import read_bytes
from pyllm2.cli.output import Output
from pyllm2.cli.outputs import add_force, output
from pyllm2.errors import UsageError

SUMMARY = "write a checkpoint in int8 with one scale per group"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IN", help="a Llama: file or folder of any kind")
    parser.add_argument(
        "target", type=output, metavar="OUT", help="int8 checkpoint to write (version 2)"
    )
    flags.add_group_size(parser)
    parser.add_argument(
        "--report", action="store_true", help="print the largest and rms error of every tensor"
    )
    parser.add_argument(
        "--text",
        metavar="FILE",
        help="print perplexity before and after on the text in FILE",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="FILE",
        help=f"tokenizer for --text: {flags.TOKENIZER_FILES} (default: that of IN)",
    )
    add_force(parser)


def main(options: argparse.Namespace) -> int:
    if options.text and os.path.exists(options.target) and not os.path.isfile(options.target):
        raise UsageError(f"quantize: --text reads OUT again: {options.target} is no regular file")
    from pyllm2.inference.compare import tensor_errors

    output = Output()
    on_text = _on_text(options) if options.text else None  # refuses a text before OUT is written
    group_size = convert(options, "v2")
    if options.report:
        output.write(b"tensor           largest error   rms error   at layer, group\n")
        for row in tensor_errors(options.source, group_size):
            where = f"{row.worst_layer}, {row.worst_group}"
            line = f"{row.name:<16} {row.largest:>13.3g} {row.rms:>11.3g}   {where}\n"
            output.write(line.encode())
    if on_text is not None:
        output.write(on_text().encode())
    return 0


def _on_text(options: argparse.Namespace) -> Callable[[], str]:
    """One line that compares the two checkpoints on a text, as a function to call once OUT exists.

    Raises UsageError for a text that is too short, and what opening model and tokenizer raises.
    """
    from functools import partial

    from pyllm2.cli.loading import find_tokenizer
    from pyllm2.inference.compare import compare_on_text
    from pyllm2.inference.load import load_llama2

    tokenizer = options.tokenizer or partial(find_tokenizer, options.source)
    model = load_llama2(options.source, tokenizer, backend="numpy")
    ids = model.tokenizer.encode_prompt(read_bytes(options.text))[: model.config.seq_len]
    if len(ids) < 2:
        raise UsageError(f"{options.text}: a text of at least two tokens is needed")

    def line() -> str:
        quantised = load_llama2(options.target, backend="numpy")
        found = compare_on_text(model, quantised, ids)
        change = "none" if found.first_change is None else f"at token {found.first_change}"
        return (
            f"on {found.tokens} tokens: perplexity {found.perplexity:.4f}, int8 "
            f"{found.perplexity_q8:.4f}; divergence {found.divergence:.3g} nats; "
            f"same best token {100 * found.same_best:.1f} %, first change {change}\n"
        )

    return line
