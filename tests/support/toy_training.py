"""A GPT-2 of 1,976 parameters, shards of a few hundred tokens, and a trainer for them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2 import backends
from pyllm2.formats.llmc_tokens import write_shard
from pyllm2.gpt2.config import GPT2Config
from pyllm2.gpt2.training import MATRICES, TrainableGPT2
from pyllm2.parameters import Parameters
from pyllm2.training.folder import RunFolder, open_folder
from pyllm2.training.loader import DataLoader
from pyllm2.training.processes import OneProcess, Processes
from pyllm2.training.recipe import Plan, Recipe
from pyllm2.training.report import Report, Update
from pyllm2.training.trainer import Loader, Trainer

CONFIG = GPT2Config(
    max_seq_len=8, vocab_size=13, num_layers=1, num_heads=2, channels=8, padded_vocab_size=16
)
N_PARAMETERS = 1976
RECIPE: dict[str, Any] = {
    "batch": 2,
    "context": 4,
    "total_batch": 16,
    "steps": 12,
    "learning_rate": 1e-2,
    "schedule": "constant",
    "weight_decay": 0.1,
}
# Command lines of `pyllm2 train gpt2` for the same model; a run takes a second.
BARE = (
    *"train gpt2 --init layers=1,heads=2,channels=8,vocab=13,context=8".split(),
    *"--train train_*.bin --val val.bin".split(),
)
TRAIN = (
    *BARE,
    *"--out out --batch 2 --context 4 --steps 12 --learning-rate 0.01".split(),
    *"--val-every 6 --val-batches 2 --save-every 5 --backend numpy --threads 1".split(),
)
PLAN = Plan(validate_every=4, validation_batches=2, save_every=4, keep=2)


def write_shards(folder: Path) -> None:
    """Write train_0.bin, train_1.bin and val.bin: a noisy pattern that the model can learn."""
    rng = np.random.default_rng(5)
    for name, n in (("train_0", 161), ("train_1", 130), ("val", 80)):
        ids = (3 * np.arange(n) + (rng.random(n) < 0.2)) % CONFIG.vocab_size
        write_shard(folder / f"{name}.bin", ids.astype(np.int32))


def parameters(seed: int = 1) -> Parameters:
    params = Parameters(CONFIG.shapes())
    params.flat[...] = 0.2 * np.random.default_rng(seed).standard_normal(params.flat.size)
    params.wte[CONFIG.vocab_size :] = 0
    return params


class Record(Report):
    """A report that keeps every event."""

    def __init__(self) -> None:
        self.updates: list[Update] = []
        self.validations: dict[int, float] = {}
        self.samples: dict[int, list[int]] = {}
        self.saves: list[int] = []

    def update(self, update: Update) -> None:
        self.updates.append(update)

    def validation(self, step: int, loss: float) -> None:
        self.validations[step] = loss

    def sample(self, step: int, tokens: list[int]) -> None:
        self.samples[step] = tokens

    def saved(self, step: int, path: str) -> None:
        self.saves.append(step)


class NoFolder(RunFolder):
    """A run folder in memory: keeps the checkpoints and drops the log."""

    def __init__(self) -> None:
        self.path, self.log = "", self  # type: ignore[assignment]
        self.checkpoints: list[Any] = []

    def add(self, line: str) -> None:
        pass

    def newest(self) -> str | None:
        return None

    def save(self, checkpoint: Any, keep: int) -> str:
        self.checkpoints.append(checkpoint)
        return ""


def make_trainer(
    data: Path,
    folder: RunFolder | None = None,
    plan: Plan = PLAN,
    backend: str = "numpy",
    report: Report | None = None,
    processes: Processes | None = None,
    zero: bool = False,
    train_data: Loader | None = None,
    **changes: Any,
) -> Trainer:
    """A trainer of the toy model on the shards in `data`; `changes` override RECIPE."""
    processes = processes or OneProcess()
    recipe = Recipe(**{**RECIPE, **changes, "processes": processes.size})
    model = TrainableGPT2(CONFIG, parameters(), backends.engine(backend, 1, "gpt2"))
    share = processes.rank, processes.size
    loaders = [
        DataLoader(str(data / pattern), recipe.batch, recipe.context, *share, shuffle=shuffle)
        for pattern, shuffle in (("train_*.bin", True), ("val.bin", False))
    ]
    identity = {
        "model": asdict(CONFIG),
        "recipe": recipe.identity(),
        "engine": {"backend": backend},
    }
    return Trainer(
        model,
        backends.ops(backend, 1, "training"),
        recipe,
        plan,
        train_data or loaders[0],
        loaders[1],
        folder or NoFolder(),
        MATRICES,
        identity,
        lambda: [1, 2],
        report or Record(),
        processes=processes,
        zero=zero,
    )


class InTurn:
    """Batches of the loaders of several processes in turn, for one process."""

    num_batches = 0

    def __init__(self, loaders: list[DataLoader]) -> None:
        self.loaders, self.turn = loaders, 0

    def next_batch(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        self.turn += 1
        return self.loaders[(self.turn - 1) % len(self.loaders)].next_batch()

    def reset(self) -> None: ...

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None: ...

    def go_to(self, batches: int) -> None: ...


def trainer_in(
    stack: ExitStack, out: Path, data: Path, resume: bool = False, **options: Any
) -> Trainer:
    """A trainer that writes to the run folder `out`; closing `stack` unlocks it."""
    return make_trainer(data, stack.enter_context(open_folder(out, resume)), **options)
