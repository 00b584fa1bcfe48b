"""`export`: between all formats and back, bit for bit where the dtypes allow it."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyllm2
from pyllm2 import stories
from pyllm2.errors import FileError
from pyllm2.formats.gguf import read_gguf
from pyllm2.formats.tensors import narrowed, widened
from pyllm2.gpt2 import checkpoint as gpt2_checkpoint
from pyllm2.gpt2 import family as gpt2
from pyllm2.gpt2.config import GPT2Config
from pyllm2.inference.containers import open_container
from pyllm2.inference.export import export
from pyllm2.llama2 import checkpoint as llama2_checkpoint
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.initial import random_weights
from pyllm2.parameters import slices
from pyllm2.tokenizers import load_tokenizer
from pyllm2.tokenizers.chat_template import ChatTemplate
from tests.support.golden import shared_folder

SHARED = shared_folder()
HF = (SHARED or Path("nowhere")) / "golden" / "real" / "hf"
FOLDERS = sorted(HF.glob("*")) + sorted((HF.parent / "meta").glob("*"))
NOT_IN_GGUF = {
    "llama-rope-dynamic": "rope_type = dynamic: GGUF has none",
    "mistral-sliding": "windows = 6: GGUF's llama and qwen2 have no window",
    "qwen2-sliding": "windows = 5: GGUF's llama and qwen2 have no window",
}


def numbers(path: Path) -> dict[tuple[str, int], np.ndarray]:
    """Every slice of every array of a model, by name and layer."""
    streamed = open_container(path).streamed
    whole = {name for name in streamed.shapes if name in WHOLE}
    return {key: streamed.read(*key) for key in slices(streamed.shapes, whole)}


WHOLE = {"token_embedding", "final_norm", "classifier", "wte", "wpe", "lnfw", "lnfb"}


def same(one: Path, other: Path) -> bool:
    a, b = numbers(one), numbers(other)
    return a.keys() == b.keys() and all(
        np.array_equal(a[key].view(np.uint32), b[key].view(np.uint32)) for key in a
    )


@pytest.fixture
def gpt2_file(tmp_path: Path) -> Path:
    """Whose token table has padding rows."""
    config = GPT2Config(16, 20, 2, 4, 32, 24)
    params = gpt2.initial_parameters(config, 1)
    params.wte[20:] = 0
    gpt2_checkpoint.save_parameters(tmp_path / "m.bin", config, params)
    return tmp_path / "m.bin"


def test_a_gpt2_goes_through_every_format(gpt2_file: Path, tmp_path: Path) -> None:
    """llm.c, Hugging Face, GGUF and back; only the padding rows are lost."""
    hf, gguf, again = tmp_path / "hf", tmp_path / "m.gguf", tmp_path / "again.bin"
    for source, target, to in ((gpt2_file, hf, "hf"), (hf, gguf, "gguf"), (gguf, again, "llmc")):
        export(source, target, to)
    ours, found = (pyllm2.load(p, backend="numpy") for p in (gpt2_file, again))
    assert found.config == dataclasses.replace(ours.config, padded_vocab_size=20)
    for name, array in ours.model.params.items():
        kept = array[:20] if name == "wte" else array
        assert np.array_equal(found.model.params[name], kept), name


def test_the_loss_is_that_of_the_checkpoint(gpt2_file: Path, tmp_path: Path) -> None:
    """Of a folder of Hugging Face, to the last bit: the weights are the same."""
    export(gpt2_file, tmp_path / "hf", "hf")
    x = np.arange(12).reshape(2, 6) % 20
    ours, found = (pyllm2.load(p, backend="numpy") for p in (gpt2_file, tmp_path / "hf"))
    assert ours.loss(x, (x + 1) % 20) == found.loss(x, (x + 1) % 20)


def test_a_dtype_rounds_to_the_nearest(gpt2_file: Path, tmp_path: Path) -> None:
    """bf16 in llm.c's version 5 and in a folder, f16 in GGUF."""
    before = numbers(gpt2_file)
    for to, dtype in (("llmc", "bf16"), ("hf", "bf16"), ("hf", "f16"), ("gguf", "f16")):
        target = tmp_path / f"{to}-{dtype}"
        export(gpt2_file, target, to, dtype)
        for (name, layer), array in numbers(target).items():
            kept = before[name, layer][: len(array)]
            is_vector = to == "gguf" and (kept.ndim == 1 or name == "wpe")
            wanted = kept if is_vector else widened(narrowed(kept, dtype.upper()))
            assert np.array_equal(array, wanted.astype(np.float32)), (to, dtype, name)


