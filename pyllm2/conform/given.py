"""A program on a model and a vocabulary that exist, not on drawn ones."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pyllm2.conform.adapter import Adapter
from pyllm2.conform.case import Case
from pyllm2.conform.child import Outcome
from pyllm2.errors import FileError


def text_of_given(adapter: Adapter, model: str, tokenizer: str, prompt: bytes, steps: int) -> bytes:
    """What the program prints for a prompt at temperature 0.

    It runs in a temporary folder with links to the two files.

    Raises FileError if it fails.
    """
    case = Case(prompt=prompt or None, temperature=0.0, steps=steps)
    with tempfile.TemporaryDirectory(prefix="diff-") as name:
        folder = Path(name)
        (folder / "model.bin").symlink_to(os.path.abspath(model))
        link = folder / (adapter.cwd_tokenizer or "tokenizer.bin")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.abspath(tokenizer))
        if adapter.cwd_tokenizer and adapter.names("tokenizer") and link.name != "tokenizer.bin":
            (folder / "tokenizer.bin").symlink_to(os.path.abspath(tokenizer))
        outcome: Outcome = adapter.run_in(case, folder)
    if outcome.stopped or outcome.code != 0:
        last = outcome.err.decode("utf-8", "replace").strip().splitlines()
        raise FileError(adapter.program[0], outcome.ended + (f": {last[-1][:200]}" if last else ""))
    return adapter.text_of(outcome.out)
