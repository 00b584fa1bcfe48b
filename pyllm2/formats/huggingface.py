"""A model as a folder of Hugging Face: `config.json` and the weights, in one file or several.

    model.safetensors                first choice
    model.safetensors.index.json     {"weight_map": {tensor: file}}: several files
    pytorch_model.bin, its index     where there is no safetensors file

What the config means is the business of `llama2.huggingface` and `gpt2.huggingface`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from pyllm2.errors import FileError, FormatError, printable, shown
from pyllm2.formats.json_file import Settings, parse_object, read_object
from pyllm2.formats.reader import open_source
from pyllm2.formats.safetensors_file import open_safetensors, write_weights
from pyllm2.formats.tensors import Array, Place, Shape, Tensors
from pyllm2.formats.torch_pickle import open_torch
from pyllm2.formats.writer import atomic_write

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_TORCH = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
# In the order in which they are looked for.
_OPENERS: list[tuple[str, Callable[[str], Tensors]]] = [
    (WEIGHTS, open_safetensors),
    ("pytorch_model.bin", open_torch),
]
_MOST_INDEX_BYTES = 2**26
_MOST_CONFIG_BYTES = 2**24
_QUANTISED = ("quantization_config", "compression_config")
_END = "eos_token_id"


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether this is a folder with a `config.json`."""
    return os.path.isfile(os.path.join(path, CONFIG))


def read_config(folder: str | os.PathLike[str]) -> Settings:
    """The object in `config.json`. Raises FileError, FormatError."""
    return _settings(os.path.join(folder, CONFIG))


def read_generation_config(folder: str | os.PathLike[str]) -> Settings | None:
    """The object in `generation_config.json`, None without the file. Raises as `read_config`."""
    path = os.path.join(folder, GENERATION_CONFIG)
    return _settings(path) if os.path.lexists(path) else None


def _settings(path: str) -> Settings:
    return Settings(path, read_object(path, _MOST_CONFIG_BYTES))


def architecture(config: Settings, supported: Mapping[str, str]) -> str:
    """The model_type of a config: by `architectures`, or by `model_type` if that is absent.

    supported: architecture -> its model_type

    Raises FormatError for another one, and for weights that are quantised.
    """
    found = config.values.get("architectures")
    if found:
        name = found[0] if isinstance(found, list) else found
        if not isinstance(name, str) or name not in supported:
            names = ", ".join(supported)
            raise config.error("architectures", f"is not supported: expected one of {names}")
        model_type = supported[name]
    else:
        model_type = config.text("model_type")
        if model_type not in supported.values():
            names = ", ".join(supported.values())
            raise config.error("model_type", f"is not supported: expected one of {names}")
    for key in _QUANTISED:
        if config.has(key):
            value = config.values[key]
            method = value.get("quant_method") if isinstance(value, dict) else None
            of = f" ({method})" if isinstance(method, str) else ""
            raise FormatError(
                config.path,
                f"{key} is set{printable(of)}: quantised weights are not supported here: "
                "use the original folder, or a GGUF file",
            )
    return model_type


def end_ids(folder: str | os.PathLike[str]) -> tuple[int, ...] | None:
    """The ids that end a text: those of `generation_config.json`, which alone decides if it is
    there, else those of `config.json`. None if the latter says nothing.

    Raises FileError, FormatError.
    """
    generation = read_generation_config(folder)
    settings = generation or read_config(folder)
    found = settings.values.get(_END)
    if found is None:
        return None if generation is None else ()
    ids = found if isinstance(found, list) else [found]
    if not all(type(i) is int and 0 <= i < 2**31 for i in ids):
        raise settings.error(_END, "expected an id or a list of ids")
    return tuple(ids)


def open_weights(folder: str | os.PathLike[str]) -> Tensors:
    """The tensors of the folder, none of which has been read.

    Raises FileError if there are no weights, or a file of the index is missing; FormatError.
    """
    for name, opener in _OPENERS:
        path = os.path.join(folder, name)
        if os.path.lexists(path):
            return _plain(opener(path))
        if os.path.lexists(f"{path}.index.json"):
            return _plain(_open_parts(f"{path}.index.json", opener))
    names = ", ".join(f"{name}, {name}.index.json" for name, _ in _OPENERS)
    raise FileError(folder, f"has no weights that can be read: expected one of {names}")


def write(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    shapes: Mapping[str, Shape],
    read: Callable[[str], Array],
    dtype: str | Callable[[str], str],
) -> None:
    """Write `config.json` and `model.safetensors` into a folder, one tensor at a time.

    dtype: f32, f16 or bf16, of all tensors, or a function from a tensor's name

    Raises FileError from the operating system, or naming a tensor whose numbers are too large for
    its dtype; what `read` raises.
    """
    of = {name: (dtype if isinstance(dtype, str) else dtype(name)).upper() for name in shapes}
    common = max(of.values(), key=list(of.values()).count).lower()
    values = {**config, "dtype": _TORCH[common], "torch_dtype": _TORCH[common]}
    write_json(os.path.join(folder, CONFIG), values)
    write_weights(os.path.join(folder, WEIGHTS), shapes, read, of, {"format": "pt"})


def write_json(path: str | os.PathLike[str], values: Mapping[str, Any]) -> None:
    """Write an object, atomically. Raises FileError."""
    with atomic_write(path) as file:
        file.write((json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())


def _plain(tensors: Tensors) -> Tensors:
    """The tensors. Raises FormatError for those of GPTQ, AWQ and the like."""
    for name in tensors:
        if name.endswith((".qweight", ".qzeros", ".weight_scale", ".absmax")):
            words = "quantised weights (GPTQ, AWQ ...) are not supported"
            raise FormatError(tensors[name].path, f"tensor {shown(name)}: {words}")
    return tensors


def _open_parts(index: str, opener: Callable[[str], Tensors]) -> Tensors:
    """The tensors of several files: each from the file that the index names."""
    folder = os.path.dirname(index)
    files = _weight_map(index)
    opened: dict[str, Tensors] = {}
    places: dict[str, Place] = {}
    for name, file in files.items():
        if file not in opened:
            path = os.path.join(folder, file)
            if not os.path.lexists(path):
                of = f"weight_map: {shown(name)} is in {shown(file)}"
                raise FormatError(index, f"{of}, which is missing: download incomplete?")
            opened[file] = opener(path)
        if name not in opened[file]:
            raise FormatError(opened[file].path, f"tensor {shown(name)} of the index is missing")
        places[name] = opened[file][name]
    return Tensors(folder, places)


def _weight_map(index: str) -> dict[str, str]:
    """The file of every tensor: names in the folder of the index. Raises FormatError."""
    with open_source(index) as source:
        if source.size > _MOST_INDEX_BYTES:
            raise FileError(index, f"{source.size} bytes: at most {_MOST_INDEX_BYTES} are read")
        data = source.read_range(0, source.size).tobytes()
    found = parse_object(data, index, unique=True).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise FormatError(index, f"weight_map = {shown(found)}: expected files by tensor")
    for name, file in found.items():
        if not isinstance(file, str) or os.path.basename(file) != file or file in ("", ".", ".."):
            of = f"weight_map: {shown(name)}"
            raise FormatError(index, f"{of} is in {shown(file)}: expected a file of this folder")
    return found
