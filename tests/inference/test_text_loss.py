"""The loss of a text: windows, strides, standard error, and the command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

import pyllm2
from pyllm2.cli.eval_text import _shown
from pyllm2.inference.language_model import LanguageModel
from pyllm2.inference.text_loss import TextLoss, text_losses
from tests.support.command import in_process
from tests.support.llama2_files import SHAPE, lay_out

S = SHAPE["seq_len"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("text-loss")
    lay_out(folder, {"text": b"a cab\n\nhello cab\n\n" * 9})
    return pyllm2.load(folder / "m.bin", folder / "t.bin", backend="numpy")


def test_without_windows_it_is_the_loss_of_the_model(model: LanguageModel) -> None:
    """The mean of -log p of a text within the context is `loss`, up to rounding."""
    ids = np.random.default_rng(1).integers(0, model.config.vocab_size, S + 1)
    losses = text_losses(model, ids.tolist())
    expected = model.loss(ids[None, :-1], ids[None, 1:])
    assert len(losses) == S
    # each loss is a logsumexp of float32 logits: a few ulp of values below 2^4
    assert abs(losses.mean() - expected) <= 64 * 2.0**-24 * 16


@pytest.mark.parametrize("stride", [1, 3, S])
def test_every_token_has_its_loss_after_the_tokens_of_its_window(
    model: LanguageModel, stride: int
) -> None:
    """Every loss is that of a window of its own that begins where the definition says."""
    n = 2 * S + 3
    ids = np.random.default_rng(2).integers(0, model.config.vocab_size, n).tolist()
    losses = text_losses(model, ids, stride)
    assert len(losses) == n - 1
    for t in range(1, n, 7):
        start = max(0, -(-(t - S) // stride)) * stride
        alone = text_losses(model, ids[start : t + 1], S)[-1]
        assert abs(losses[t - 1] - alone) <= 64 * 2.0**-24 * 16


def test_the_standard_error_covers_what_repeats() -> None:
    """Of independent losses it is σ/√n; losses that come in equal runs count once per run."""
    independent = np.random.default_rng(3).standard_normal(5000)
    n = len(independent)
    plain = TextLoss(independent, n).standard_error
    # the standard deviation of 50 means has a relative error of 1/√98; 5 of those
    assert abs(plain * math.sqrt(n) - 1) <= 5 / math.sqrt(98)
    repeated = TextLoss(np.repeat(independent[:50], 100), n).standard_error
    expected = independent[:50].std(ddof=1) / math.sqrt(50)
    assert abs(repeated / expected - 1) <= 1e-12


def test_the_command_prints_loss_per_token_and_byte(model: LanguageModel) -> None:
    """Documents are encoded as for training; all bytes of the file count."""
    folder = Path(model.path).parent
    argv = "eval text m.bin text --backend numpy --json".split()
    outcome = in_process([*argv, "--tokenizer", "t.bin"], folder)
    assert outcome.code == 0, outcome.err.decode()
    found = json.loads(outcome.out)
    documents = [b"a cab\n\n", b"hello cab\n\n"] * 9
    ids = [i for document in documents for i in model.tokenizer.encode_document(document)]
    assert (found["tokens"], found["bytes"]) == (len(ids) - 1, 18 * 9)
    nats = text_losses(model, ids).sum()
    assert math.isclose(found["nats_per_byte"] * found["bytes"], nats, rel_tol=1e-12)
    assert math.isclose(found["bits_per_byte"] * math.log(2), found["nats_per_byte"], rel_tol=1e-12)
    assert math.isclose(math.log(found["perplexity"]), found["nats_per_token"], rel_tol=1e-12)


def test_what_is_no_number_is_null_in_json() -> None:
    """The standard error of one token."""
    found = json.loads(_shown(TextLoss(np.ones(1), 1), True), parse_constant=pytest.fail)
    assert (found["tokens"], found["standard_error"]) == (1, None)


@pytest.mark.parametrize(
    ("argv", "code", "error"),
    [
        ((f"--stride={S + 1}",), 2, f"--stride {S + 1}: at most the context, {S}"),
        (("nowhere",), 1, "nowhere: no such file or directory"),
    ],
)
def test_a_misuse_is_one_line(
    model: LanguageModel, argv: tuple[str, ...], code: int, error: str
) -> None:
    folder = Path(model.path).parent
    flags = ("eval", "text", "m.bin", "text", *argv, "--backend", "numpy", "--tokenizer", "t.bin")
    outcome = in_process(flags, folder)
    assert (outcome.code, outcome.out) == (code, b"")
    assert outcome.err.decode().endswith(f"pyllm2: error: {error}\n")
