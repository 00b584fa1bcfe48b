"""Runs of several processes: shares, sums in order of rank, ZeRO-1; each launch starts ranks."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2 import backends
from pyllm2.errors import BackendError
from pyllm2.gpt2.training import MATRICES, TrainableGPT2
from pyllm2.observe.runs import Step
from pyllm2.observe.standard import Standard
from pyllm2.parameters import Parameters
from pyllm2.training import launch, processes
from pyllm2.training.loader import DataLoader
from tests.support import mpi, mpi_program
from tests.support.tested import able
from tests.support.toy_training import (
    CONFIG,
    RECIPE,
    InTurn,
    make_trainer,
    parameters,
    write_shards,
)


@given(st.integers(1, 10**7), st.integers(1, 300))
def test_shares_cover_the_vector_once(n: int, size: int) -> None:
    """In order of rank, without gap or overlap, and none longer than n / size and an alignment."""
    found = processes.shares(n, size)
    assert len(found) == size
    assert found[0].start == 0
    assert found[-1].stop == n
    for share, following in itertools.pairwise(found):
        assert share.stop == following.start
    assert max(s.stop - s.start for s in found) <= n / size + processes.ALIGNMENT
    for share in found:
        lengths = [b.stop - b.start for b in processes.blocks(share)]
        assert sum(lengths) == share.stop - share.start
        assert all(0 < length <= processes.BLOCK for length in lengths)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 1),
        ({"PMI_SIZE": "4", "PMI_RANK": "0"}, 4),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, 3),
        ({"PMIX_RANK": "1", "SLURM_STEP_NUM_TASKS": "8"}, 8),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "8"}, 1),  # a shell inside a job
        ({"PMI_SIZE": "many"}, 1),
        ({"PMI_SIZE": "0"}, 1),
    ],
)
def test_the_launcher_is_found(environment: dict[str, str], expected: int) -> None:
    assert launch.started(environment) == expected


def test_without_a_launcher_nothing_of_mpi_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process; several with --no-mpi are one each; a launcher of another MPI is refused."""
    for name in launch.SIZE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "mpi4py", None)  # importing it fails
    with launch.of_this_run() as found:
        assert (found.rank, found.size) == (0, 1)
    monkeypatch.setenv("PMI_SIZE", "2")
    with launch.of_this_run(use_mpi=False) as found:
        assert found.size == 1
    with (
        pytest.raises(BackendError, match=r"one of 2 processes, which needs mpi4py"),
        launch.of_this_run(),
    ):
        pass


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """The arrays of `mpi_program` by number of ranks; 2 ranks run twice, the second as -2."""
    mpi.require_mpi()
    found = {}
    for size in (2, 3, -2, 4):
        folder = tmp_path_factory.mktemp("ranks")
        write_shards(folder)
        program = [sys.executable, "-m", "tests.support.mpi_program", str(folder / "out.npz")]
        outcome = mpi.run(abs(size), program, folder)
        assert outcome.code == 0, outcome.err.decode()
        found[size] = dict(np.load(folder / "out.npz"), folder=folder)
    return found


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_add_up_in_their_order(launches: dict[int, dict[str, Any]], size: int) -> None:
    """The gradient is that of rank 0, plus that of rank 1, …: every backend, to the last bit."""
    folder = launches[size]["folder"]
    pattern = str(folder / "train_*.bin")
    loaders = [DataLoader(pattern, 2, 4, rank, size, shuffle=True) for rank in range(size)]
    batches = [loader.next_batch() for loader in loaders]
    dloss = float(np.float32(1) / np.float32(8 * size))
    for backend in able():
        model = TrainableGPT2(CONFIG, parameters(), backends.engine(backend, 1, "gpt2"))
        total = None
        for x, y in batches:
            grads = model.params.zeros_like()
            model.add_gradient(x, y, dloss, grads, fresh=True)
            total = grads.flat if total is None else total + grads.flat
        np.testing.assert_array_equal(launches[size][f"gradient {backend}"], total)


