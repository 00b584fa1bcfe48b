"""The bundled model: small, trained, and the same on every backend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pyllm2
from pyllm2 import stories
from tests.support.command import in_process
from tests.support.tested import BACKENDS, ops_of

TEXT = "Once upon a time, there was a little girl named Lily. She loved to play outside."
MAX_BYTES = 6_000_000


def test_it_is_small() -> None:
    """It is part of every installation."""
    assert stories.MODEL.stat().st_size + stories.TOKENIZER.stat().st_size < MAX_BYTES


def test_it_has_learned_something() -> None:
    """Its loss on the beginning of a story is a third of that of a uniform guess."""
    model = pyllm2.load(backend="numpy")
    ids = model.tokenizer.encode(TEXT)
    logits = model.logits(ids[:-1]).astype(np.float64)
    nats = np.log(np.exp(logits).sum(axis=-1)) - logits[np.arange(len(ids) - 1), ids[1:]]
    assert nats.mean() < np.log(model.config.vocab_size) / 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_tells_the_same_story(backend: str) -> None:
    """Greedy text is the same on every backend."""
    ops_of(backend)
    told = [
        b"".join(t.bytes for t in pyllm2.load(backend=name).generate(TEXT, 60, temperature=0))
        for name in ("numpy", backend)
    ]
    assert told[0] == told[1]
    assert len(told[0].split()) > 20


def test_generate_needs_no_file(tmp_path: Path) -> None:
    """`pyllm2 generate` works in any folder without arguments."""
    outcome = in_process(
        ("generate", "--max-new-tokens", "40", "--seed", "7", "--backend", "numpy"), tmp_path
    )
    assert outcome.code == 0
    assert len(outcome.out.split()) > 15
