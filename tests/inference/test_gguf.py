"""Models in GGUF: the recorded logits and texts, and what is refused."""

from __future__ import annotations

import dataclasses
import functools
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyllm2
from pyllm2 import backends
from pyllm2.errors import FileError, PyLLM2Warning
from pyllm2.formats.gguf import read_gguf
from pyllm2.formats.gguf_writer import NewTensor, write_gguf
from pyllm2.gpt2 import gguf as gpt2_gguf
from pyllm2.gpt2 import imported as gpt2_imported
from pyllm2.gpt2.config import GPT2Config
from pyllm2.gpt2.initial import initial_parameters
from pyllm2.inference.language_model import LanguageModel
from pyllm2.llama2 import gguf as llama2_gguf
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.imported import WITHOUT_LAYERS
from pyllm2.llama2.rope_scaling import RopeScaling, yarn_attention_factor
from pyllm2.parameters import Packed, PackedLayers, Streamed
from pyllm2.testing import model_bound
from tests.support.golden import shared_folder

SHARED = shared_folder()
REAL = SHARED / "golden" / "real" if SHARED else Path("nowhere")
MODELS = sorted(
    p for p in (REAL / "gguf").rglob("*.gguf") if p.with_suffix(".expect.json").exists()
)
AVAILABLE = [name for name in backends.NAMES if backends.why_not(name) is None]


def recorded(path: Path) -> Path:
    """Where the logits and the text are: hf-NAME.gguf is the model of hf/NAME."""
    if path.stem.startswith("hf-"):
        return REAL / "hf" / path.stem[3:] / "expect"
    return path.with_suffix(".expect")


def recorded_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(f"{recorded(path)}.npz") as arrays:
        return dict(arrays)


@functools.cache
def loaded(path: Path, backend: str) -> LanguageModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PyLLM2Warning)
        return pyllm2.load(path, backend=backend)


@functools.cache
def bound(path: Path) -> np.ndarray:
    """The error allowed to float32, (T, 1)."""
    model = loaded(path, "numpy").model
    return model_bound(model, recorded_arrays(path)["input_ids"]).error


@pytest.mark.parametrize("backend", AVAILABLE)
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_logits_are_within_the_bound_of_the_recorded(path: Path, backend: str) -> None:
    """Of a float64 evaluation of the dequantised weights."""
    expected = recorded_arrays(path)
    logits = loaded(path, backend).logits(expected["input_ids"])
    assert (np.abs(logits - expected["logits_f64"]) <= bound(path)).all()


@pytest.mark.parametrize("backend", [n for n in AVAILABLE if n in ("numpy", "numba")])
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_greedy_texts_are_the_recorded(path: Path, backend: str) -> None:
    """transformers' ids from the same weights; every margin exceeds the bound."""
    expected = json.loads(recorded(path).with_suffix(f"{recorded(path).suffix}.json").read_text())
    model, prompt = loaded(path, backend), expected["prompt_ids"]
    tokens = model.generate(prompt, len(expected["greedy_ids"]), temperature=0, stop=())
    assert [token.id for token in tokens] == expected["greedy_ids"]
    assert model.tokenizer.encode_prompt(expected["prompt"]) == prompt


# ---- files of our own ------------------------------------------------------------------------

SHAPE = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2}
SHAPE |= {"vocab_size": 20, "seq_len": 16}
YARN = RopeScaling("yarn", factor=4.0, original=8, attention_factor=yarn_attention_factor(4.0))
VARIANTS: dict[str, dict[str, Any]] = {
    "llama2.c": {},
    "head size": {"head_size": 12, "norm_epsilon": 2**-20, "rope_base": 5e5},
    "biases": {"qkv_bias": True, "output_bias": True, "ffn_bias": True},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"head_norm": True, "head_size": 16},
    "linear": {"rope_scaling": RopeScaling("linear", factor=2.5)},
    "yarn": {"rope_scaling": YARN},
    "yarn, own factor": {"rope_scaling": dataclasses.replace(YARN, attention_factor=1.5)},
    "divisors": {"rope_scaling": RopeScaling("divisors", divisors=(1.0, 1.5, 2.0, 8.0))},
}


def llama(changes: dict[str, Any], shared: bool = True) -> tuple[Llama2Config, dict[str, Any]]:
    """A config and random weights of its shapes."""
    config, rng = Llama2Config(**{**SHAPE, **changes}), np.random.default_rng(1)
    shapes = config.shapes(shared).items()
    return config, {n: rng.standard_normal(s).astype(np.float32) / 4 for n, s in shapes}


