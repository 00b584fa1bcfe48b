"""Rows 90 to 95: folders of Hugging Face and Meta."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.hostile.case import Case
from tests.support.torch_files import archive, torch_file

GENERATE = "--backend numpy --temperature 0 --max-new-tokens 4 --prompt a".split()
CONFIG = {"architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 4}
CONFIG |= {"intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIG |= {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}
PARAMS = {"dim": 4, "n_layers": 1, "n_heads": 2, "multiple_of": 6, "ffn_dim_multiplier": 0.5}
SUPPORTED = "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM"
WEIGHTS = "pytorch_model.bin"
EVIL = archive(b"\x80\x02cos\nsystem\n(X\x01\x00\x00\x00atR.", {})
BOMB = archive(b"\x80\x02}.", {"0": bytes(2**20)}, zipfile.ZIP_DEFLATED)

LAYER = "model.layers.0"
SHAPES = {"model.embed_tokens": (8, 4), "model.norm": (4,), f"{LAYER}.input_layernorm": (4,)}
SHAPES |= {f"{LAYER}.self_attn.{c}_proj": (4, 4) for c in "qkvo"}
SHAPES |= {f"{LAYER}.mlp.{name}_proj": (6, 4) for name in ("gate", "up")}
SHAPES |= {f"{LAYER}.mlp.down_proj": (4, 6), f"{LAYER}.post_attention_layernorm": (4,)}
TORCH = torch_file({f"{name}.weight": np.ones(s, np.float32) for name, s in SHAPES.items()})
# A vocabulary of two tokens more than the model has.
TOKENIZER: dict[str, Any] = {
    "model": {"type": "BPE", "vocab": {c: i for i, c in enumerate("abcdefghij")}}
}
TOKENIZER["model"] |= {"merges": []}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
TOKENIZER |= {"decoder": {"type": "ByteLevel"}, "pre_tokenizer": _BYTES, "normalizer": None}


def _made(files: dict[str, Any]) -> Callable[[Path], None]:
    """Makes a folder `hf` with a config and these files; JSON is written of what is no bytes."""

    def make(folder: Path) -> None:
        (folder / "hf").mkdir()
        for name, data in {"config.json": CONFIG, WEIGHTS: TORCH, **files}.items():
            if data is not None:
                content = data if isinstance(data, bytes) else json.dumps(data).encode()
                (folder / "hf" / name).write_bytes(content)

    return make


def bad(row: int, name: str, error: str, **files: Any) -> Case:
    """A refusal of the folder; files: by name, `_` for `.`, None: is not there."""
    named = {key.replace("__", "."): data for key, data in files.items()}
    return Case(row, name, f"hf/{error}", argv=("generate", "hf", *GENERATE), make=_made(named))


def config(row: int, name: str, error: str, **changes: Any) -> Case:
    return bad(row, name, f"config.json: {error}", config__json={**CONFIG, **changes})


INDEX = {"weight_map": {"model.norm.weight": "../m.bin"}}
ABSENT = {"weight_map": {"model.norm.weight": "model-2.safetensors"}}
_HUGE = "shape = (8, 4): expected (8, 1073741824)"

FOLDER_FILES = [
    config(
        90,
        "architecture",
        f"architectures = ['Phi3ForCausalLM']: is not supported: expected one of {SUPPORTED}, "
        "GPT2LMHeadModel",
        architectures=["Phi3ForCausalLM"],
    ),
    config(
        90,
        "gptq",
        "quantization_config is set (gptq): quantised weights are not supported here: use the "
        "original folder, or a GGUF file",
        quantization_config={"quant_method": "gptq"},
    ),
    config(
        90,
        "activation",
        "hidden_act = 'gelu': is not supported: expected 'silu'",
        hidden_act="gelu",
    ),
    config(90, "text", "hidden_size = '4': expected a whole number", hidden_size="4"),
    config(
        90,
        "layers",
        "num_hidden_layers = 1073741824: the folder has 11 tensors",
        num_hidden_layers=2**30,
    ),
    bad(
        90,
        "huge",
        f"{WEIGHTS}: tensor 'model.embed_tokens.weight': {_HUGE}",
        config__json={**CONFIG, "hidden_size": 2**30},
    ),
    bad(
        90,
        "no-json",
        "config.json: not JSON: Expecting value: line 1 column 8 (char 7)",
        config__json=b'{"a" : }',
    ),
    bad(
        91,
        "index-leaves",
        "model.safetensors.index.json: weight_map: 'model.norm.weight' is in '../m.bin': expected "
        "a file of this folder",
        model__safetensors__index__json=INDEX,
    ),
    bad(
        91,
        "index-absent",
        "model.safetensors.index.json: weight_map: 'model.norm.weight' is in "
        "'model-2.safetensors', which is missing: download incomplete?",
        model__safetensors__index__json=ABSENT,
    ),
    bad(
        92,
        "pickle-calls",
        f"{WEIGHTS}: data.pkl: calls 'os.system' (byte 2), which is refused: it could run any code",
        pytorch_model__bin=EVIL,
    ),
    bad(
        92,
        "zip-bomb",
        f"{WEIGHTS}: archive: 'a/data.pkl' is compressed: torch stores its files as they are",
        pytorch_model__bin=BOMB,
    ),
    bad(
        93,
        "end-id",
        "generation_config.json: eos_token_id = 'x': expected an id or a list of ids",
        generation_config__json={"eos_token_id": "x"},
    ),
    bad(
        94,
        "vocabulary",
        "tokenizer.json: has token id 9, hf has ids 0 to 7",
        tokenizer__json=TOKENIZER,
    ),
    bad(
        95,
        "meta-slice",
        "consolidated.00.pth: no such file: download incomplete?",
        config__json=None,
        params__json=PARAMS,
    ),
    bad(
        95,
        "meta-width",
        "params.json: dim, multiple_of and ffn_dim_multiplier give 6: "
        "layers.0.feed_forward.w1.weight has 5 rows",
        config__json=None,
        params__json=PARAMS,
        consolidated__00__pth=torch_file(
            {"tok_embeddings.weight": np.ones((8, 4), np.float32)}
            | {"layers.0.feed_forward.w1.weight": np.ones((5, 4), np.float32)}
        ),
    ),
    bad(
        95,
        "meta-last-slice",
        "params.json: dim, multiple_of and ffn_dim_multiplier give 6: "
        "layers.0.feed_forward.w1.weight has 3 rows: is a consolidated.NN.pth missing?",
        config__json=None,
        params__json=PARAMS,
        consolidated__00__pth=torch_file(
            {"tok_embeddings.weight": np.ones((8, 4), np.float32)}
            | {"layers.0.feed_forward.w1.weight": np.ones((3, 4), np.float32)}
        ),
    ),
]
