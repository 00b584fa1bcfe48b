"""`pyllm2 quantize`: a checkpoint in int8, and what that cost."""

from __future__ import annotations

import argparse

from pyllm2.cli.common import read_bytes
from pyllm2.cli.export import convert
from pyllm2.cli.output import Output
from pyllm2.errors import UsageError
from pyllm2.export import compare_on_text, tensor_errors
from pyllm2.loading import load_llama2


def main(options: argparse.Namespace) -> int:
    if options.text and not options.tokenizer:
        raise UsageError("quantize: --text needs --tokenizer")
    output = Output()
    group_size = convert(options, "v2")
    if options.report:
        output.write(b"tensor           largest error   rms error   at layer, group\n")
        for row in tensor_errors(options.source, group_size):
            where = f"{row.worst_layer}, {row.worst_group}"
            line = f"{row.name:<16} {row.largest:>13.3g} {row.rms:>11.3g}   {where}\n"
            output.write(line.encode())
    if options.text:
        output.write(_on_text(options).encode())
    return 0


def _on_text(options: argparse.Namespace) -> str:
    model, quantised = (
        load_llama2(path, options.tokenizer, backend="numpy")
        for path in (options.source, options.target)
    )
    ids = model.tokenizer.encode(read_bytes(options.text))[: model.config.seq_len]
    if len(ids) < 2:
        raise UsageError(f"{options.text}: a text of at least two tokens is needed")
    found = compare_on_text(model, quantised, ids)
    change = "none" if found.first_change is None else f"at token {found.first_change}"
    return (
        f"on {found.tokens} tokens: perplexity {found.perplexity:.4f}, int8 "
        f"{found.perplexity_q8:.4f}; divergence {found.divergence:.3g} nats; "
        f"same best token {100 * found.same_best:.1f} %, first change {change}\n"
    )