def streamed(config: Any, arrays: Any, whole: tuple[str, ...] = WITHOUT_LAYERS) -> Streamed:
    shapes = {name: array.shape for name, array in arrays.items()}

    def read(name: str, layer: int) -> Any:
        return arrays[name] if name in whole else arrays[name][layer]

    return Streamed("memory", config, shapes, read)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_llama_is_read_as_it_was_written(tmp_path: Path, variant: str, shared: bool) -> None:
    """Config and weights, bit for bit in f32."""
    config, arrays = llama(VARIANTS[variant], shared)
    path = tmp_path / "m.gguf"
    llama2_gguf.save(path, streamed(config, arrays), "f32")
    model = pyllm2.load(path, backend="numpy")
    found, scaling = model.config, model.config.rope_scaling
    if scaling is not None:
        factor = float(np.float32(scaling.attention_factor))
        scaling = dataclasses.replace(scaling, attention_factor=factor)
        wanted = dataclasses.replace(
            config.rope_scaling,
            attention_factor=float(np.float32(config.rope_scaling.attention_factor)),
        )
        assert scaling == wanted
        found = dataclasses.replace(found, rope_scaling=config.rope_scaling)
    assert np.float32(found.norm_epsilon) == np.float32(config.norm_epsilon)
    found = dataclasses.replace(found, norm_epsilon=config.norm_epsilon)
    assert found == config
    for name, array in arrays.items():
        assert np.array_equal(getattr(model.model.weights, name), array), name