@pytest.mark.parametrize("size", [2, 3])
def test_a_run_of_ranks_is_a_run_of_one_process(
    launches: dict[int, dict[str, Any]], size: int
) -> None:
    """With one micro-batch per rank NumPy adds gradients in the order of accumulation.

    So the whole run has the bits of one process that accumulates the batches of all ranks.
    """
    folder = launches[size]["folder"]
    pattern = str(folder / "train_*.bin")
    loaders = [DataLoader(pattern, 2, 4, rank, size, shuffle=True) for rank in range(size)]
    trainer = make_trainer(
        folder, plan=mpi_program.PLAN, train_data=InTurn(loaders), **mpi_program.recipe(size)
    )
    trainer.run()
    for zero in (0, 1):
        found = launches[size][f"params numpy {zero}"]
        np.testing.assert_array_equal(found, trainer.model.params.flat)


def test_the_same_batch_on_1_to_4_ranks(launches: dict[int, dict[str, Any]]) -> None:
    """Gradients and parameters after an update, on every backend: inside the derived bound.

    The ranks add the same rows in another order. The bound of a gradient, propagated through the
    ops from their forward error bounds, holds for every order. The first update of Adam moves a
    parameter by rate * g / (|g| + eps), which grows with g: its ends are those of the bound, plus
    eight roundings of each of its terms.
    """
    folder = launches[2]["folder"]
    x, y = DataLoader(str(folder / "train_*.bin"), mpi_program.ROWS, 4).next_batch()
    model = TrainableGPT2(CONFIG, parameters(), backends.engine("numpy", 1, "gpt2"))
    named = Standard(model, Step(x, y)).ensemble.named
    value, error = (Parameters(CONFIG.shapes(), np.zeros(model.params.flat.size)) for _ in "ve")
    for name, array in model.params.items():
        layered = name not in ("wte", "wpe", "lnfw", "lnfb")
        value[name][...], error[name][...] = named[name].bound(array.ndim - layered)
    decayed = Parameters(CONFIG.shapes(), np.zeros(model.params.flat.size))
    for name in MATRICES:
        decayed[name][...] = RECIPE["weight_decay"] * model.params[name]
    loss, error_of_loss = named["losses"].bound(0)
    off = error_of_loss.mean() + (x.size + 4) * 2.0**-24 * np.abs(loss).mean()
    before, rate = model.params.flat.astype(np.float64), RECIPE["learning_rate"]
    ends = [
        before - rate * (g / (np.abs(g) + 1e-8) + decayed.flat)
        for g in (value.flat + error.flat, value.flat - error.flat)
    ]
    rounding = 8 * 2.0**-24 * (np.abs(before) + rate * (1 + np.abs(decayed.flat)))
    for backend in able():
        alone = mpi_program.one_batch(folder, backend, processes.OneProcess())
        for size in (1, 2, 3, 4):
            whats = ("one gradient", "one update", "one loss")
            found = alone if size == 1 else [launches[size][f"{what} {backend}"] for what in whats]
            share = np.abs(found[0] - value.flat) / error.flat
            assert share.max() <= 1, (backend, size)
            assert (found[1] >= ends[0] - rounding).all(), (backend, size)
            assert (found[1] <= ends[1] + rounding).all(), (backend, size)
            assert abs(found[2][0] - loss.mean()) <= off


def test_zero_1_and_repeated_runs_have_the_same_bits(
    launches: dict[int, dict[str, Any]],
) -> None:
    """Parameters, losses and norms of every backend: with and without ZeRO-1, and once more."""
    for size in (2, 3):
        for backend in able():
            for what in ("params", "losses", "norms"):
                with_zero = launches[size][f"{what} {backend} 1"]
                np.testing.assert_array_equal(launches[size][f"{what} {backend} 0"], with_zero)
    for name, array in launches[2].items():
        if name != "folder":
            np.testing.assert_array_equal(launches[-2][name], array)
