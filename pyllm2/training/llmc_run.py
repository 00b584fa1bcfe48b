"""A run of llm.c's CUDA trainer, to be continued here: `DONE_N`, `model_N.bin`, `state_N_RANK.bin`.

With ZeRO-1 each of P processes keeps the moments of the P-th part of each tensor of each layer;
they are put together here, so that any number of processes can go on.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import FileError, FormatError, os_errors
from pyllm2.formats.llmc_state import State, read_state
from pyllm2.training.checkpoint import Checkpoint
from pyllm2.training.outlier import OutlierDetector

Array = NDArray[np.float32]
# As in pyllm2.gpt2: the others have a slice per layer.
WITHOUT_LAYERS = ("wte", "wpe", "lnfw", "lnfb")
_DONE = re.compile(r"DONE_(\d+)")


def newest(folder: str) -> int:
    """The step of the newest whole checkpoint in a folder. Raises FileError if there is none."""
    with os_errors(folder):
        found = [int(m[1]) for m in map(_DONE.fullmatch, os.listdir(folder)) if m]
    if not found:
        raise FileError(folder, "has no checkpoint of llm.c: DONE_N, model_N.bin, state_N_RANK.bin")
    return max(found)


def model_file(folder: str) -> str:
    """The model of the newest checkpoint. Raises FileError."""
    return os.path.join(folder, f"model_{newest(folder):08d}.bin")


def state_file(folder: str, rank: int) -> str:
    """The state of one process in the newest checkpoint. Raises FileError."""
    return os.path.join(folder, f"state_{newest(folder):08d}_{rank:05d}.bin")


def read_run(
    folder: str, shapes: Mapping[str, tuple[int, ...]], weights: Callable[[], Array]
) -> Checkpoint:
    """The newest checkpoint of a run of llm.c as one of ours.

    shapes: of the parameters, in order   weights: reads model_N.bin, if there are no master weights

    Raises FileError, FormatError for states that do not belong together.
    """
    n = sum(map(math.prod, shapes.values()))
    first = read_state(state_file(folder, 0), n)
    step = newest(folder)
    names = ("m", "v") if first.master is None else ("m", "v", "master")
    vectors: dict[str, Array] = {name: np.empty(n, np.float32) for name in names}
    for rank in range(first.processes):
        state = first if rank == 0 else read_state(state_file(folder, rank), n)
        for name, found, expected in (
            ("rank", state.rank, rank),
            ("step", state.step, step),
            ("processes", state.processes, first.processes),
            ("master weights", state.master is not None, first.master is not None),
            ("parameters", state.n, first.n),
        ):
            if found != expected:
                raise FormatError(state.path, f"{name} = {found}: expected {expected}")
        for name, whole in vectors.items():
            _place(whole, getattr(state, name), state, shapes)
        if state.n == n:  # without ZeRO all processes have the same
            break
    return Checkpoint(
        step=step,
        identity={"engine": {"processes": first.processes}},
        params=vectors["master"] if "master" in vectors else weights(),
        m=vectors["m"],
        v=vectors["v"],
        loss_outliers=OutlierDetector().state,
        norm_outliers=OutlierDetector().state,
        loader=first.loader,
    )


def _place(whole: Array, part: Array, state: State, shapes: Mapping[str, Any]) -> None:
    """Put what a process keeps where it belongs."""
    if state.n == whole.size:
        whole[:] = part
        return
    P, start = state.processes, 0
    for name, shape in shapes.items():
        size, layers = math.prod(shape), shape[0] if name not in WITHOUT_LAYERS else 1
        if size % (layers * P):
            raise FormatError(state.path, f"{name} is not divisible among {P} processes")
        of_rank = whole[start : start + size].reshape(layers, P, -1)[:, state.rank]
        of_rank[:] = part[start // P : (start + size) // P].reshape(layers, -1)
        start += size
