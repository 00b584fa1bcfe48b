"""The bundled model: a small Llama that writes stories, trained by this project.

README.md in this folder says how it was made and from what data.
"""

from __future__ import annotations

from pathlib import Path

MODEL = Path(__file__).with_name("stories.bin")
TOKENIZER = Path(__file__).with_name("tokenizer.bin")
