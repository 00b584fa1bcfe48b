"""`pyllm2 gradcheck`: its table, its exit code, its errors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from pyllm2.testing import gradcheck
from tests.support.command import in_process


def test_it_prints_a_line_for_the_gradient_asked_for(tmp_path: Path) -> None:
    """One column per backend, nothing on stderr, the same output for the same seed."""
    argv = ["gradcheck", "gelu", "--examples", "2", "--seed", "3"]
    outcome = in_process(argv, tmp_path)
    notes = [line for line in outcome.err.splitlines() if b"first run only" not in line]
    assert (outcome.code, notes) == (0, [])
    header, line, _ = outcome.out.decode().splitlines()
    assert "numpy" in header
    assert line.startswith("gpt2.gelu ")
    assert line.endswith("ok")
    assert in_process(argv, tmp_path).out == outcome.out


def test_what_is_outside_makes_it_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit code is 1, and the line of the op says so."""

    def outside(name: str, *_: Any) -> gradcheck.Finding:
        return gradcheck.Finding(name, 0.1, 2.0 if name == "llama2.matmul" else 0.5, {})

    monkeypatch.setattr(gradcheck, "check", outside)
    outcome = in_process(["gradcheck"], tmp_path)
    assert outcome.code == 1
    lines = [line.split() for line in outcome.out.decode().splitlines()[1:-1]]
    assert [line[0] for line in lines] == list(gradcheck.NAMES)
    assert [line[0] for line in lines if line[-1] != "ok"] == ["llama2.matmul"]


def test_a_gradient_that_does_not_exist_is_a_usage_error(tmp_path: Path) -> None:
    """The error lists the ops that exist."""
    outcome = in_process(["gradcheck", "softmax"], tmp_path)
    known = ", ".join(("gpt2", "llama2", *gradcheck.NAMES))
    expected = f"pyllm2: error: OP: 'softmax': expected one of {known}\n"
    assert (outcome.code, outcome.out, outcome.err.decode()) == (2, b"", expected)


def test_a_word_may_mean_several_gradients() -> None:
    """A family means all its ops; the name of an op means that op in every family."""
    assert gradcheck.named(None) == list(gradcheck.NAMES)
    assert gradcheck.named("llama2") == [
        f"llama2.{name}" for name in gradcheck.MODELS["llama2"].names
    ]
    assert gradcheck.named("matmul") == ["gpt2.matmul", "llama2.matmul"]
    assert gradcheck.named("llama2.rope") == ["llama2.rope"]
    assert gradcheck.named("gpt2.rope") == []


def test_without_hypothesis_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is one line."""
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    outcome = in_process(["gradcheck"], tmp_path)
    expected = b"pyllm2: error: gradcheck needs hypothesis: pip install 'pyllm2[testing]'\n"
    assert (outcome.code, outcome.out, outcome.err) == (1, b"", expected)
