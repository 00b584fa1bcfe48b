"""Write stories: sample them from a trained model, each with its own seed and temperature.

    python tools/stories/sample.py stories260K.bin tok512.bin stories.txt --megabytes 20

The text that the model in the box was trained on. A story begins at the model's begin-of-text,
ends where the model ends it, and is kept if it ended by itself. Stories are divided by blank
lines. The seed of story n is n, so a run that is continued (the file is appended to) or divided
between processes (--first, --every) makes the same stories.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyllm2
from pyllm2.generate import generate_ids
from pyllm2.llama2.tokenizer import BOS, EOS
from pyllm2.sampling import Sampler

# (temperature, top-p), in turn. Hot ones for variety, cool ones for sense.
WAYS = [(0.7, 0.95), (0.9, 0.9), (0.6, 1.0), (0.8, 0.95), (1.0, 0.85), (0.8, 0.9)]
SHORTEST = 200  # bytes


def story(model: pyllm2.LanguageModel, n: int) -> bytes | None:
    """Story number n, or None if the context ended before it did."""
    temperature, top_p = WAYS[n % len(WAYS)]
    session = model.start()
    room = session.room - 1
    ids = list(generate_ids(session, [BOS], Sampler(temperature, top_p, n + 1), room, (BOS, EOS)))
    text = model.tokenizer.decode(ids).strip()
    return text if len(ids) < room and len(text) >= SHORTEST else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("tokenizer")
    parser.add_argument("out", type=Path)
    parser.add_argument("--megabytes", type=float, required=True)
    parser.add_argument("--first", type=int, default=0, help="number of the first story")
    parser.add_argument("--every", type=int, default=1, help="and then each so-many-th")
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
