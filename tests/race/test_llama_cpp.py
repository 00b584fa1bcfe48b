"""`tools/race_llama_cpp.py`: both engines compute the same model. No time is measured."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.initial import SHAPES

WHY = "needs the rival: pip install 'pyllm2[numba,race]'"
for module in ("numba", "gguf", "llama_cpp"):
    pytest.importorskip(module, reason=WHY)


def _load() -> Any:
    """Import tools/race_llama_cpp.py from its path: tools/ is not a package."""
    path = Path(__file__).parents[2] / "tools" / "race_llama_cpp.py"
    spec = importlib.util.spec_from_file_location("race_llama_cpp", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


race = _load()


@pytest.fixture
def correlation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """Correlation of both engines' logits, for a tiny model with grouped heads."""
    monkeypatch.setitem(SHAPES, "tiny", Llama2Config(64, 160, 2, 4, 2, 288, 256))

    def measured() -> float:
        ours, rival = race.write_models("tiny", tmp_path)
        engines = race.Ours(ours, 1), race.LlamaCpp(rival, 1)
        return race.agreement(*(race.logits(engine, 32) for engine in engines))

    return measured


def test_both_engines_compute_the_same_model(correlation: Callable[[], float]) -> None:
    """The logits of both engines differ by rounding to int8 only."""
    assert correlation() >= race.LEAST_CORRELATION


def test_a_different_model_is_detected(
    correlation: Callable[[], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The correlation is too low if gate and up are swapped in llama.cpp's file."""
    monkeypatch.setattr(race, "GGUF_NAMES", race.GGUF_NAMES | {"w1": "ffn_up", "w3": "ffn_gate"})
    assert correlation() < 0.9 * race.LEAST_CORRELATION
