"""Folders of Meta: what `params.json` says and implies, and tensors that are cut into slices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyllm2.errors import FormatError
from pyllm2.formats import meta
from pyllm2.llama2.meta import KEYS, NAMES, stream
from pyllm2.llama2.rope_scaling import RopeScaling
from pyllm2.parameters import Streamed
from tests.support.torch_files import torch_file

PARAMS = {
    "dim": 8,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "multiple_of": 4,
    "max_seq_len": 9,
}
V, F = 12, 24  # int(2 · 4 · 8 / 3) = 21, rounded up to a multiple of 4
# The axis along which Meta cuts a matrix; vectors are whole in every file.
CUT = dict.fromkeys("wq wk wv w1 w3 classifier".split(), 0) | dict.fromkeys(["wo", "w2"], 1)


def arrays(hidden_dim: int = F) -> dict[tuple[str, int], np.ndarray]:
    """Ours: (name, layer) -> numbers."""
    C, KV = 8, 4
    shapes: dict[str, tuple[int, ...]] = {
        "wq": (C, C),
        "wk": (KV, C),
        "wv": (KV, C),
        "wo": (C, C),
        "attention_norm": (C,),
        "w1": (hidden_dim, C),
        "w2": (C, hidden_dim),
        "w3": (hidden_dim, C),
        "ffn_norm": (C,),
    }
    rng = np.random.default_rng(1)
    places = [(name, layer) for name in shapes for layer in range(2)]
    shapes |= {"token_embedding": (V, C), "final_norm": (C,), "classifier": (V, C)}
    places += [("token_embedding", 0), ("final_norm", 0), ("classifier", 0)]
    return {place: rng.standard_normal(shapes[place[0]]).astype(np.float32) for place in places}


def written(
    folder: Path,
    changes: dict[str, Any] | None = None,
    n: int = 1,
    embedding_axis: int = 0,
    hidden_dim: int = F,
) -> dict[tuple[str, int], np.ndarray]:
    """Write a folder of n files; returns the whole arrays."""
    whole, cut = arrays(hidden_dim), {**CUT, "token_embedding": embedding_axis}
    (folder / "params.json").write_text(json.dumps({**PARAMS, **(changes or {})}))
    for i in range(n):
        part = {
            NAMES[name].format(layer): np.split(x, n, cut[name])[i] if name in cut else x
            for (name, layer), x in whole.items()
        }
        (folder / f"consolidated.{i:02}.pth").write_bytes(torch_file(part))
    return whole


def config_of(folder: Path, **changes: Any) -> Any:
    written(folder, changes)
    return stream(folder)[0].config


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_slices_are_joined(tmp_path: Path, n: int, axis: int) -> None:
    """Rows of some, columns of others; the embedding along either."""
    whole = written(tmp_path, n=n, embedding_axis=axis)
    streamed, notes = stream(tmp_path)
    assert isinstance(streamed, Streamed)
    assert notes == []
    config = streamed.config
    assert (config.vocab_size, config.hidden_dim, config.seq_len) == (V, F, 9)
    for (name, layer), array in whole.items():
        np.testing.assert_array_equal(streamed.read(name, layer), array, name)


def test_a_tensor_that_no_axis_gives_is_refused(tmp_path: Path) -> None:
    written(tmp_path, n=2)
    tensors = meta.open_weights(tmp_path)
    wq = NAMES["wq"].format(0)
    for shape in ((8, 16), (16, 8), (9, 8), (8, 9), (8,)):
        with pytest.raises(
            FormatError, match=r"shape = \(4, 8\): expected .* in 2 slices of equal"
        ):
            tensors.read(wq, shape)
    assert tensors.read(wq, (8, 8)).shape == (8, 8)
    assert tensors.slice_shape(wq) == (4, 8)
    assert tensors.slice_shape("nothing") is None


def test_slices_must_agree(tmp_path: Path) -> None:
    """A file of another model, and one that lacks a tensor."""
    written(tmp_path, n=2)
    wq = NAMES["wq"].format(0)
    for bad, words in (({wq: np.zeros((4, 4), "<f4")}, "missing"), ({}, "missing")):
        (tmp_path / "consolidated.01.pth").write_bytes(torch_file({**bad, "x": np.zeros(1, "<f4")}))
        with pytest.raises(FormatError, match=words):
            meta.open_weights(tmp_path)


@pytest.mark.parametrize(
    ("theta", "scaled", "context"),
    [(None, False, 4096), (5e5, False, 8192), (1e6, False, 16384), (5e5, True, 131072)],
)
def test_the_context_that_no_file_has(
    tmp_path: Path, theta: float | None, scaled: bool, context: int
) -> None:
    """4096 of Llama-2, 8192 of Llama-3, 16384 of CodeLlama, 131072 of Llama-3.1; said in a note."""
    written(tmp_path, {"max_seq_len": None, "rope_theta": theta, "use_scaled_rope": scaled})
    streamed, notes = stream(tmp_path)
    assert streamed.config.seq_len == context
    assert streamed.config.rope_base == (theta or 10000)
    assert streamed.config.rope_scaling == (
        RopeScaling("llama3", 8.0, 8192, 1.0, 4.0) if scaled else None
    )
    assert f"{context} tokens are taken" in notes[0]
    assert len(notes) == 1 + scaled


def test_fields_have_their_keys(tmp_path: Path) -> None:
    config = config_of(tmp_path, norm_eps=2e-3, rope_theta=77, vocab_size=-1)
    assert (config.dim, config.n_layers, config.n_heads, config.n_kv_heads) == (8, 2, 4, 2)
    assert (config.norm_epsilon, config.rope_base) == (2e-3, 77)
    assert config_of(tmp_path, vocab_size=V).vocab_size == V
    with pytest.raises(FormatError, match=f"n_heads = 3: .* {NAMES and 'dim'}|dim = 8"):
        config_of(tmp_path, n_heads=3, n_kv_heads=3)
    assert KEYS["norm_epsilon"] == "norm_eps"


@pytest.mark.parametrize(
    ("changes", "hidden_dim"),
    [
        ({}, 24),
        ({"multiple_of": 1}, 21),
        ({"multiple_of": None}, 256),  # of which it is a multiple by default
        ({"multiple_of": 1, "ffn_dim_multiplier": 1.5}, 31),  # int(21 · 1.5)
        ({"multiple_of": 16, "ffn_dim_multiplier": 1.6}, 48),  # 33
    ],
)
def test_the_width_follows_from_params_json(
    tmp_path: Path, changes: dict[str, Any], hidden_dim: int
) -> None:
    """int(2 · 4 · 8 / 3) = 21, multiplied, cut off, rounded up; another width is refused."""
    written(tmp_path, changes, hidden_dim=hidden_dim)
    assert stream(tmp_path)[0].config.hidden_dim == hidden_dim
    written(tmp_path, changes, hidden_dim=hidden_dim + 4)
    words = f"give {hidden_dim}: {NAMES['w1'].format(0)} has {hidden_dim + 4} rows"
    with pytest.raises(FormatError, match=words):
        stream(tmp_path)
