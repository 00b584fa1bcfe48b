"""`diff -- ./program`: a program's text is read token by token; ties are no difference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pyllm2
from pyllm2.errors import TokenizerError
from pyllm2.inference.language_model import LanguageModel
from pyllm2.llama2.model import Llama2
from pyllm2.observe.text import compare_text
from tests.observe.models import fixed
from tests.support.command import in_process
from tests.support.llama2_files import BOS, byte_id, lay_out, saying

TEXT = b"plumage"


@pytest.fixture
def model(tmp_path: Path) -> LanguageModel:
    """It says TEXT after BOS, and then EOS."""
    lay_out(tmp_path, {"m.bin": saying(TEXT)})
    return pyllm2.load(tmp_path / "m.bin", tmp_path / "t.bin", "numpy")


def test_the_right_text_is_the_same(model: LanguageModel) -> None:
    """Whatever stands before and after it."""
    for text in (TEXT, b"banner\n" + TEXT + b"\nachieved tok/s: 1\n"):
        report = compare_text(model, [BOS, byte_id(TEXT[0])], len(TEXT), text, "port")
        assert report.passed, str(report)
        assert "tokens, port: the most probable ones are the same" in str(report)


def test_another_token_is_named_with_its_margin(model: LanguageModel) -> None:
    report = compare_text(model, [BOS], len(TEXT), b"plunage", "port")
    (check,) = report.tokens
    assert (check.position, check.expected, check.found) == (3, byte_id(b"m"[0]), byte_id(b"n"[0]))
    assert check.margin > 0.5 > check.allowed
    assert not report.passed
    assert str(report).endswith("outside")


def test_a_tie_is_no_difference(model: LanguageModel) -> None:
    """Two tokens with the same logit: the rest is compared from the program's token on."""
    decoder, m, n = model.model, byte_id(b"m"[0]), byte_id(b"n"[0])
    table, classifier = decoder.weights.token_embedding.copy(), decoder.weights.classifier.copy()
    table[n] = table[m]
    classifier[n] = classifier[m] * np.float32(1 - 2**-23)
    weights = replace(decoder.weights, token_embedding=table, classifier=classifier)
    tied = Llama2(decoder.config, weights, decoder.engine)
    model = LanguageModel(tied, model.tokenizer, "numpy")
    report = compare_text(model, [BOS], len(TEXT), b"plunage", "port")
    assert report.passed, str(report)
    assert "a tie within" in str(report)


def test_a_text_that_ends_early_or_lacks_the_prompt(model: LanguageModel) -> None:
    report = compare_text(model, [BOS], len(TEXT), b"plu", "port")
    assert "token 4, 112, is not in its text" in str(report)
    report = compare_text(model, [BOS, byte_id(b"p"[0])], len(TEXT), b"xyz", "port")
    assert "the prompt is not in its text, which begins with b'xyz'" in str(report)
    with pytest.raises(TokenizerError):
        compare_text(fixed("gpt2"), [1], 3, b"x", "port")


def test_the_command_runs_a_program(tmp_path: Path) -> None:
    lay_out(tmp_path, {"m.bin": saying(TEXT)})
    port = tmp_path / "port"
    port.write_text("#!/bin/sh\ntest -e tokenizer.bin && test $1 = model.bin && cat $2\n")
    port.chmod(0o755)
    (tmp_path / "right").write_bytes(TEXT)
    words = ["diff", "m.bin", "--tokenizer", "t.bin", "--prompt", "", "--steps", "7"]
    args = ["--args", f"{{model}} {tmp_path}/right", "--", "./port"]
    outcome = in_process([*words, *args], tmp_path)
    assert (outcome.code, outcome.err) == (0, b"")
    (tmp_path / "right").write_bytes(b"plunage")
    assert in_process([*words, *args], tmp_path).code == 1
    for more, expected in (
        (["--"], "PROGRAM: expected a program after --"),
        (["--", "./nosuch"], "./nosuch: no such program"),
        (["--backward", "--", "./port"], "--backward: not with a program"),
        (["--steps", "99", "--", "./port"], "--steps: 99: expected 1 to 63"),
        (["--args", "x", "--", "./port"], "expected {model} somewhere"),
    ):
        outcome = in_process([*words, *more], tmp_path)
        assert expected in outcome.err.decode(), outcome.err
        assert outcome.code in (1, 2)
