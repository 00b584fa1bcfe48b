"""`diff --train`: right backends stay inside; the first wrong step is found and can be repeated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2 import backends
from pyllm2.errors import BackendError, FormatError, UsageError
from pyllm2.observe import repro
from pyllm2.observe.lockstep import Hyper, lockstep
from tests.observe.broken import break_op
from tests.observe.models import can_train, fixed, language_models
from tests.support.command import in_process
from tests.support.llama2_files import lay_out
from tests.support.profiles import few
from tests.support.tested import able


def batches(model: Any, steps: int, B: int = 2, T: int = 6, seed: int = 1) -> list[Any]:
    random = np.random.default_rng(seed)
    V, T = model.config.vocab_size, min(T, model.config.seq_len)
    return [(ids[:, :-1], ids[:, 1:]) for ids in random.integers(0, V, (steps, B, T + 1))]


@few(2)
@given(language_models(("llama2", "gpt2")), st.integers(1, 3))
def test_right_backends_stay_inside(drawn: Any, steps: int) -> None:
    model, _ = drawn
    if not can_train(model):
        return
    report = lockstep(model, able(), batches(model, steps))
    assert report.passed, str(report)
    assert len(report.entries) == steps * len(able())


class WrongFrom:
    """AdamW that forgets weight decay from a step on."""

    def __init__(self, ops: Any, step: int) -> None:
        self._ops, self._step = ops, step

    def adamw_update(self, w: Any, dw: Any, m: Any, v: Any, t: int, *hyper: float) -> None:
        if t >= self._step:
            hyper = (*hyper[:4], 0.0)
        self._ops.adamw_update(w, dw, m, v, t, *hyper)


def test_the_first_wrong_update_is_found_and_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, model = backends.ops, fixed("llama2")

    def ops(name: str, threads: int | None = None, package: str = "llama2") -> Any:
        found = right(name, threads, package)
        wrong = package == "training" and name == "numba-strict"
        return WrongFrom(found, 3) if wrong else found

    monkeypatch.setattr(backends, "ops", ops)
    monkeypatch.setattr(backends, "require", lambda _: None)
    if backends.why_not("numba-strict") is not None:
        pytest.skip("needs numba")
    report = lockstep(model, ["numba-strict"], batches(model, 5), out=tmp_path)
    (fault,) = report.faults
    assert fault.ops == ("adamw_update",)
    assert fault.text.startswith("numba-strict: step 3: update of token_embedding, weights is ")
    step = repro.load(tmp_path / "step-3-numba-strict" / "step.npz")
    assert not step.compare(step.run("numba-strict")).inside
    assert step.compare(step.run("numpy")).inside


@pytest.mark.parametrize("family", ["llama2", "gpt2"])
def test_a_wrong_gradient_is_found_and_repeated(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch is as small as shows it; the op is named."""
    op = "swiglu_backward" if family == "llama2" else "gelu_backward"
    break_op(monkeypatch, "numpy", op)
    model = fixed(family)
    report = lockstep(model, ["numpy"], batches(model, 3), out=tmp_path)
    (fault,) = report.faults
    assert fault.ops == (op,), str(report)
    assert f"step 1: {fault.where} is " in str(report)
    assert f"{op}, first at layer" in str(report)
    step = repro.load(tmp_path / "step-1-numpy" / "step.npz")
    assert step.step.x.shape[0] == 1
    assert not step.compare(step.run("numpy")).inside
    monkeypatch.undo()
    assert step.compare(step.run("numpy")).inside


def test_the_script_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five lines; exit code 0 where nothing is wrong any more."""
    break_op(monkeypatch, "numpy", "rmsnorm_backward")
    model = fixed("llama2")
    lockstep(model, ["numpy"], batches(model, 1), out=tmp_path)
    folder = tmp_path / "step-1-numpy"
    assert len((folder / "repro.py").read_text().splitlines()) == 5
    done = subprocess.run([sys.executable, "repro.py"], cwd=folder, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"Measure(share=0.0")


def test_what_is_no_step_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    with pytest.raises(FormatError, match="not a step of a training"):
        repro.load(tmp_path / "x.npz")
    model = fixed("llama2")
    with pytest.raises(UsageError, match="no batches"):
        lockstep(model, ["numpy"], [])
    with pytest.raises(BackendError, match="does not exist"):
        lockstep(model, ["cuda"], batches(model, 1))


def test_drift_is_reported() -> None:
    """Each backend trains on its own too."""
    model = fixed("gpt2")
    names = [name for name in able() if name != "numpy"][:1] or ["numpy"]
    report = lockstep(model, names, batches(model, 2), Hyper(learning_rate=1e-2))
    assert "numpy, on its own: loss " in str(report)


def test_the_command_trains_in_lockstep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path)
    words = ["diff", "m.bin", "--backends", "numpy", "--train", "2"]
    words += ["--batch-size", "1", "--seq-len", "4"]
    outcome = in_process(words, tmp_path)
    assert (outcome.code, outcome.err) == (0, b""), outcome.err
    assert b"2 steps of 1 x 4 tokens, in lockstep, numpy" in outcome.out
    break_op(monkeypatch, "numpy", "swiglu_backward")
    outcome = in_process(words, tmp_path)
    assert outcome.code == 1
    assert (tmp_path / "diff.d" / "step-1-numpy" / "repro.py").exists()
    outcome = in_process([*words, "--seq-len", "999"], tmp_path)
    assert outcome.code == 2
    assert b"--seq-len: 999: the model has 32 positions" in outcome.err