def test_an_error_names_the_folder_that_was_asked_for(
    gpt2_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the temporary one; nothing is left of either."""
    monkeypatch.chdir(tmp_path)
    model = gpt2_file.read_bytes()
    gpt2_file.write_bytes(model[:-4] + np.float32(1e30).tobytes())
    for target in ("x", os.fspath(tmp_path / "x")):
        with pytest.raises(FileError, match=rf"^{target}/model.safetensors: tensor .* for F16"):
            export(gpt2_file, target, "hf", "f16")
    assert list(tmp_path.iterdir()) == [gpt2_file]


@pytest.mark.parametrize("name", ["../../x", "/x", "\ud800", "a b", ""])
def test_a_chat_template_cannot_choose_where_it_is_written(tmp_path: Path, name: str) -> None:
    """The name comes with the model."""
    template = ChatTemplate({name: "hi"}, "a model", {})
    for to in ("hf", "gguf"):
        with pytest.raises(FileError, match=r"chat template .*: expected letters, digits"):
            export(stories.MODEL, tmp_path / "out", to, template=template)
    assert not list(tmp_path.iterdir())


def test_chat_templates_by_name_go_with_a_folder(tmp_path: Path) -> None:
    """The default beside the weights, others in a folder of their own, which is made."""
    sources = {"default": "a", "tool_use": "b", "rag": "c\ud800"}
    export(stories.MODEL, tmp_path / "out", "hf", template=ChatTemplate(sources, "x", {}))
    found = {
        path.relative_to(tmp_path / "out").as_posix(): path.read_bytes()
        for path in (tmp_path / "out").rglob("*.jinja")
    }
    assert found == {
        "chat_template.jinja": b"a",
        "additional_chat_templates/tool_use.jinja": b"b",
        "additional_chat_templates/rag.jinja": b"c\xed\xa0\x80",
    }


@pytest.mark.parametrize("shared", [True, False])
def test_a_checkpoint_of_llama2c_goes_through_every_format(tmp_path: Path, shared: bool) -> None:
    config = Llama2Config(32, 48, 2, 4, 2, 40, 16)
    weights = vars(random_weights(config, shared, 1))
    params = {name: array for name, array in weights.items() if array is not None}
    first = tmp_path / "m.bin"
    llama2_checkpoint.save_parameters(first, config, params)
    hf, gguf, v0, v1 = (tmp_path / name for name in ("hf", "m.gguf", "v0.bin", "v1.bin"))
    steps = ((first, hf, "hf"), (hf, gguf, "gguf"), (gguf, v1, "v1"), (v1, v0, "v0"))
    for source, target, to in steps:
        export(source, target, to)
        assert same(first, target), to
    assert v0.read_bytes() == first.read_bytes()


def test_int8_is_the_same_from_every_format(tmp_path: Path) -> None:
    """v2 of a folder has the bytes of v2 of the checkpoint."""
    export(stories.MODEL, tmp_path / "hf", "hf")
    for source, target in ((stories.MODEL, "a.bin"), (tmp_path / "hf", "b.bin")):
        export(source, tmp_path / target, "v2", group_size=32)
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_tokenizer_and_end_go_with_a_model_of_ours(tmp_path: Path, to: str) -> None:
    """The story model writes the same story, and ends where it ended."""
    pytest.importorskip("regex")
    target = tmp_path / "out"
    export(stories.MODEL, target, to, tokenizer=load_tokenizer(stories.TOKENIZER))  # type: ignore[arg-type]
    ours, found = pyllm2.load(backend="numpy"), pyllm2.load(target, backend="numpy")
    assert found.tokenizer.encode_prompt("Once upon") == ours.tokenizer.encode_prompt("Once upon")
    texts = [
        b"".join(t.bytes for t in m.generate("Once", 30, temperature=0)) for m in (ours, found)
    ]
    assert texts[0] == texts[1]
    assert set(found.stop) == set(ours.stop)


@pytest.mark.parametrize("to", ["hf", "gguf"])
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_recorded_folder_comes_back(tmp_path: Path, folder: Path, to: str) -> None:
    """Weights and config, tokenizer and template, through GGUF too where that can hold them."""
    pytest.importorskip("regex")
    target, again = tmp_path / "out", tmp_path / "again"
    if to == "gguf" and folder.name in NOT_IN_GGUF:
        with pytest.raises(FileError, match=NOT_IN_GGUF[folder.name]):
            export(folder, target, to)
        return
    export(folder, target, to)
    export(target, again, "hf")
    assert same(folder, again)
    ours, found = (open_container(path) for path in (folder, again))
    config, wanted = found.streamed.config, ours.streamed.config
    for field in dataclasses.fields(wanted):
        a, b = getattr(config, field.name), getattr(wanted, field.name)
        if isinstance(b, float):
            a, b = np.float32(a), np.float32(b)
        assert a == b, field.name
    text = "Once upon a time 123 \n x"
    assert load_tokenizer(again).encode_prompt(text) == load_tokenizer(folder).encode_prompt(text)
    ends = ours.tokenizer().stop if ours.end_ids is None else ours.end_ids  # type: ignore[union-attr]
    assert found.end_ids == ends or to == "gguf"


@pytest.mark.parametrize(
    ("ends", "eos", "eot"),
    [(2, 2, None), (None, 2, None), (5, 5, None), ([2, 5], 2, 5), ([7, 5], 7, 5)],
)
def test_what_ends_a_text_goes_into_gguf(
    tmp_path: Path, ends: Any, eos: int, eot: int | None
) -> None:
    """Where the config says other ids than the tokenizer, whose end is 2."""
    pytest.importorskip("regex")
    folder = tmp_path / "hf"
    export(stories.MODEL, folder, "hf", tokenizer=load_tokenizer(stories.TOKENIZER))  # type: ignore[arg-type]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": ends}))
    export(folder, tmp_path / "m.gguf", "gguf")
    metadata = read_gguf(tmp_path / "m.gguf").metadata
    found = [metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot")]
    assert found == [eos, eot]


def test_a_family_has_its_own_formats(gpt2_file: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="is a GPT-2, which v1 cannot hold: choose llmc, hf, gguf"):
        export(gpt2_file, tmp_path / "x", "v1")
    with pytest.raises(FileError, match="is a Llama-2, which llmc cannot hold: choose v0"):
        export(stories.MODEL, tmp_path / "x", "llmc")
    with pytest.raises(ValueError, match="dtype f16: v1 has f32"):
        export(stories.MODEL, tmp_path / "x", "v1", "f16")


def folder_of(tmp_path: Path, **changes: Any) -> Path:
    """The story model as a folder, with other keys in its config."""
    export(stories.MODEL, tmp_path / "hf", "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return tmp_path / "hf"


def test_what_llama2c_cannot_hold_is_refused_or_left_out(tmp_path: Path) -> None:
    """By name and value; with force the rest is written, with a warning."""
    folder, target = folder_of(tmp_path, rope_theta=5e5, rms_norm_eps=1e-6), tmp_path / "x.bin"
    words = "v1 has no place for norm_epsilon = 1e-06, rope_base = 500000.0"
    with pytest.raises(FileError, match=words):
        export(folder, target, "v1")
    assert not target.exists()
    found = export(folder, target, "v1", drop_unsupported=True)
    assert words in found.notes[-1]
    assert same(target, Path(stories.MODEL))


def test_what_no_format_holds_is_refused_with_force_too(tmp_path: Path) -> None:
    """A head size of its own: the shapes are others."""
    golden = HF / "llama-bias-headdim"
    if not golden.exists():
        pytest.skip("no golden files")
    with pytest.raises(FileError, match="no place for head_size = 12, qkv_bias = True"):
        export(golden, tmp_path / "x.bin", "v0", drop_unsupported=True)
