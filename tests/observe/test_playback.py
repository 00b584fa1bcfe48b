"""A recorded run as a page: every op, its values, its sources."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyllm2.observe.files import load_trace, save_trace
from pyllm2.observe.playback import playback_page
from pyllm2.observe.step_runs import PromptRun, training_run
from pyllm2.observe.stepper import Stepper
from pyllm2.observe.trace import Only, trace
from tests.observe.models import fixed
from tests.support.command import in_process
from tests.support.html import check_page, check_script

IDS = [1, 5, 7, 5]


def data_of(text: str) -> Any:
    check_page(text)
    return json.loads(re.findall('<script id="data"[^>]*>(.*?)</script>', text, re.DOTALL)[0])


def value(op: Any, name: str) -> Any:
    return next(v for v in op["values"] if v["name"] == name)


@pytest.mark.parametrize("family", ["llama2", "int8", "gpt2"])
def test_every_op_is_on_the_page(family: str, tmp_path: Path) -> None:
    """Small results to the last bit; inputs are results of other ops; weights have no values."""
    found = trace(fixed(family), IDS)
    text = playback_page(found)
    check_script("\n".join(check_page(text).scripts), tmp_path)
    data = data_of(text)
    assert [op["name"] for op in data["ops"]] == [r.name for r in found]
    assert set(data["sources"]) == {r.op for r in found}
    for op, record in zip(data["ops"], found, strict=True):
        assert [v["name"] for v in op["values"]][: len(record.inputs)] == list(record.inputs)
        first = next(iter(record.outputs))
        shown = value(op, first)
        cells = np.frombuffer(base64.b64decode(shown["cells"]), "<f4")
        if not shown["legend"]:
            exact = record.outputs[first].ravel().astype(np.float32)
            np.testing.assert_array_equal(cells[: shown["count"]], exact)
        for v in op["values"]:
            if "from" in v:
                index, name = v["from"]
                made = found[index].outputs[name]
                np.testing.assert_array_equal(made.ravel(), record.inputs[v["name"]].ravel())
            if v["source"] in ("wq[0]", "w1[1]", "wte", "token_embedding"):
                assert "cells" not in v


def test_a_trace_from_a_file_plays_back(tmp_path: Path) -> None:
    """Without the weights, which are not in it; ops whose values were not kept are there too."""
    model = fixed("llama2")
    save_trace(trace(model, IDS, only=Only((("op", "attention"),))), tmp_path / "t.npz")
    data = data_of(playback_page(load_trace(tmp_path / "t.npz")))
    assert len(data["ops"]) == len(trace(model, IDS))
    kept = [op for op in data["ops"] if any("cells" in v for v in op["values"])]
    assert {op["op"] for op in kept} == {"attention"}
    save_trace(trace(model, IDS), tmp_path / "all.npz")
    whole = data_of(playback_page(load_trace(tmp_path / "all.npz")))
    matmul = next(op for op in whole["ops"] if op["op"] == "matmul")
    assert "from" in value(matmul, "x")
    assert "cells" not in value(matmul, "w")


def test_passes_and_updates_have_names() -> None:
    with Stepper(PromptRun(fixed("llama2"), IDS), compare_with=[]) as s:
        s.go(lambda record: False)
        data = data_of(playback_page(s.trace))
    assert {op["pass"] for op in data["ops"]} == {f"token {n}" for n in (1, 2, 3, 4)}
    with Stepper(training_run(fixed("gpt2"), IDS), compare_with=[]) as s:
        s.go(lambda record: False)
        data = data_of(playback_page(s.trace))
    expected = {f"update 1, {phase}" for phase in ("forward", "backward", "update")}
    assert {op["pass"] for op in data["ops"]} == expected
    assert value(data["ops"][-1], "w_new")["cells"]


def test_values_that_json_has_not() -> None:
    """NaN and infinities are in the pictures, and in words."""
    with Stepper(PromptRun(fixed("llama2"), IDS[:1]), compare_with=[]) as s:
        s.assign("out[0, 0] = np.nan")
        s.assign("out[0, 1] = np.inf")
        s.go(lambda record: False)
        data = data_of(playback_page(s.trace))
    shown = value(data["ops"][0], "out")
    assert "1 NaN, 1 infinite" in shown["numbers"]
    cells = np.frombuffer(base64.b64decode(shown["cells"]), "<f4")
    assert np.isnan(cells[0])
    assert np.isinf(cells[1])


def test_the_command(tmp_path: Path) -> None:
    argv = ["step", "--html", "a.html", "--ids", "1,5", "--new-tokens", "0"]
    outcome = in_process(argv, tmp_path)
    assert (outcome.code, outcome.out) == (0, b"")
    assert len(data_of((tmp_path / "a.html").read_text())["ops"]) == 2 * 78
    save_trace(trace(fixed("gpt2"), IDS), tmp_path / "t.npz")
    again = in_process(["step", "--trace", "t.npz", "--html", "b.html"], tmp_path)
    assert again.code == 0, again.err
    assert len(data_of((tmp_path / "b.html").read_text())["ops"]) > 20
    for wrong, code in (
        (["--trace", "t.npz"], 2),
        (["--trace", "nosuch.npz", "--html", "c.html"], 1),
        (["--trace", "a.html", "--html", "c.html"], 1),
        (["--trace", "t.npz", "--html", "t.npz"], 2),
        (["--trace", "t.npz", "--html", "c.html", "model.bin"], 2),
    ):
        outcome = in_process(["step", *wrong], tmp_path)
        assert (outcome.code, outcome.err.count(b"\n")) == (code, 1), wrong
