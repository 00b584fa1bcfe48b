"""The model in the box: a small Llama that writes stories, trained by this project.

How it was made, and from what, is in README.md beside it.
"""

from __future__ import annotations

from pathlib import Path

MODEL = Path(__file__).with_name("stories.bin")
TOKENIZER = Path(__file__).with_name("tokenizer.bin")
