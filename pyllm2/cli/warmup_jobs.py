"""The jobs of `pyllm2 warmup`: tiny models that call every kernel of a backend once."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pyllm2 import backends
from pyllm2.cli.output import Output
from pyllm2.inference.load import load
from pyllm2.inference.sample import sample
from pyllm2.llama2.checkpoint import export

# Grouped heads, and a group size of int8 that divides both widths.
MODELS = {
    "llama2": "dim=32,hidden=48,layers=2,heads=4,kv_heads=2,context=64,vocab=40",
    "gpt2": "layers=2,heads=4,channels=32,context=64,vocab=40",
}
GROUP_SIZE = 16
DROPOUTS = {"llama2": (0.0, 0.1), "gpt2": (0.0,)}  # with dropout Llama-2 uses other kernels


@dataclass(frozen=True)
class Job:
    """Something to compile."""

    title: str
    run: Callable[[], None]


@contextmanager
def jobs_of(
    names: Sequence[str], families: Sequence[str], works: Sequence[str], threads: int | None
) -> Iterator[list[Job]]:
    """The jobs of these backends, families and kinds of work, while a folder with models exists."""
    with TemporaryDirectory() as folder:
        files = [file for family in families for file in _write_models(Path(folder), family)]
        jobs = []
        for name in names:
            if "inference" in works:
                for what, path in files:
                    jobs.append(
                        Job(f"{name}: {what} inference", partial(_infer, path, name, threads))
                    )
            if "training" in works:
                for family in families:
                    jobs.append(
                        Job(f"{name}: {family} training", partial(_train, family, name, threads))
                    )
        yield jobs


def _family(name: str) -> Any:
    return importlib.import_module(f"pyllm2.{name}.family")


def _write_models(folder: Path, family: str) -> list[tuple[str, Path]]:
    """Files with a model of the family, each with its name: `llama2 int8`."""
    module = _family(family)
    config = module.descriptor(MODELS[family])
    path = folder / f"{family}.bin"
    module.save_parameters(path, config, module.initial_parameters(config))
    files = [(f"{family} float32", path)]
    if family == "llama2":
        export(path, folder / "int8.bin", "v2", GROUP_SIZE)
        files.append((f"{family} int8", folder / "int8.bin"))
    return files


def _infer(path: Path, backend: str, threads: int | None) -> None:
    """Feed prompts and two single tokens to a model that is loaded as the commands load it."""
    session = load(path, None, backend, threads=threads).start()
    session.feed([1, 5, 9, 13], last_only=True)
    session.feed([1] * 50, last_only=True)  # long ones have other kernels
    session.feed([2])
    session.feed([3])


def _train(family: str, backend: str, threads: int | None) -> None:
    """A validation, an update with two micro-batches, and a sample."""
    module = _family(family)
    config = module.descriptor(MODELS[family])
    tokens, targets = np.random.default_rng(0).integers(1, 40, (2, 2, 8)).astype(np.int32)
    engine = backends.engine(backend, threads, family)
    optimizer = backends.ops(backend, threads, "training")
    for dropout in DROPOUTS[family]:
        model = module.build(config, module.initial_parameters(config), engine, dropout)
        model.losses(tokens, targets)
        model.begin_update(0)
        grads, m, v = (model.params.zeros_like() for _ in range(3))
        for fresh in (True, False):
            model.add_gradient(tokens, targets, 1 / 32, grads, fresh=fresh)
        optimizer.global_norm(grads.flat)
        hyper = (1, 1e-3, 0.9, 0.95, 1e-8, 0.1, 1.0)
        optimizer.adamw_update(model.params.flat, grads.flat, m.flat, v.flat, *hyper)
        sample(module.decoder(model), 1, 4, backend)


class Progress:
    """Runs jobs and prints a line for each on stdout; on a terminal, a bar on stderr."""

    def __init__(self, total: int, output: Output) -> None:
        self.output = output
        self.bar: Any = None
        if sys.stderr is not None and sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return
            bar_format = "{n_fmt}/{total_fmt} {bar} {elapsed} {desc}"
            self.bar = tqdm(total=total, dynamic_ncols=True, bar_format=bar_format)

    def run(self, job: Job) -> None:
        if self.bar is not None:
            self.bar.set_description_str(job.title)
        began = time.perf_counter()
        job.run()
        line = f"{job.title}: ready, {time.perf_counter() - began:.1f} s\n"
        if self.bar is not None:
            self.bar.clear()
        self.output.write(line.encode())
        if self.bar is not None:
            self.bar.update()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
