"""`tools/scaling.py`: its formula of bytes against those that are handed to MPI, and its model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.support import mpi
from tools import scaling

TOY = "layers=1,heads=2,channels=8,context=8,vocab=13"
CLUSTER = scaling.Cluster(10**8, 1.0, 1e-9, 1e-10, 2e-6, 1e10)


@pytest.mark.parametrize("ranks", [2, 3])
def test_bytes_are_those_of_the_formula(ranks: int, tmp_path: Path) -> None:
    words = f"--worker 1 --shape {TOY} --backend numpy --batch 2 --context 4 --rounds 1".split()
    outcome = mpi.run(ranks, [sys.executable, "-m", "tools.scaling", *words], tmp_path)
    assert outcome.code == 0, outcome.err.decode()
    found = json.loads(outcome.out.splitlines()[-1])
    assert found["bytes"] == scaling.step_bytes(found["n"], ranks)


def test_a_rank_alone_sends_nothing() -> None:
    assert scaling.step_bytes(100, 1) == scaling.messages(100, 1) == 0
    assert scaling.state_bytes(100, 1) == 1600
    assert CLUSTER.exchange(1) == 0


def test_the_model_at_its_limits() -> None:
    """Efficiency at most that of the smaller update; strong scaling ends with the micro-batches."""
    rows = scaling.predictions(CLUSTER, 64)
    assert [row["ranks"] for row in rows] == [2**k for k in range(13)]
    most = CLUSTER.step(1, 1) / CLUSTER.gradient
    assert all(0 < row["weak"] <= most and row["zero"] <= 1 for row in rows)
    best = max(rows, key=lambda row: row["strong"])
    assert best["ranks"] == 64
