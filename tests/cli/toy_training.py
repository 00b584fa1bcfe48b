"""Shards and flags for a training run that takes a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pyllm2.formats.tokens import write_shard

MODEL = "layers=1,heads=2,channels=8,vocab=13,context=8"
VOCAB, PARAMETERS = 13, 1976
BARE = ("train", "gpt2", "--init", MODEL, "--train", "train_*.bin", "--val", "val.bin")
TRAIN = (
    *BARE, "--out", "out", "--batch", "2", "--context", "4", "--steps", "12",
    "--learning-rate", "0.01", "--val-every", "6", "--val-batches", "2", "--save-every", "5",
    "--backend", "numpy", "--threads", "1",
)  # fmt: skip


def write_shards(folder: Path) -> None:
    """train_0.bin, train_1.bin, val.bin: each token is three more than the one before."""
    rng = np.random.default_rng(5)
    for name, n in (("train_0", 161), ("train_1", 130), ("val", 80)):
        ids = (3 * np.arange(n) + (rng.random(n) < 0.2)) % VOCAB
        write_shard(folder / f"{name}.bin", ids.astype(np.int32))
