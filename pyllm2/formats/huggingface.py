"""A model as a folder of Hugging Face: `config.json` and the weights, in one file or several.

    model.safetensors                first choice
    model.safetensors.index.json     {"weight_map": {tensor: file}}: several files
    pytorch_model.bin, its index     where there is no safetensors file

What the config means is the business of `llama2.huggingface` and `gpt2.huggingface`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from pyllm2.errors import FileError, FormatError, shown
from pyllm2.formats.json_file import parse_object, read_object
from pyllm2.formats.reader import open_source
from pyllm2.formats.safetensors_file import open_safetensors
from pyllm2.formats.tensors import Place, Tensors
from pyllm2.formats.torch_pickle import open_torch

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# In the order in which they are looked for.
_OPENERS: list[tuple[str, Callable[[str], Tensors]]] = [
    (WEIGHTS, open_safetensors),
    ("pytorch_model.bin", open_torch),
]
_MOST_INDEX_BYTES = 2**26


def is_folder(path: str) -> bool:
    """Whether this is a folder with a `config.json`."""
    return os.path.isfile(os.path.join(path, CONFIG))


def read_config(folder: str) -> dict[str, Any]:
    """The object in `config.json`. Raises FileError, FormatError."""
    return read_object(os.path.join(folder, CONFIG))


def read_generation_config(folder: str) -> dict[str, Any] | None:
    """The object in `generation_config.json`, None without the file. Raises as `read_config`."""
    path = os.path.join(folder, GENERATION_CONFIG)
    return read_object(path) if os.path.lexists(path) else None


def open_weights(folder: str) -> Tensors:
    """The tensors of the folder, none of which has been read.

    Raises FileError if there are no weights, or a file of the index is missing; FormatError.
    """
    for name, opener in _OPENERS:
        path = os.path.join(folder, name)
        if os.path.lexists(path):
            return opener(path)
        if os.path.lexists(f"{path}.index.json"):
            return _open_parts(f"{path}.index.json", opener)
    names = ", ".join(f"{name}, {name}.index.json" for name, _ in _OPENERS)
    raise FileError(folder, f"has no weights that can be read: expected one of {names}")


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
