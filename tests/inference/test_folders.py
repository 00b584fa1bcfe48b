"""Folders of Hugging Face and Meta: recorded logits, texts and chats; what is refused."""

from __future__ import annotations

import dataclasses
import functools
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyllm2
from pyllm2.errors import FileError, PyLLM2Error, PyLLM2Warning
from pyllm2.formats.safetensors_file import write_weights
from pyllm2.inference.language_model import LanguageModel
from pyllm2.testing import model_bound
from tests.support.golden import shared_folder
from tests.support.torch_files import torch_file

SHARED = shared_folder()
REAL = SHARED / "golden" / "real" if SHARED else Path("nowhere")
FOLDERS = sorted((REAL / "hf").glob("*")) + sorted((REAL / "meta").glob("*"))
CHATS = [folder for folder in FOLDERS if (folder / "chat.json").exists()]


def loaded(folder: Path) -> LanguageModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PyLLM2Warning)  # Meta's scaled RoPE
        return _loaded(folder)


@functools.cache
def _loaded(folder: Path) -> LanguageModel:
    return pyllm2.load(folder, backend="numpy")


def recorded(folder: Path, name: str = "expect.json") -> Any:
    return json.loads((folder / name).read_text("utf-8"))


def greedy(model: LanguageModel, ids: list[int], n: int, **options: Any) -> list[int]:
    return [token.id for token in model.generate(ids, n, temperature=0, **options)]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_logits_are_within_the_bound_of_the_recorded(folder: Path) -> None:
    """Of transformers' evaluation in float64, and of our own for Meta's folders."""
    model = loaded(folder)
    with np.load(folder / "expect.npz") as expected:
        ids, logits = expected["input_ids"], expected["logits_f64"]
    error = model_bound(model.model, ids).error
    assert (np.abs(model.logits(ids) - logits) <= error).all()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_texts_are_the_recorded(folder: Path) -> None:
    """From the prompt's text to greedy ids, without and with the folder's own end ids."""
    model, expected = loaded(folder), recorded(folder)
    prompt, ids = expected["prompt_ids"], expected["greedy_ids"]
    assert greedy(model, prompt, len(ids), stop=()) == ids
    if "prompt" in expected:
        assert model.tokenizer.encode_prompt(expected["prompt"]) == prompt
    if "generate_with_own_config_ids" in expected:
        own = expected["generate_with_own_config_ids"]
        assert greedy(model, prompt, len(ids)) == [i for i in own if i not in model.stop]
        assert len(own) == len(ids) or own[-1] in model.stop


@pytest.mark.parametrize("folder", CHATS, ids=lambda folder: folder.name)
def test_chats_are_the_recorded(folder: Path) -> None:
    """Template, ids and reply, end to end; beyond the context too, as transformers does."""
    pytest.importorskip("jinja2")
    model = _loaded.__wrapped__(folder)
    model.model.config = dataclasses.replace(model.config, seq_len=256)
    for case in recorded(folder, "chat.json"):
        chat = model.chat(case["messages"], max_new_tokens=20, temperature=0, stop=())
        assert chat.prompt == case["ids"]
        assert [token.id for token in chat] == case["greedy_ids"]


# ---- folders of our own ----------------------------------------------------------------------

GPT2 = {"architectures": ["GPT2LMHeadModel"], "vocab_size": 20, "n_positions": 16, "n_embd": 8}
GPT2 |= {"n_layer": 1, "n_head": 2}
LLAMA = {"architectures": ["LlamaForCausalLM"], "vocab_size": 20, "hidden_size": 16}
LLAMA |= {"intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
LLAMA |= {"tie_word_embeddings": True, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}


def gpt2_tensors(C: int = 8, F: int = 32, prefix: str = "") -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (20, C), "wpe.weight": (16, C)}
    for name in ("h.0.ln_1", "h.0.ln_2", "ln_f"):
        shapes |= {f"{name}.weight": (C,), f"{name}.bias": (C,)}
    sizes = {"attn.c_attn": (C, 3 * C), "attn.c_proj": (C, C), "mlp.c_fc": (C, F)}
    for name, shape in {**sizes, "mlp.c_proj": (F, C)}.items():
        shapes |= {f"h.0.{name}.weight": shape, f"h.0.{name}.bias": shape[1:]}
    return {prefix + name: shape for name, shape in shapes.items()}


