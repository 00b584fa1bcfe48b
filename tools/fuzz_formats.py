"""Damage the files of other programs' models: Hugging Face, Meta, GGUF, tokenizers and templates.

    python -m tools.fuzz_formats --cases 2000 --seed 1

As `fuzz_files`, with one more way to damage: a file with JSON in it (a config, an index, a
tokenizer, the header of safetensors) is changed as JSON half of the time, a value or a key, so that
the lie is deeper than the parser. Exit code 0 if nothing failed.
"""

from __future__ import annotations

import json
import random
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np

from pyllm2.formats.safetensors_file import write_weights
from pyllm2.gpt2 import family as gpt2
from pyllm2.inference.containers import open_container
from pyllm2.llama2.huggingface import NAMES as HF_NAMES
from pyllm2.llama2.imported import WITHOUT_LAYERS
from pyllm2.llama2.meta import NAMES as META_NAMES
from pyllm2.parameters import slices
from tests.support.command import in_process
from tests.support.llama2_files import SHAPE, checkpoint, lay_out
from tests.support.torch_files import torch_file
from tools.fuzz_files import Kind, fuzz, options_for
from tools.fuzzing import mutate

ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1e308, -0.5, "", "x" * 300, "é\0", "../m.bin"),
    *([], {}, [[]], [1, -1], {"": None}, ["a b", "b a"], {"type": "Sequence"}, "{{ 7 * 7 }}"),
)
BACKEND = "--backend numpy".split()


def _commands(model: str) -> list[list[str]]:
    """Everything that reads a model."""
    generate = ["generate", model, *BACKEND, *"--max-new-tokens 2 --seed 1 --prompt a".split()]
    return [
        generate,
        [*generate, "--chat"],
        ["doctor", model],
        ["export", model, "out.bin", "--format", "v1", "--drop-unsupported", "--force"],
        ["export", model, "out", "--format", "hf", "--force"],
        ["export", model, "out.gguf", "--format", "gguf", "--dtype", "f16", "--force"],
        ["quantize", model, "out.bin", "--group-size", "4", "--force"],
    ]


def _tokenize(path: str) -> list[list[str]]:
    return [["tokenize", "--tokenizer", path, "--pieces", "a cab <s> é"], ["doctor", path]]


def _of(model: str, *files: str) -> list[Kind]:
    return [(f"{model}/{file}", f"{model}/{file}", None, _commands(model)) for file in files]


KINDS: list[Kind] = [
    *_of("hf", "config.json", "model.safetensors", "generation_config.json", "tokenizer.json"),
    *_of("hf", "tokenizer_config.json", "chat_template.jinja"),
    *_of("sharded", "model.safetensors.index.json", "model-2.safetensors", "config.json"),
    *_of("torch", "pytorch_model.bin"),
    *_of("gpt2", "config.json", "model.safetensors", "tokenizer.json"),
    *_of("meta", "params.json", "consolidated.00.pth", "consolidated.01.pth"),
    ("m.gguf", "m.gguf", None, _commands("m.gguf")),
    ("gpt2.gguf", "gpt2.gguf", None, _commands("gpt2.gguf")),
    ("tokenizer.json", "hf/tokenizer.json", None, _tokenize("hf/tokenizer.json")),
    ("tokenizer.model", "text.model", None, _tokenize("text.model")),
    ("ranks", "meta/tokenizer.model", None, _tokenize("meta/tokenizer.model")),
]


