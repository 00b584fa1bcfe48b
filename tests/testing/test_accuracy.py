"""tools/accuracy.py: a row per op of every table."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from pyllm2.testing import tables

PATH = Path(__file__).parents[2] / "tools" / "accuracy.py"


def test_every_op_of_every_table_has_a_row() -> None:
    """The first figure is the fraction of the bound that was used."""
    pytest.importorskip("tabulate")
    spec = importlib.util.spec_from_file_location("accuracy", PATH)
    assert spec is not None
    assert spec.loader is not None
    accuracy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(accuracy)
    rows = accuracy.rows(["numpy"], examples=2)
    ops = [f"{model}.{name}" for model, table in tables.items() for name in table]
    assert [row[0] for row in rows] == ops
    for name, figures in rows:
        assert float(figures.split()[0]) <= 1, name