def test_a_gpt2_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Without the padding of the vocabulary."""
    config = GPT2Config(16, 20, 2, 4, 32, 24)
    params = initial_parameters(config, 1)
    path = tmp_path / "m.gguf"
    gpt2_gguf.save(path, streamed(config, params, gpt2_imported.WITHOUT_LAYERS), "f32")
    model = pyllm2.load(path, backend="numpy")
    assert model.config == dataclasses.replace(config, padded_vocab_size=20)
    for name, array in params.items():
        found = model.model.params[name]
        assert np.array_equal(found, array[:20] if name == "wte" else array), name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"windows": (4, 0)}, "windows = 4: GGUF's llama and qwen2 have no window"),
        ({"rope_scaling": RopeScaling("dynamic", 2.0, 8)}, "rope_type = dynamic: GGUF has"),
        ({"head_norm": True, "qkv_bias": True}, "qkv_bias = True: GGUF's qwen3 has no biases"),
    ],
)
def test_what_gguf_cannot_hold_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    config, arrays = llama(changes)
    with pytest.raises(pyllm2.errors.ConfigError, match=words):
        llama2_gguf.save(tmp_path / "m.gguf", streamed(config, arrays))
    assert not list(tmp_path.iterdir())


# ---- what is refused -------------------------------------------------------------------------


def changed(tmp_path: Path, metadata: dict[str, Any], tensors: dict[str, Any]) -> Path:
    """A small llama with other metadata (None: without the entry) and tensors (None: without)."""
    config, arrays = llama({})
    path = tmp_path / "m.gguf"
    llama2_gguf.save(path, streamed(config, arrays), "f32")
    whole = read_gguf(path)
    values = {k: v for k, v in {**whole.metadata, **metadata}.items() if v is not None}
    numbers = {name: whole.tensor(name) for name in whole.tensors} | tensors
    f32 = whole.tensors["token_embd.weight"].kind
    rows = [
        NewTensor(name, x.shape, f32, lambda x=x: x) for name, x in numbers.items() if x is not None
    ]
    write_gguf(path, values, rows)
    return path


LIES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"general.architecture": "gemma"}, {}, r"general.architecture = 'gemma' \(byte \d+\): supp"),
    ({"general.architecture": None}, {}, "general.architecture is missing"),
    ({"llama.expert_count": 8}, {}, r"llama.expert_count = 8 \(byte \d+\): is not supported"),
    ({"llama.block_count": 3}, {}, "tensor 'blk.2.attn_norm.weight' is missing"),
    ({"llama.block_count": 2**31}, {}, "block_count = 2147483648 .*: the file has 20 tensors"),
    ({"llama.block_count": 1}, {}, "tensor 'blk.1.attn_norm.weight' .*: not part of this"),
    ({"llama.embedding_length": 64}, {}, r"shape = \(20, 32\): expected \(20, 64\)"),
    ({"llama.embedding_length": "32"}, {}, "embedding_length = '32' .*: must be a whole number"),
    ({"llama.attention.head_count": 0}, {}, r"head_count = 0 \(byte \d+\): must be at least 1"),
    ({"llama.attention.head_count_kv": 3}, {}, "head_count_kv = 3 .*: must divide n_heads = 4"),
    (
        {"llama.attention.head_count_kv": np.array([2, 1], np.uint32)},
        {},
        "head_count_kv = array.*: must be one whole number for all layers",
    ),
    ({"llama.attention.key_length": 7}, {}, r"key_length = 7 \(byte \d+\): must be even"),
    ({"llama.attention.value_length": 4}, {}, "value_length = 4 .*: must be the head size, 8"),
    ({"llama.rope.dimension_count": 4}, {}, "dimension_count = 4 .*: must be the head size, 8"),
    ({"llama.rope.scaling.type": "longrope"}, {}, "type = 'longrope' .*: supported are none"),
    ({"llama.rope.scaling.factor": -2.0}, {}, "factor = -2.0 .*: must be a number above 0"),
    ({"llama.rope.freq_base": 0.0}, {}, "freq_base = 0.0 .*: must be above 1"),
    ({"llama.attention.layer_norm_rms_epsilon": None}, {}, "rms_epsilon is missing"),
    ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, {}, "rms_epsilon = nan .* finite"),
    ({"llama.vocab_size": 21}, {}, "vocab_size = 21 .*: token_embd.weight has 20 rows"),
    ({}, {"token_embd.weight": None}, "tensor 'token_embd.weight' is missing"),
    ({}, {"blk.0.attn_q.bias": np.zeros(32)}, "tensor 'blk.1.attn_q.bias' is missing"),
    ({}, {"blk.0.ffn_gate_exps.weight": np.zeros(32)}, "ffn_gate_exps.weight' .*: not part of"),
    ({}, {"output.weight": np.zeros((20, 16))}, r"'output.weight' .*: shape = \(20, 16\): exp"),
    ({}, {"rope_freqs.weight": np.zeros(4)}, "divisors = .*: must be numbers above 0"),
    ({}, {"rope_freqs.weight": np.ones(3)}, "rope divisors = 3: must be one per pair: 4"),
]


@pytest.mark.parametrize(("metadata", "tensors", "words"), LIES)
def test_a_model_that_is_not_right_is_refused_by_name(
    tmp_path: Path, metadata: dict[str, Any], tensors: dict[str, Any], words: str
) -> None:
    path = changed(tmp_path, metadata, tensors)
    with pytest.raises(FileError, match=words) as error:
        pyllm2.load(path, backend="numpy")
    assert "\n" not in str(error.value)


def test_a_window_is_ignored_with_a_warning(tmp_path: Path) -> None:
    """As llama.cpp does."""
    path = changed(tmp_path, {"llama.attention.sliding_window": 4}, {})
    with pytest.warns(PyLLM2Warning, match="sliding_window = 4: ignored, as llama.cpp does"):
        pyllm2.load(path, backend="numpy")


def test_constant_arrays_and_old_names_are_read(tmp_path: Path) -> None:
    """One number per layer, and the very old name of a linear factor."""
    metadata = {
        "llama.attention.head_count_kv": np.array([2, 2], np.int32),
        "llama.rope.scale_linear": 2.0,
    }
    model = pyllm2.load(changed(tmp_path, metadata, {}), backend="numpy")
    assert model.config.n_kv_heads == 2
    assert model.config.rope_scaling == RopeScaling("linear", factor=2.0)


def test_a_file_of_gguf_cannot_be_mapped(tmp_path: Path) -> None:
    path = changed(tmp_path, {}, {})
    with pytest.raises(FileError, match="is GGUF, and only checkpoints"):
        pyllm2.load(path, backend="numpy", memory_map=True)


# ---- blocks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["llama2.c", "qwen3"])
@pytest.mark.parametrize("dtype", ["q8_0", "q4_0"])
def test_matrices_stay_in_blocks(tmp_path: Path, dtype: str, variant: str) -> None:
    """And take the bytes that they have in the file, unless they are expanded; the same logits."""
    config, arrays = llama(VARIANTS[variant], shared=False)
    path = tmp_path / "m.gguf"
    llama2_gguf.save(path, streamed(config, arrays), dtype)
    packed, expanded = (pyllm2.load(path, backend="numpy", unpack=u) for u in (False, True))
    weights, gguf, found = packed.model.weights, read_gguf(path), 0
    for name, array in vars(weights).items():
        if array is None:
            continue
        names = {llama2_gguf.NAMES[name].format(layer) for layer in range(config.n_layers)}
        assert array.nbytes == sum(gguf.tensors[n].nbytes for n in names), name
        found += isinstance(array, Packed | PackedLayers)
    assert found == 9
    assert all(isinstance(a, np.ndarray | None) for a in vars(expanded.model.weights).values())
    ids = [1, 5, 2, 7]
    assert np.array_equal(packed.logits(ids), expanded.logits(ids))
    assert np.array_equal(pickle.loads(pickle.dumps(expanded)).logits(ids), expanded.logits(ids))
