"""`pyllm2 doctor`: fine, broken, not supported."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyllm2 import stories
from pyllm2.inference.export import export
from pyllm2.llama2 import huggingface
from pyllm2.tokenizers import load_tokenizer
from tests.support.command import in_process
from tests.support.llama2_files import PIECES, checkpoint, lay_out, poisoned, vocabulary
from tests.support.torch_files import archive


def test_files_that_fit_are_fine(tmp_path: Path) -> None:
    """Model and tokenizer; each with the command that takes it."""
    lay_out(tmp_path)
    outcome = in_process(("doctor", "m.bin", "t.bin"), tmp_path)
    assert (outcome.code, outcome.err) == (0, b"")
    assert b"try: pyllm2 generate m.bin\n" in outcome.out
    assert b"t.bin: fine: a tokenizer\n" in outcome.out


def test_the_tokenizer_beside_a_model(tmp_path: Path) -> None:
    """tokenizer.bin, which `generate` takes: it fits; one of another size is a fault."""
    lay_out(tmp_path, {"tokenizer.bin": vocabulary()})
    _, (found,) = examined(tmp_path, "m.bin")
    V = len(PIECES)
    assert f"tokenizer of {V} tokens, the model has {V} ids" in found["lines"]
    lay_out(tmp_path, {"tokenizer.bin": vocabulary(PIECES[:-1])})
    code, (found,) = examined(tmp_path, "m.bin")
    assert code == 1
    assert found["lines"][-1] == f"tokenizer.bin: has {V - 1} tokens, m.bin expects {V}"


def test_faults_are_named(tmp_path: Path) -> None:
    """Cut, NaN, an LFS pointer, a web page: 1; an executable: 3."""
    files = {
        "cut.bin": checkpoint()[:-9],
        "nan.bin": poisoned("w1", np.nan),
        "lfs.bin": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "web.bin": b"<!DOCTYPE html><html></html>",
        "elf.bin": b"\x7fELF" + bytes(600),
    }
    lay_out(tmp_path, files)
    expected = {"cut.bin": 1, "nan.bin": 1, "lfs.bin": 1, "web.bin": 1, "elf.bin": 3, "no.bin": 1}
    for name, code in expected.items():
        outcome = in_process(("doctor", name, "--json"), tmp_path)
        (found,) = json.loads(outcome.out)
        assert (outcome.code, found["code"], outcome.err) == (code, code, b""), outcome
        assert found["lines"]


def examined(folder: Path, *paths: str) -> tuple[int, list[dict[str, Any]]]:
    outcome = in_process(("doctor", *paths, "--json"), folder)
    assert outcome.err == b""
    return outcome.code, json.loads(outcome.out)


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    """The story model as a folder of Hugging Face, with its tokenizer."""
    export(stories.MODEL, tmp_path / "hf", "hf", tokenizer=load_tokenizer(stories.TOKENIZER))  # type: ignore[arg-type]
    return tmp_path


def test_a_folder_is_whole_and_in_order(hf: Path) -> None:
    """Sizes, tokenizer, and that queries and keys are in the right order, measured."""
    code, (found,) = examined(hf, "hf")
    text = "\n".join(found["lines"])
    assert (code, found["kind"]) == (0, "a model of Hugging Face")
    assert "tokenizer of 1024 tokens, the model has 1024 ids" in text
    assert re.search(r"order of queries and keys, .* right \(\d+ standard errors\)", text)
    assert found["command"] == "pyllm2 generate hf"


def test_queries_and_keys_of_the_wrong_order_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a converter that forgot to reorder them writes them: by the loss of a text."""
    monkeypatch.setattr(huggingface, "half_split", lambda rows, heads: rows)
    export(stories.MODEL, tmp_path / "hf", "hf", tokenizer=load_tokenizer(stories.TOKENIZER))  # type: ignore[arg-type]
    code, (found,) = examined(tmp_path, "hf")
    assert code == 1
    assert "had not reordered them" in found["lines"][-1]


def changed_config(folder: Path, **changes: object) -> None:
    path = folder / "hf" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def of_integers(path: Path) -> None:
    """A dtype that the format has and weights have not."""
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + n].replace(b'"F32","shape":[1024,128]', b'"U32","shape":[1024,128]')
    path.write_bytes(data[:8] + header + data[8 + n :])


