"""Loss and gradients of a loaded model, whatever its family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pyllm2
from pyllm2.errors import ContextError, FileError, TokenizerError
from pyllm2.gpt2 import checkpoint as gpt2
from pyllm2.gpt2.config import GPT2Config
from pyllm2.llama2 import checkpoint as llama2
from pyllm2.llama2.config import Llama2Config
from pyllm2.parameters import Parameters
from tests.support import llama2_files
from tests.support.tested import BACKENDS

FAMILIES = {
    "gpt2": (gpt2, GPT2Config(9, 20, 2, 3, 12, 24)),
    "llama2": (llama2, Llama2Config(12, 20, 2, 6, 3, 20, 9)),
}
X = np.array([[1, 5, 19, 7], [0, 2, 2, 11]])
Y = np.array([[5, 19, 7, 3], [2, 2, 11, 19]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of each family."""
    path = tmp_path_factory.mktemp("loss")
    for name, (checkpoint, config) in FAMILIES.items():
        params = Parameters(config.shapes())
        params.flat[...] = np.random.default_rng(1).normal(0, 0.3, params.flat.size)
        checkpoint.save_parameters(path / name, config, params)  # type: ignore[attr-defined]
    return path


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_surprise_at_the_targets(family: str, backend: str, folder: Path) -> None:
    """The mean of -log p, with p from the model's own logits; no call changes the next."""
    model = pyllm2.load(folder / family, backend=backend)
    logits = np.stack([model.logits(row.tolist()) for row in X]).astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = -np.take_along_axis(log_p, Y[..., None], axis=-1).mean()
    loss, _ = model.loss_and_grads(X, Y)
    assert abs(loss - expected) <= 1e-5 * (1 + np.abs(logits).max())
    assert model.loss(X, Y) == loss == model.loss_and_grads(X, Y)[0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_have_the_names_of_the_weights(family: str, backend: str, folder: Path) -> None:
    """They are near those of NumPy, also if the weights are mapped."""
    _, grads = pyllm2.load(folder / family, backend=backend, memory_map=True).loss_and_grads(X, Y)
    _, expected = pyllm2.load(folder / family, backend="numpy").loss_and_grads(X, Y)
    assert grads.shapes == FAMILIES[family][1].shapes()
    assert np.abs(expected.flat).max() > 0.01
    assert np.abs(grads.flat - expected.flat).max() <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_that_of_the_mean(family: str, folder: Path) -> None:
    """A batch twice has the loss and, but for the order of sums, the gradient of the batch once."""
    model = pyllm2.load(folder / family, backend="numpy")
    _, once = model.loss_and_grads(X, Y)
    _, twice = model.loss_and_grads(np.vstack([X, X]), np.vstack([Y, Y]))
    assert np.abs(twice.flat - once.flat).max() <= 1e-5 * np.abs(once.flat).max()
    step = np.float32(1e-3) * once.flat / np.linalg.norm(once.flat)
    trainable = model.trainable
    losses = []
    for direction in (step, -step):
        trainable.params.flat[...] += direction
        losses.append(float(trainable.losses(X, Y).astype(np.float64).mean()))
        trainable.params.flat[...] -= direction
    slope = (losses[0] - losses[1]) / 2e-3
    assert abs(slope / np.linalg.norm(once.flat) - 1) <= 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_what_does_not_fit_is_refused(family: str, folder: Path) -> None:
    """Bad ids, lengths and shapes are one line, the same for both families."""
    model = pyllm2.load(folder / family, backend="numpy")
    for x, y in ((X + 1, Y), (X, Y + 1)):
        with pytest.raises(TokenizerError, match=r"^token id 20: the model has ids 0 to 19$"):
            model.loss(x, y)
    with pytest.raises(ContextError, match=r"^10 tokens, context is 9$"):
        model.loss(np.ones((1, 10), int), np.ones((1, 10), int))
    with pytest.raises(ValueError, match="two equal shapes"):
        model.loss_and_grads(X, Y[:, 1:])


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (llama2_files.quantized(), "is int8: loss and gradients need float32 weights"),
        (
            llama2_files.checkpoint(shared=False),
            "has a classifier of its own: loss and gradients need a shared one",
        ),
    ],
)
def test_a_llama2_that_cannot_be_trained_is_refused(
    data: bytes, error: str, tmp_path: Path
) -> None:
    """The error is one line that names the file."""
    (tmp_path / "m.bin").write_bytes(data)
    model = pyllm2.load(tmp_path / "m.bin", backend="numpy")
    for compute in (model.loss, model.loss_and_grads):
        with pytest.raises(FileError) as refused:
            compute(X, Y)
        assert str(refused.value) == f"{tmp_path}/m.bin: {error}"
