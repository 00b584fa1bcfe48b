"""`pyllm2 export`: flags, what lies beside a checkpoint, and targets that are there already."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

import pyllm2
from tests.support.command import in_process
from tests.support.llama2_files import checkpoint, lay_out


def exported(folder: Path, *argv: str) -> tuple[int, str]:
    outcome = in_process(("export", *argv), folder)
    return outcome.code, outcome.err.decode()


def test_the_tokenizer_beside_a_checkpoint_goes_along(tmp_path: Path) -> None:
    """tokenizer.bin, without a flag; the folder then needs none."""
    pytest.importorskip("regex")
    lay_out(tmp_path)
    (tmp_path / "t.bin").rename(tmp_path / "tokenizer.bin")
    assert exported(tmp_path, "m.bin", "hf", "--format", "hf")[0] == 0
    found = pyllm2.load(tmp_path / "hf", backend="numpy").tokenizer
    wanted = pyllm2.load(tmp_path / "m.bin", tmp_path / "tokenizer.bin", "numpy").tokenizer
    assert found.encode_prompt("a cab") == wanted.encode_prompt("a cab")


def test_a_model_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    lay_out(tmp_path)
    code, said = exported(tmp_path, "m.bin", "m.gguf", "--format", "gguf")
    assert code == 0
    assert "m.bin: no tokenizer goes with it: name one with --tokenizer" in said
    for source, target in (("m.bin", "hf"), ("hf", "copy")):
        code, said = exported(tmp_path, source, target, "--format", "hf")
        assert code == 0
        assert f"{source}: no tokenizer goes with it: name one with --tokenizer" in said


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_not_quantised(tmp_path: Path, number: float) -> None:
    """It would be the scale of its block or group; the error names tensor and number."""
    data = bytearray(checkpoint())
    data[28 : 28 + 4] = np.float32(number).tobytes()  # behind the header
    lay_out(tmp_path, {"m.bin": bytes(data)})
    for argv, tensor in (
        ("export m.bin x --format gguf --dtype f16", "tensor 'token_embd.weight'"),
        ("export m.bin x --format gguf --dtype q8_0", "tensor 'token_embd.weight'"),
        ("export m.bin x --format v2 --group-size 4", "array 'token_embedding'"),
        ("quantize m.bin x --group-size 4", "array 'token_embedding'"),
    ):
        outcome = in_process(argv.split(), tmp_path)
        assert outcome.code == 1
        assert f"error: x: {tensor} has a number that is {number}: " in outcome.err.decode()
        assert not (tmp_path / "x").exists()


def test_a_chat_template_goes_along(tmp_path: Path) -> None:
    """By name, into either format, and is found there."""
    pytest.importorskip("regex")
    lay_out(tmp_path)
    flags = "--tokenizer t.bin --chat-template chatml".split()
    for to in ("hf", "gguf"):
        assert exported(tmp_path, "m.bin", f"x.{to}", "--format", to, *flags)[0] == 0
        template = pyllm2.load_chat_template(tmp_path / f"x.{to}")
        assert "<|im_start|>user" in template.render([{"role": "user", "content": "hi"}])


REFUSED = [
    ("m.bin x --format v1 --dtype f16", 2, "--dtype f16: format v1 has f32"),
    ("m.bin x --format v2 --dtype f32", 2, "--dtype f32: format v2 has int8 only"),
    ("m.bin m.bin --format v1", 2, "m.bin: the output would overwrite the input"),
    ("m.bin . --format hf", 2, ".: the output would overwrite the input"),
    ("m.bin t.bin --format hf", 1, "t.bin: is no folder: choose a new folder"),
    ("nosuch x --format hf", 1, "nosuch: no such file or directory"),
    ("m.bin x --format llmc", 1, "m.bin: is a Llama-2, which llmc cannot hold: choose v0, v1"),
    ("t.bin x --format hf", 1, "t.bin: looks like a llama2.c tokenizer.bin, not a checkpoint"),
]


@pytest.mark.parametrize(("words", "code", "error"), REFUSED)
def test_what_cannot_be_done_is_refused(tmp_path: Path, words: str, code: int, error: str) -> None:
    """One line; nothing is written."""
    lay_out(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    found, said = exported(tmp_path, *words.split())
    assert found == code
    assert said.startswith(f"pyllm2: error: {error}")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_says_what_ends_a_text(tmp_path: Path) -> None:
    """In config.json and generation_config.json: EOS and BOS, at which run.c stops."""
    pytest.importorskip("regex")
    lay_out(tmp_path)
    assert exported(tmp_path, "m.bin", "hf", "--format", "hf", "--tokenizer", "t.bin")[0] == 0
    for name in ("config.json", "generation_config.json"):
        values = json.loads((tmp_path / "hf" / name).read_text())
        assert (values["bos_token_id"], set(values["eos_token_id"])) == (1, {1, 2})
