"""A GPT-2 of 2,000 numbers with shards of a few hundred tokens, and a trainer for it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pyllm2 import backends
from pyllm2.formats.tokens import write_shard
from pyllm2.gpt2.config import GPT2Config
from pyllm2.gpt2.model import GPT2, MATRICES
from pyllm2.training.folder import RunFolder, open_folder
from pyllm2.training.loader import DataLoader
from pyllm2.training.parameters import Parameters
from pyllm2.training.recipe import Plan, Recipe
from pyllm2.training.report import Report, Update
from pyllm2.training.trainer import Trainer

CONFIG = GPT2Config(
    max_seq_len=8, vocab_size=13, num_layers=1, num_heads=2, channels=8, padded_vocab_size=16
)
RECIPE: dict[str, Any] = {
    "batch": 2, "context": 4, "total_batch": 16, "steps": 12, "learning_rate": 1e-2,
    "schedule": "constant", "weight_decay": 0.1,
}  # fmt: skip
PLAN = Plan(validate_every=4, validation_batches=2, save_every=4, keep=2)


def write_shards(folder: Path) -> None:
    """Two for training, one for validation: a pattern that can be learned, with some noise."""
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
    """Keeps what it is told."""

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
    """Where there is no disk: the log is dropped and checkpoints are kept as they are."""

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


def trainer(
    data: Path,
    folder: RunFolder | None = None,
    plan: Plan = PLAN,
    backend: str = "numpy",
    report: Report | None = None,
    **changes: Any,
) -> Trainer:
    """A trainer of the toy on the shards in `data`; `changes`: of the recipe."""
    recipe = Recipe(**{**RECIPE, **changes})
    model = GPT2(CONFIG, parameters(), backends.ops(backend, 1, "gpt2"))
    loaders = [
        DataLoader(str(data / pattern), recipe.batch, recipe.context, shuffle=shuffle)
        for pattern, shuffle in (("train_*.bin", True), ("val.bin", False))
    ]
    return Trainer(
        model, backends.ops(backend, 1, "training"), recipe, plan, loaders[0], loaders[1],
        folder or NoFolder(), MATRICES,
        {"model": asdict(CONFIG), "recipe": recipe.identity(), "engine": {"backend": backend}},
        lambda: [1, 2], report or Record(),
    )  # fmt: skip


def run_in(
    stack: ExitStack, out: Path, data: Path, resume: bool = False, **options: Any
) -> Trainer:
    """A trainer with a folder on the disk, which `stack` closes."""
    return trainer(data, stack.enter_context(open_folder(out, resume)), **options)
