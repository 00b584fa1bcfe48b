"""How well models predict a text: bits a byte, whatever their vocabularies.

    python tools/stories/judge.py TEXT MODEL TOKENIZER [MODEL TOKENIZER …]

TEXT: stories, divided by blank lines; each is begun anew and cut where a context ends. The nats of
all tokens of a story are divided by its bytes, so that long tokens and short ones compare.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

import pyllm2


def nats_and_bytes(model: pyllm2.LanguageModel, story: bytes) -> tuple[float, int]:
    """Of the tokens after the first, and of the text that they are."""
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
    parser.add_argument("--stories", type=int, default=200, help="from the first on")
    parser.add_argument("--bytes", type=int, default=500, help="of each story: both see the same")
    options = parser.parse_args()

    stories = [s.strip()[: options.bytes] for s in options.text.read_bytes().split(b"\n\n")]
    stories = [s for s in stories if s][: options.stories]
    for path, tokenizer in zip(options.models[::2], options.models[1::2], strict=True):
        model = pyllm2.load(path, tokenizer)
        pairs = [nats_and_bytes(model, story) for story in stories]
        nats, nbytes = (sum(column) for column in zip(*pairs, strict=True))
        bits = nats / math.log(2) / nbytes
        print(f"{path}: {bits:.4f} bits a byte on {len(stories)} stories, {nbytes} bytes")


if __name__ == "__main__":
    main()
