"""What quantising changes, against a definition one number at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.formats import llama2c
from pyllm2.inference.compare import compare_on_text, tensor_errors
from pyllm2.llama2.checkpoint import load_float32
from tests.support.llama2_files import checkpoint


class Says:
    """A model with these logits, whatever the text."""

    def __init__(self, logits: Any) -> None:
        self._logits = np.array(logits, np.float32)

    def logits(self, ids: Any) -> Any:
        assert len(ids) == len(self._logits)
        return self._logits


@st.composite
def two_models_and_a_text(draw: Any) -> tuple[Any, Any, list[int]]:
    """Logits in steps of 1/8, so that equal ones occur, too."""
    T, V = draw(st.integers(2, 6)), draw(st.integers(2, 5))
    rows = st.lists(st.integers(-40, 40).map(lambda n: n / 8), min_size=V, max_size=V)
    tables = [draw(st.lists(rows, min_size=T, max_size=T)) for _ in range(2)]
    return *tables, draw(st.lists(st.integers(0, V - 1), min_size=T, max_size=T))


def probabilities(row: list[float]) -> list[float]:
    return [math.exp(x) / math.fsum(map(math.exp, row)) for x in row]


@given(two_models_and_a_text())
def test_a_comparison_is_its_definition(drawn: tuple[Any, Any, list[int]]) -> None:
    """Perplexity, mean divergence, the share of equal first choices, the first that is another."""
    a, b, ids = drawn
    found = compare_on_text(Says(a), Says(b), ids)  # type: ignore[arg-type]
    ps, qs = ([probabilities(row) for row in table] for table in (a, b))
    same = [p.index(max(p)) == q.index(max(q)) for p, q in zip(a, b, strict=True)]
    divergences = (
        x * math.log(x / y) for p, q in zip(ps, qs, strict=True) for x, y in zip(p, q, strict=True)
    )
    assert found.tokens == len(ids)
    for perplexity, table in ((found.perplexity, ps), (found.perplexity_q8, qs)):
        likely = math.prod(row[i] for row, i in zip(table, ids[1:], strict=False))
        assert perplexity == pytest.approx(likely ** (-1 / (len(ids) - 1)), rel=1e-12)
    expected = math.fsum(divergences) / len(ids)
    assert found.divergence == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert found.same_best == pytest.approx(sum(same) / len(ids), rel=1e-12)
    assert found.first_change == (None if all(same) else same.index(False))


@pytest.mark.parametrize("group_size", [2, 4])
def test_errors_of_tensors_are_those_of_their_numbers(group_size: int, tmp_path: Path) -> None:
    """Largest error, its layer and group, and the root of the mean square; norms have no row."""
    (tmp_path / "m.bin").write_bytes(checkpoint(1, False))
    _, tensors, _ = load_float32(tmp_path / "m.bin")
    rows = {row.name: row for row in tensor_errors(tmp_path / "m.bin", group_size)}
    assert set(rows) == set(tensors) - set(llama2c.NORMS)
    for name, row in rows.items():
        array = tensors[name]
        layers = array.reshape(len(array) if array.ndim == 3 else 1, -1, group_size)
        scales = np.abs(layers).max(axis=-1, keepdims=True).astype(np.float64) / 127
        errors = np.abs(layers - scales * np.rint(layers / scales))
        step = scales.max() * 127 * 2.0**-23  # the scale and its multiple are float32
        assert row.largest == pytest.approx(errors.max(), abs=step)
        assert errors[row.worst_layer, row.worst_group].max() >= errors.max() - step
        assert row.rms == pytest.approx(math.sqrt(np.mean(errors**2)), abs=step)
