"""GPT-2 out of files of other programs: keys, the shared classifier, shapes, memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyllm2 import memory
from pyllm2.errors import FormatError, NotEnoughMemoryError
from pyllm2.formats.gguf import read_gguf
from pyllm2.formats.gguf_writer import NewTensor, write_gguf
from pyllm2.formats.json_file import Settings
from pyllm2.formats.safetensors_file import open_safetensors, write_weights
from pyllm2.gpt2 import gguf, huggingface
from pyllm2.gpt2.checkpoint import save_parameters
from pyllm2.gpt2.config import GPT2Config
from pyllm2.gpt2.imported import build
from pyllm2.gpt2.initial import initial_parameters
from pyllm2.llama2 import imported as llama2
from pyllm2.llama2.config import Llama2Config
from tests.support.streamed import streamed
from tests.support.tested import engine_of

CONFIG = GPT2Config(16, 20, 2, 4, 32, 20)


def test_keys_that_are_absent() -> None:
    """The defaults of transformers' class, which are GPT-2's smallest model."""
    config = huggingface.read_config(Settings("config.json", {}))
    assert config == GPT2Config(1024, 50257, 12, 12, 768, 50257)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"n_embd": 770}, "n_embd = 770: must be a multiple of num_heads = 12"),
        ({"add_cross_attention": True}, "add_cross_attention = True: is not supported"),
        ({"n_inner": 3073}, "n_inner = 3073: .* 1 to 4 · n_embd = 3072"),
        ({"n_inner": 0}, "n_inner = 0: .* 1 to 4 · n_embd = 3072"),
    ],
)
def test_what_a_config_json_gets_wrong(values: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError, match=words):
        huggingface.read_config(Settings("config.json", values))


@pytest.mark.parametrize("change", [None, 0.0, 1.0])
def test_a_classifier_of_its_own_must_be_the_embedding(
    tmp_path: Path, change: float | None
) -> None:
    """In GGUF always, in a folder unless it says that they are tied; None: it is not there."""
    params = initial_parameters(CONFIG, 1)
    path = tmp_path / "m.gguf"
    gguf.save(path, streamed(CONFIG, params), "f32")
    whole = read_gguf(path)
    arrays = {name: whole.tensor(name) for name in whole.tensors}
    if change is not None:
        arrays["output.weight"] = arrays["token_embd.weight"].copy()
        arrays["output.weight"][-1, -1] += change
    f32 = whole.tensors["token_embd.weight"].kind
    rows = [NewTensor(n, x.shape, f32, lambda x=x: x) for n, x in arrays.items()]
    write_gguf(path, whole.metadata, rows)
    if change:
        with pytest.raises(FormatError, match=r"tensor 'output.weight' is not that of the embedd"):
            gguf.stream(read_gguf(path))
    else:
        found = gguf.stream(read_gguf(path))[0]
        np.testing.assert_array_equal(found.read("wte", 0), params.wte)

    huggingface.save(tmp_path, streamed(CONFIG, params), "f32")
    file = tmp_path / "model.safetensors"
    stored = {name: place.read(name) for name, place in open_safetensors(file).items()}
    if change is not None:
        stored["lm_head.weight"] = params.wte.copy()
        stored["lm_head.weight"][-1, -1] += change
    shapes = {name: array.shape for name, array in stored.items()}
    write_weights(file, shapes, stored.__getitem__, dict.fromkeys(shapes, "F32"), {})
    config = json.loads((tmp_path / "config.json").read_text())
    for tied in (True, False):
        (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": tied}))
        if not tied and (change or change is None):
            with pytest.raises(FormatError, match=r"'lm_head.weight' is (missing|not that of)"):
                huggingface.stream(tmp_path)
        else:
            found = huggingface.stream(tmp_path)[0]
            np.testing.assert_array_equal(found.read("fcw", 1), params.fcw[1])


def test_shapes_are_checked_before_a_file_is_written(tmp_path: Path) -> None:
    params = dict(initial_parameters(CONFIG, 1))
    for name, shape in (("wte", (19, 32)), ("fcw", (2, 128, 31)), ("lnfb", (33,))):
        wrong = {**params, name: np.zeros(shape, np.float32)}
        with pytest.raises(ValueError, match=f"{name} has shape "):
            save_parameters(tmp_path / "m.bin", CONFIG, wrong)
    assert not list(tmp_path.iterdir())


def test_the_memory_of_the_parameters_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four bytes each and no more, before anything is read; of both families."""
    llama = Llama2Config(16, 24, 1, 4, 2, 20, 8)
    engine = engine_of("numpy")
    zeros = {name: np.zeros(shape, np.float32) for name, shape in CONFIG.shapes().items()}
    others = {name: np.zeros(shape, np.float32) for name, shape in llama.shapes(False).items()}
    source, other = streamed(CONFIG, zeros), streamed(llama, others)

    def unread(name: str, layer: int) -> Any:
        raise AssertionError(name)

    monkeypatch.setattr(memory, "limit", lambda: 4 * CONFIG.parameters())
    build(CONFIG, engine, source.read)
    monkeypatch.setattr(memory, "limit", lambda: 4 * CONFIG.parameters() - 1)
    with pytest.raises(NotEnoughMemoryError, match="for the parameters"):
        build(CONFIG, engine, unread)
    monkeypatch.setattr(memory, "limit", lambda: 4 * llama.parameters(False))
    llama2.build(other, engine)
    monkeypatch.setattr(memory, "limit", lambda: 4 * llama.parameters(False) - 1)
    with pytest.raises(NotEnoughMemoryError, match="for the parameters"):
        llama2.build(replace(other, read=unread), engine)
