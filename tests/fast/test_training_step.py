"""What surrounds the kernels of a training step, whatever the model."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba", reason="needs numba")

from pyllm2.fast.training_step import TrainingStep
from pyllm2.parameters import Parameters


def test_one_thread_at_a_time_has_the_buffers() -> None:
    """Two threads that evaluate one model would write into the same activations."""
    inside, most = 0, 0

    def forward(*_: Any) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.05)  # long enough for the other thread to come in, if it can
        inside -= 1
        return np.zeros((1, 1), np.float32)

    def buffers(config: Any, B: int, T: int, threads: int, trains: bool) -> Any:
        return SimpleNamespace(config=config, shape=(B, T), threads=threads, trains=trains)

    step = TrainingStep(None, 1, buffers, forward, forward)
    config = SimpleNamespace(vocab_size=3)
    model = SimpleNamespace(config=config, params=Parameters({"w": (2,)}))
    ids = np.zeros((1, 1), np.int64)
    threads = [threading.Thread(target=step.losses, args=(model, ids, ids)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