def prepare(folder: Path) -> None:
    """One small model in every container, with tokenizer and template."""
    folder.mkdir()
    lay_out(folder, {"m.bin": checkpoint(1, False)})
    config = gpt2.descriptor("layers=1,heads=2,channels=8,context=16", 257)
    gpt2.save_parameters(folder / "g.bin", config, gpt2.initial_parameters(config))
    (folder / "t.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    (folder / "text.txt").write_text("one two three four five six seven eight nine\n\n" * 20)
    for words in (
        "export m.bin hf --format hf --dtype f16 --tokenizer t.bin --chat-template t.jinja",
        "export m.bin m.gguf --format gguf --tokenizer t.bin --chat-template t.jinja",
        "export g.bin gpt2 --format hf --tokenizer bytes",
        "export g.bin gpt2.gguf --format gguf --tokenizer bytes",
        "tokenizer train text.txt --vocab-size 280 --out text.model",
    ):
        outcome = in_process(words.split(), folder)
        if outcome.code:
            raise SystemExit(outcome.err.decode())
    streamed = open_container(folder / "m.bin").streamed
    numbers = {key: streamed.read(*key) for key in slices(streamed.shapes, WITHOUT_LAYERS)}
    settings = (folder / "hf" / "config.json").read_text()
    _write_sharded(folder / "sharded", settings, numbers)
    (folder / "torch").mkdir()
    (folder / "torch" / "config.json").write_text(settings)
    named = {HF_NAMES[name].format(layer): x for (name, layer), x in numbers.items()}
    (folder / "torch" / "pytorch_model.bin").write_bytes(torch_file(named))
    _write_meta(folder / "meta", numbers)


def _write_sharded(folder: Path, config: str, numbers: dict[tuple[str, int], Any]) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(config)
    named = {HF_NAMES[name].format(layer): x for (name, layer), x in numbers.items()}
    files = {name: f"model-{1 + i % 2}.safetensors" for i, name in enumerate(named)}
    for file in set(files.values()):
        shapes = {name: x.shape for name, x in named.items() if files[name] == file}
        write_weights(folder / file, shapes, named.__getitem__, dict.fromkeys(shapes, "F32"), {})
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _write_meta(folder: Path, numbers: dict[tuple[str, int], Any]) -> None:
    """Two slices, and a rank file."""
    folder.mkdir()
    values = {"dim": 8, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5}
    values |= {"multiple_of": SHAPE["hidden_dim"], "ffn_dim_multiplier": 0.5, "vocab_size": -1}
    (folder / "params.json").write_text(json.dumps(values))
    for i in range(2):
        cut = {}
        for (name, layer), x in numbers.items():
            if name in ("wo", "w2", "token_embedding"):
                x = np.split(x, 2, 1)[i]
            elif x.ndim == 2:
                x = np.split(x, 2, 0)[i]
            cut[META_NAMES[name].format(layer)] = np.ascontiguousarray(x)
        (folder / f"consolidated.0{i}.pth").write_bytes(torch_file(cut))
    ranks = b"".join(b"%s %d\n" % (_base64(bytes([r])), r) for r in range(16))
    (folder / "tokenizer.model").write_bytes(ranks)


def _base64(data: bytes) -> bytes:
    import base64

    return base64.b64encode(data)


# ---- damage ----------------------------------------------------------------------------------


def change(path: str, valid: bytes, rng: random.Random) -> bytes:
    """Damaged bytes: as JSON, as text, or as any file."""
    if rng.random() < 0.5:
        if path.endswith(".json"):
            return _changed_json(valid, rng)
        if path.endswith(".safetensors"):
            n = struct.unpack("<Q", valid[:8])[0]
            header = _changed_json(valid[8 : 8 + n], rng)
            return struct.pack("<Q", len(header)) + header + valid[8 + n :]
        if path.endswith(".jinja"):
            parts = ["{{", "}}", "{%", "%}", "for", "(", "'", "messages", "\n", "{# ", " * 10**9"]
            at = rng.randrange(len(valid))
            return valid[:at] + rng.choice(parts).encode() + valid[at:]
    return mutate(valid, rng, min(len(valid), 1100))


def _changed_json(data: bytes, rng: random.Random) -> bytes:
    """A value replaced, a key taken away or given twice, at a random place."""
    document = json.loads(data)
    for _ in range(rng.randint(1, 3)):
        place = document
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = rng.choice(keys)
            below = place[key]
            if isinstance(below, (dict, list)) and below and rng.random() < 0.7:
                place = below
                continue
            kind = rng.randrange(4)
            if kind == 0:
                del place[key]
            elif kind == 1 and isinstance(place, dict):
                place[str(key) + rng.choice(["", "x", ".weight"])] = place.pop(key)
            else:
                place[key] = rng.choice(ODD)
            break
    return json.dumps(document).encode()


def main() -> int:
    options = options_for(KINDS, 2000, __doc__ or "")
    return fuzz(options.kinds, prepare, options.cases, options.seed, change)


if __name__ == "__main__":
    sys.exit(main())
