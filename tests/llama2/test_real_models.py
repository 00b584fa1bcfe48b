"""The recorded models of later kinds than llama2.c's, on every backend; prompts in one piece too.

Folders of Hugging Face and Meta; `tests/inference/test_gguf.py` does the same for files of GGUF.
"""

from __future__ import annotations

import functools
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyllm2
from pyllm2.errors import PyLLM2Warning
from pyllm2.inference.language_model import LanguageModel
from pyllm2.llama2.model import Llama2
from pyllm2.testing import model_bound
from tests.support.golden import shared_folder
from tests.support.tested import BACKENDS, engine_of

SHARED = shared_folder()
REAL = SHARED / "golden" / "real" if SHARED else Path("nowhere")
FOLDERS = [
    folder
    for kind in ("hf", "meta")
    for folder in sorted((REAL / kind).glob("*"))
    if not folder.name.startswith("gpt2")
]


@functools.cache
def loaded(folder: Path) -> LanguageModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PyLLM2Warning)
        return pyllm2.load(folder, backend="numpy")


def model_on(folder: Path, backend: str) -> Llama2:
    """The same weights on another engine."""
    model = loaded(folder).model
    return Llama2(model.config, model.weights, engine_of(backend))


@functools.cache
def arrays_of(folder: Path) -> dict[str, Any]:
    with np.load(folder / "expect.npz") as expected:
        return dict(expected)


@functools.cache
def bound(folder: Path) -> np.ndarray:
    """The error allowed to float32, (T, 1)."""
    return model_bound(loaded(folder).model, arrays_of(folder)["input_ids"]).error


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_logits_are_within_the_bound_of_the_recorded(folder: Path, backend: str) -> None:
    """A float64 evaluation by transformers; for Meta's folders by the reference's formulas."""
    expected, model = arrays_of(folder), model_on(folder, backend)
    ids = expected["input_ids"]
    logits = model.forward(ids, 0, model.new_cache(len(ids)))
    assert (np.abs(logits - expected["logits_f64"]) <= bound(folder)).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_greedy_ids_are_the_recorded(folder: Path, backend: str) -> None:
    """A prompt and 20 single tokens; every recorded margin is above twice the bound."""
    expected = json.loads((folder / "expect.json").read_text())
    assert min(expected["greedy_margins"]) > 2 * bound(folder).max()
    model = LanguageModel(model_on(folder, backend), None, backend)
    prompt, wanted = expected["prompt_ids"], expected["greedy_ids"]
    tokens = model.generate(prompt, len(wanted), temperature=0, stop=())
    assert [token.id for token in tokens] == wanted


STEPWISE = [folder for folder in FOLDERS if "logits_stepwise_f32" in arrays_of(folder)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("folder", STEPWISE, ids=lambda folder: folder.name)
def test_logits_of_single_tokens_are_the_recorded(folder: Path, backend: str) -> None:
    """Of dynamic scaling: what is cached keeps its angles. Both are off by at most the bound."""
    expected, model = arrays_of(folder), model_on(folder, backend)
    ids, wanted = expected["input_ids"], expected["logits_stepwise_f32"]
    cache = model.new_cache(len(ids))
    found = [model.forward(ids[t : t + 1], t, cache)[0] for t in range(len(ids))]
    assert (np.abs(np.array(found) - wanted) <= 2 * bound(folder).max()).all()
    whole = expected["logits_f64"]
    assert np.abs(wanted - whole).max() > 100 * bound(folder).max()  # another text than at once
