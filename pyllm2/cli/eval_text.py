"""`pyllm2 eval text`: how well a model predicts a text."""

from __future__ import annotations

import argparse
import json
import math
import time
from typing import Any

from pyllm2.cli import flags, numbers
from pyllm2.cli.output import Output, say
from pyllm2.errors import FileError, UsageError

SECONDS = 10  # between lines of progress


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="checkpoint, folder or run folder")
    flags.add_texts(parser)
    flags.add_loading(parser)
    parser.add_argument(
        "--stride",
        type=numbers.positive,
        metavar="N",
        help="tokens between the windows of a text longer than the context (default: half of it)",
    )
    parser.add_argument("--json", action="store_true", help="print one object")


def main(options: argparse.Namespace) -> int:
    from pyllm2.cli.loading import context_length, open_model
    from pyllm2.formats.text import describe, open_texts
    from pyllm2.inference.text_loss import TextLoss, text_losses

    model = open_model(options)
    S = context_length(options, model)
    if options.stride is not None and options.stride > S:
        raise UsageError(f"--stride {options.stride}: at most the context, {S}")
    with open_texts(options.texts, options.separator) as texts:
        ids, nbytes = [], 0
        for text in texts:
            nbytes += text.nbytes
            for document in text.documents():
                ids += model.tokenizer.encode_document(document)
        said = describe(texts)
        if len(ids) < 2:
            raise FileError(texts[0].name, f"{len(ids)} tokens: too short, 2 are needed")
    say(f"{nbytes:,} bytes, {len(ids):,} tokens; {said}; backend {model.backend}")
    losses = text_losses(model, ids, options.stride, S, _Progress())
    found = TextLoss(losses, nbytes)
    Output().write(_shown(found, options.json).encode() + b"\n")
    return 0


class _Progress:
    """Says every few seconds how far it is."""

    def __init__(self) -> None:
        self.said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if done < total and time.monotonic() - self.said > SECONDS:
            self.said = time.monotonic()
            say(f"{done:,} of {total:,} tokens")


def _shown(found: Any, as_json: bool) -> str:
    if as_json:
        names = "nats_per_token standard_error perplexity nats_per_byte bits_per_byte".split()
        values = {name: getattr(found, name) for name in names}
        result = {k: v if math.isfinite(v) else None for k, v in values.items()}  # JSON has no NaN
        return json.dumps({**result, "tokens": len(found.losses), "bytes": found.nbytes})
    return (
        f"{found.nats_per_token:.4f} ± {found.standard_error:.4f} nats per token "
        f"(perplexity {found.perplexity:.2f}), {found.bits_per_byte:.4f} bits per byte "
        f"({found.nats_per_byte:.4f} nats), {len(found.losses):,} tokens, {found.nbytes:,} bytes"
    )