def llama_tensors(C: int = 16, F: int = 24, KV: int = 8) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens": (20, C), "norm": (C,)}
    attention = {"q_proj": (C, C), "k_proj": (KV, C), "v_proj": (KV, C), "o_proj": (C, C)}
    shapes |= {f"layers.0.self_attn.{name}": shape for name, shape in attention.items()}
    ffn = {"gate_proj": (F, C), "up_proj": (F, C), "down_proj": (C, F)}
    shapes |= {f"layers.0.mlp.{name}": shape for name, shape in ffn.items()}
    norms = "input_layernorm", "post_attention_layernorm"
    shapes |= {f"layers.0.{name}": (C,) for name in norms}
    return {f"model.{name}.weight": shape for name, shape in shapes.items()}


def written(folder: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Path:
    """A folder of random weights."""
    rng = np.random.default_rng(1)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))

    def read(name: str) -> np.ndarray:
        return rng.standard_normal(shapes[name]).astype(np.float32)

    path = folder / "model.safetensors"
    write_weights(path, shapes, read, dict.fromkeys(shapes, "F32"), {"format": "pt"})
    return folder


def test_a_narrow_feed_forward_block_and_a_prefix_are_read(tmp_path: Path) -> None:
    """n_inner < 4 · n_embd gives the logits of the block filled up with zeros."""
    shapes = gpt2_tensors(F=12, prefix="transformer.")
    model = pyllm2.load(written(tmp_path, {**GPT2, "n_inner": 12}, shapes), backend="numpy")
    assert model.model.params["fcw"].shape == (1, 32, 8)
    assert not model.model.params["fcw"][0, 12:].any()
    assert np.isfinite(model.logits([1, 2])).all()


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (GPT2, {"activation_function": "relu"}, "activation_function = 'relu': is not supported"),
    (GPT2, {"scale_attn_weights": False}, "scale_attn_weights = False: is not supported"),
    (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx = True: is not supp"),
    (GPT2, {"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon = 1e-06: is not supported"),
    (GPT2, {"n_inner": 33}, "n_inner = 33: is not supported: expected 1 to 4 · n_embd = 32"),
    (GPT2, {"n_head": 3}, "n_embd = 8: must be a multiple of num_heads = 3"),
    (GPT2, {"n_layer": 10**6}, "n_layer = 1000000: the folder has 16 tensors"),
    (GPT2, {"n_layer": 2}, "tensor 'h.1.ln_1.weight' is missing"),
    (GPT2, {"tie_word_embeddings": False}, "tensor 'lm_head.weight' is missing, and tie_word"),
    (GPT2, {"n_embd": "8"}, "n_embd = '8': expected a whole number"),
    (GPT2, {"vocab_size": 10**12}, "vocab_size = 1000000000000: expected a number below"),
    (LLAMA, {"architectures": ["MixtralForCausalLM"]}, "'MixtralForCausalLM'.: is not supported"),
    (LLAMA, {"architectures": None, "model_type": "phi3"}, "model_type = 'phi3': is not supp"),
    (LLAMA, {"architectures": None}, "model_type is missing"),
    (LLAMA, {"architectures": [[]]}, r"architectures = \[\[\]\]: is not supported"),
    (LLAMA, {"quantization_config": {"quant_method": "gptq"}}, r"config is set \(gptq\): quant"),
    (LLAMA, {"num_local_experts": 8}, "num_local_experts = 8: is not supported: a mixture"),
    (LLAMA, {"hidden_act": "gelu"}, "hidden_act = 'gelu': is not supported: expected 'silu'"),
    (LLAMA, {"rope_scaling": {"rope_type": "longrope"}}, "rope_type = 'longrope': is not supp"),
    (LLAMA, {"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing"),
    (LLAMA, {"rope_scaling": {"type": "linear", "factor": -1}}, "factor = -1"),
    (LLAMA, {"rope_scaling": []}, r"rope_scaling = \[\]: expected an object"),
    (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5: is not supported"),
    (LLAMA, {"rope_parameters": {"full_attention": {}}}, "rope_parameters = .*: is not supp"),
    (LLAMA, {"num_attention_heads": 0}, "num_attention_heads = 0: must be at least 1"),
    (LLAMA, {"num_key_value_heads": 3}, "num_key_value_heads = 3: must divide n_heads = 4"),
    (LLAMA, {"num_hidden_layers": -1}, "num_hidden_layers = -1: must be at least 1"),
    (LLAMA, {"num_hidden_layers": 2**30}, "num_hidden_layers = 1073741824: the folder has 11"),
    (LLAMA, {"vocab_size": 21}, r"embed_tokens.weight': shape = \(20, 16\): expected \(21, 16\)"),
    (LLAMA, {"tie_word_embeddings": False}, "tensor 'lm_head.weight' is missing, and tie_word"),
    (LLAMA, {"mlp_bias": True}, "tensor 'model.layers.0.mlp.gate_proj.bias' is missing"),
    (LLAMA, {"rms_norm_eps": float("nan")}, "rms_norm_eps = nan: expected a number"),
]


@pytest.mark.parametrize(("config", "changes", "words"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_not_supported_is_refused_by_name(
    tmp_path: Path, config: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    """File, key, found and expected, in one line."""
    shapes = gpt2_tensors() if config is GPT2 else llama_tensors()
    folder = written(tmp_path / "m", {**config, **changes}, shapes)
    with pytest.raises(FileError, match=words) as error:
        pyllm2.load(folder, backend="numpy")
    assert "\n" not in str(error.value)


def test_the_recorded_configs_are_refused(tmp_path: Path) -> None:
    """Each for the reason that is recorded, by the folder that it was made from."""
    if SHARED is None:
        pytest.skip("no golden files")
    folder = REAL / "hf" / "llama-gqa-tied-bf16"
    for name, case in json.loads((REAL / "refuse" / "configs.json").read_text()).items():
        made = tmp_path / name
        made.mkdir()
        (made / "config.json").write_text(json.dumps(case["config"]))
        (made / "model.safetensors").symlink_to(folder / "model.safetensors")
        with pytest.raises(PyLLM2Error) as error:
            pyllm2.load(made, backend="numpy")
        assert error.value.exit_code == 1, name


def test_other_folders_are_refused(tmp_path: Path) -> None:
    """A folder without a config; without weights; with weights of another kind."""
    with pytest.raises(
        FileError, match=r"is a folder, without config.json \(Hugging Face\) or par"
    ):
        pyllm2.load(tmp_path, backend="numpy")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(FileError, match=r"name a file of it, such as .*m.gguf"):
        pyllm2.load(tmp_path, backend="numpy")
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    with pytest.raises(FileError, match="has no weights that can be read: expected one of model"):
        pyllm2.load(tmp_path, backend="numpy")
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(FileError, match=r"looks like a Git LFS pointer"):
        pyllm2.load(tmp_path, backend="numpy")


def test_a_folder_cannot_be_mapped(tmp_path: Path) -> None:
    folder = written(tmp_path, GPT2, gpt2_tensors())
    with pytest.raises(FileError, match=r"is Hugging Face, and only checkpoints of llama2.c"):
        pyllm2.load(folder, backend="numpy", memory_map=True)
    with pytest.raises(FileError, match=r"is Hugging Face: lenient is for llama2.c"):
        pyllm2.load(folder, backend="numpy", lenient=True)


# ---- Hugging Face's cache --------------------------------------------------------------------


def test_a_name_is_looked_up_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`org/name`, of which the cache has one; another is refused without the network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "models--some-org--tiny.gpt2"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("0" * 40)
    (model / "snapshots").mkdir()
    written(model / "snapshots" / ("0" * 40), GPT2, gpt2_tensors())
    assert pyllm2.load("some-org/tiny.gpt2", backend="numpy").config.channels == 8
    with pytest.raises(FileError, match="some-org/other: no such file or folder, and not in the"):
        pyllm2.load("some-org/other", backend="numpy")


def test_the_context_of_a_folder_of_meta_is_said(tmp_path: Path) -> None:
    """It is in no file: what is taken, and the key that would say it."""
    params = {"dim": 4, "n_layers": 1, "n_heads": 2, "multiple_of": 6, "ffn_dim_multiplier": 0.5}
    shapes = {"tok_embeddings": (8, 4), "norm": (4,), "output": (8, 4)}
    for layer in ("attention_norm", "ffn_norm"):
        shapes[f"layers.0.{layer}"] = (4,)
    shapes |= {f"layers.0.attention.w{name}": (4, 4) for name in "qkvo"}
    shapes |= {f"layers.0.feed_forward.w{n}": (4, 6) if n == 2 else (6, 4) for n in (1, 2, 3)}
    tensors = {f"{name}.weight": np.ones(shape, np.float32) for name, shape in shapes.items()}
    (tmp_path / "consolidated.00.pth").write_bytes(torch_file(tensors))
    for more, words in (
        ({}, "no max_seq_len: 4096 tokens are taken, as usual with rope_theta = 10000"),
        ({"rope_theta": 5e5}, "8192 tokens are taken, as usual with rope_theta = 500000"),
    ):
        (tmp_path / "params.json").write_text(json.dumps({**params, **more}))
        with pytest.warns(PyLLM2Warning, match=words):
            pyllm2.load(tmp_path, backend="numpy")
    (tmp_path / "params.json").write_text(json.dumps({**params, "max_seq_len": 32}))
    assert pyllm2.load(tmp_path, backend="numpy").config.seq_len == 32
