"""`pyllm2 warmup`: compile what can be compiled, once, into the caches."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

from pyllm2 import backends
from pyllm2.cli.output import Output
from pyllm2.formats.llama2c import write_checkpoint
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.random_model import random_weights
from pyllm2.loading import load

# Grouped heads and several threads' worth of rows, so that every kernel has work.
TINY = Llama2Config(
    dim=32, hidden_dim=48, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=40, seq_len=16
)


def main(options: argparse.Namespace) -> int:
    """A prompt and two single steps of a tiny model, read from a file as any other would be.

    The types that kernels are compiled for (read-only arrays among them) are then those of use.
    """
    output = Output()
    weights = random_weights(TINY, shared_classifier=True, seed=0)
    tensors = {name: a for name, a in vars(weights).items() if a is not None}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.bin"
        write_checkpoint(path, dataclasses.asdict(TINY), tensors)
        for name in backends.NAMES:
            reason = backends.why_not(name)
            if reason is not None:
                output.write(f"{name}: {reason}\n".encode())
                continue
            began = time.perf_counter()
            session = load(path, backend=name).start()
            session.feed([1, 5, 9, 13])
            session.feed([2])
            session.feed([3])
            output.write(f"{name}: ready, {time.perf_counter() - began:.1f} s\n".encode())
    return 0
