"""What each rank of `tests/training/test_mpi.py` runs: `python -m tests.support.mpi_program OUT`.

Rank 0 writes OUT, an .npz: for every backend the gradient of the first batches, and for every
backend with and without ZeRO-1 the parameters, losses and norms of a short run. For 1 to 4 ranks:
the gradient of one and the same batch, and the parameters after one update with it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from pyllm2.training import launch
from pyllm2.training.loader import DataLoader
from pyllm2.training.recipe import Plan
from tests.support.tested import able
from tests.support.toy_training import Record, make_trainer

ROWS = 12  # divisible by 1 to 4 ranks
PLAN = Plan(validate_every=0, validation_batches=1, save_every=0)


def recipe(size: int) -> dict[str, Any]:
    """One micro-batch per rank; no clipping, whose norm is summed in another order per size."""
    return {"total_batch": 8 * size, "steps": 4, "clip": 0.0}


def one_batch(data: Path, backend: str, ranks: Any) -> tuple[Any, Any, list[float]]:
    """Gradient, parameters after the update with it, and loss of ROWS rows dealt to the ranks."""
    rows = ROWS // ranks.size
    share = rows, 4, ranks.rank, ranks.size
    found = []
    for zero in (False, True):
        record = Record()
        trainer = make_trainer(
            data,
            plan=PLAN,
            backend=backend,
            report=record,
            processes=ranks,
            zero=zero,
            train_data=DataLoader(str(data / "train_*.bin"), *share),  # in order: the same rows
            batch=rows,
            total_batch=ROWS * 4,
            clip=0.0,
        )
        trainer.update()
        found.append((trainer.grads.flat, trainer.model.params.flat, [record.updates[0].loss]))
    return found[0][0], *found[1][1:]


def main(out: str) -> None:
    found: dict[str, Any] = {}
    data = Path(out).parent
    with launch.of_this_run() as ranks:
        for backend in able():
            names = (f"{name} {backend}" for name in ("one gradient", "one update", "one loss"))
            found |= zip(names, one_batch(data, backend, ranks), strict=True)
            if ranks.size == 4:
                continue
            for zero in (False, True):
                record = Record()
                trainer = make_trainer(
                    data,
                    plan=PLAN,
                    backend=backend,
                    report=record,
                    processes=ranks,
                    zero=zero,
                    **recipe(ranks.size),
                )
                trainer.run()
                key = f"{backend} {int(zero)}"
                found[f"params {key}"] = trainer.model.params.flat
                found[f"losses {key}"] = [update.loss for update in record.updates]
                found[f"norms {key}"] = [update.norm for update in record.updates]
            trainer = make_trainer(
                data, plan=PLAN, backend=backend, processes=ranks, **recipe(ranks.size)
            )
            trainer.gradient()
            found[f"gradient {backend}"] = trainer.grads.flat
        if ranks.rank == 0:
            np.savez(out, **found)


if __name__ == "__main__":
    main(sys.argv[1])
