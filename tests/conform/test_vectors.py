"""Golden vectors: every op has a file, and the specification is inside the bounds in it."""

from __future__ import annotations

import itertools
import json
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import strategies as st
from safetensors.numpy import load_file

from pyllm2.conform.vectors import arrays_of, examples, write_vectors
from pyllm2.llama2 import ops
from pyllm2.testing import tables
from tests.support.command import in_process


def test_the_specification_passes_its_own_vectors(tmp_path: Path) -> None:
    """rmsnorm by the rule of the README; all ops of all models are there."""
    outcome = in_process(["vectors", "--out", "v", "--examples", "2"], tmp_path)
    assert outcome.code == 0
    names = {f"{model}.{op}.npz" for model, table in tables.items() for op in table}
    assert {path.name for path in (tmp_path / "v").iterdir()} == {*names, "README.md"}
    arrays = np.load(tmp_path / "v" / "llama2.rmsnorm.npz")
    for i in range(2):
        found = ops.rmsnorm(arrays[f"{i}.in.x"], arrays[f"{i}.in.weight"])
        assert (np.abs(found - arrays[f"{i}.out.0"]) <= arrays[f"{i}.error.0"]).all()


@pytest.mark.filterwarnings("error")
def test_drawing_ends_in_silence() -> None:
    """hypothesis warns of the long repr of the eighth draw of attention."""
    arrays = arrays_of(tables["llama2"]["attention"], 8)
    assert "7.out.0" in arrays


def test_an_interrupt_while_drawing_is_one() -> None:
    """Also in the second draw, in which hypothesis repeats the one that ended the first."""
    draws = itertools.count()

    @st.composite
    def interrupted(draw: st.DrawFn) -> tuple[int]:
        if next(draws) == 1:
            signal.raise_signal(signal.SIGINT)
        return (draw(st.integers()),)

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            examples(SimpleNamespace(inputs=interrupted()), 1, 0)  # type: ignore[arg-type]
    finally:
        signal.signal(signal.SIGINT, previous)
    assert next(draws) >= 2


def test_all_formats_hold_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """int8 inputs included; safetensors as the library reads it, JSON as any program does."""
    chosen = {"llama2": {"matmul_q8": tables["llama2"]["matmul_q8"]}}
    monkeypatch.setattr("pyllm2.conform.vectors.tables", chosen)
    arrays = arrays_of(chosen["llama2"]["matmul_q8"], 1)
    assert {"int8", "float32", "float64"} <= {str(a.dtype) for a in arrays.values()}
    for kind in ("safetensors", "json"):
        assert write_vectors(str(tmp_path / kind), kind, 1) == 1
    path = tmp_path / "safetensors" / "llama2.matmul_q8.safetensors"
    rows = json.loads((tmp_path / "json" / "llama2.matmul_q8.json").read_bytes())
    plain = {n: np.array(r["data"], r["dtype"]).reshape(r["shape"]) for n, r in rows.items()}
    for found in (load_file(path), plain):
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            assert np.array_equal(found[name], array, equal_nan=True)
