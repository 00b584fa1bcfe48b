"""Bits per byte of models on a text, comparable between vocabularies.

    python tools/stories/judge.py TEXT MODEL TOKENIZER [MODEL TOKENIZER …]

TEXT: stories separated by blank lines; each starts with an empty context and is cut at the end of
the context. The loss of all tokens of a story is divided by its bytes.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

import pyllm2


def nats_and_bytes(model: pyllm2.LanguageModel, story: bytes) -> tuple[float, int]:
    """Total loss of the tokens after the first, in nats, and the number of bytes they decode to."""
    ids = model.tokenizer.encode_prompt(story)[: model.config.seq_len]
    logits = model.logits(ids[:-1]).astype(np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    chosen = shifted[np.arange(len(ids) - 1), ids[1:]]
    nats = float(np.sum(np.log(np.exp(shifted).sum(axis=-1)) - chosen))
    return nats, len(model.tokenizer.decode(ids))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("models", nargs="+", metavar="MODEL TOKENIZER")
    parser.add_argument("--stories", type=int, default=200, help="number of stories (default 200)")
    parser.add_argument("--bytes", type=int, default=500, help="bytes per story (default 500)")
    options = parser.parse_args()

    stories = [s.strip()[: options.bytes] for s in options.text.read_bytes().split(b"\n\n")]
    stories = [s for s in stories if s][: options.stories]
    for path, tokenizer in zip(options.models[::2], options.models[1::2], strict=True):
        model = pyllm2.load(path, tokenizer)
        pairs = [nats_and_bytes(model, story) for story in stories]
        nats, nbytes = (sum(column) for column in zip(*pairs, strict=True))
        bits = nats / math.log(2) / nbytes
        print(f"{path}: {bits:.4f} bits per byte on {len(stories)} stories, {nbytes} bytes")


if __name__ == "__main__":
    main()
