"""Sample stories from a trained model, each with its own seed and temperature.

    python tools/stories/sample.py stories260K.bin tok512.bin stories.txt --megabytes 20

This is the training text of the bundled model. A story starts at the begin-of-text token and is
kept if the model ends it within the context. Blank lines separate stories. The seed depends only on
the number of the story, so several processes (--first, --every) make the same stories as one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyllm2

# (temperature, top-p), used in turn: high temperatures for variety, low ones for sense.
SETTINGS = [(0.7, 0.95), (0.9, 0.9), (0.6, 1.0), (0.8, 0.95), (1.0, 0.85), (0.8, 0.9)]
SHORTEST = 200  # bytes


def story(model: pyllm2.LanguageModel, n: int) -> bytes | None:
    """Story number n, or None if the context ended before it did."""
    temperature, top_p = SETTINGS[n % len(SETTINGS)]
    room = model.config.seq_len - 1
    new = list(model.generate("", room, temperature, top_p, n + 1))
    text = b"".join(token.bytes for token in new).strip()
    return text if len(new) < room and len(text) >= SHORTEST else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("tokenizer")
    parser.add_argument("out", type=Path)
    parser.add_argument("--megabytes", type=float, required=True)
    parser.add_argument("--first", type=int, default=0, help="number of the first story")
    parser.add_argument("--every", type=int, default=1, help="step between story numbers")
    options = parser.parse_args()

    model = pyllm2.load(options.model, options.tokenizer, threads=1)
    written, n = 0, options.first
    with options.out.open("wb") as out:
        while written < options.megabytes * 1e6:
            text = story(model, n)
            if text is not None:
                written += out.write(text + b"\n\n")
            n += options.every
    print(f"{options.out}: {written} bytes, stories {options.first} to {n - options.every}")


if __name__ == "__main__":
    main()