def with_nan(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-4] + np.float32(np.nan).tobytes())


FAULTS: list[tuple[Any, int, str]] = [
    (lambda f: changed_config(f, quantization_config={"quant_method": "gptq"}), 3, r"\(gptq\)"),
    (lambda f: changed_config(f, architectures=["MixtralForCausalLM"]), 3, "is not supported"),
    (lambda f: changed_config(f, num_hidden_layers=99), 1, "layers.* is missing|the folder has"),
    (lambda f: changed_config(f, intermediate_size=7), 1, r"expected \(7,"),
    (
        lambda f: (f / "hf" / "generation_config.json").write_text('{"eos_token_id": 9999}'),
        1,
        "9999",
    ),
    (lambda f: cut(f / "hf" / "model.safetensors"), 1, r"9 missing\): download incomplete\?"),
    (lambda f: with_nan(f / "hf" / "model.safetensors"), 1, "1 numbers are not finite"),
    (lambda f: of_integers(f / "hf" / "model.safetensors"), 3, "dtype = U32: F32, F16, BF16 and"),
    (lambda f: (f / "hf" / "model.safetensors").write_text(LFS), 1, "a Git LFS pointer"),
    (lambda f: (f / "hf" / "model.safetensors").write_text("<html>" * 9), 1, "a web page"),
    (lambda f: (f / "hf" / "model.safetensors").unlink(), 1, "has no weights"),
    (lambda f: (f / "hf" / "tokenizer.json").write_text("{"), 1, "not JSON"),
    (lambda f: (f / "hf" / "tokenizer.json").write_text("null"), 1, "JSON of the type NoneType"),
    (lambda f: (f / "hf" / "tokenizer.json").write_bytes(bytes(4)), 1, "json: not JSON"),
    (lambda f: (f / "hf" / "tokenizer.json").write_text(""), 1, "json: 0 bytes: download incom"),
    (lambda f: (f / "hf" / "tokenizer.json").write_text(LFS), 1, "a Git LFS pointer"),
    (lambda f: (f / "hf" / "config.json").write_text("[]"), 1, "expected an object|JSON"),
    (lambda f: (f / "hf" / "config.json").unlink(), 1, r"without config.json \(Hugging Face\)"),
    (lambda f: (f / "hf" / "chat_template.jinja").write_text(LFS), 0, "a Git LFS pointer"),
]
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize(("damage", "code", "words"), FAULTS, ids=lambda value: str(value)[:20])
def test_faults_of_a_folder_are_named(hf: Path, damage: Any, code: int, words: str) -> None:
    """Not supported: 3. Damaged, or files that do not fit each other: 1."""
    damage(hf)
    found_code, (found,) = examined(hf, "hf")
    assert (found_code, found["code"]) == (code, code), found
    assert re.search(words, "\n".join(found["lines"])), found


def test_a_part_of_a_folder_points_to_it(hf: Path) -> None:
    """Weights alone cannot be run; elsewhere their config is missing."""
    (hf / "alone.safetensors").write_bytes((hf / "hf" / "model.safetensors").read_bytes())
    (hf / "unnamed").write_bytes((hf / "alone.safetensors").read_bytes())  # known by its head
    files = "hf/model.safetensors", "alone.safetensors", "hf/tokenizer.json", "unnamed"
    code, found = examined(hf, *files)
    assert code == 3
    assert [one["code"] for one in found] == [0, 3, 0, 3]
    assert found[3]["lines"] == found[1]["lines"]
    assert found[0]["command"].startswith("pyllm2 doctor ")
    assert "config.json or params.json is not beside it" in found[1]["lines"][-1]
    assert found[2]["kind"] == "a tokenizer"


def test_gguf_and_pickles_are_examined(hf: Path) -> None:
    """A whole GGUF is fine, one that is cut broken; a pickle of more than tensors is refused."""
    export(hf / "hf", hf / "m.gguf", "gguf")
    (hf / "cut.gguf").write_bytes((hf / "m.gguf").read_bytes()[:-64])
    (hf / "evil.pth").write_bytes(archive(b"\x80\x02cos\nsystem\n(X\x01\x00\x00\x00atR.", {}))
    _, found = examined(hf, "m.gguf", "cut.gguf", "evil.pth")
    assert [one["code"] for one in found] == [0, 1, 3], found
    assert "calls 'os.system'" in found[2]["lines"][-1]
