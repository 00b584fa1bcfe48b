"""Read and write Llama-2 models as llama2.c's checkpoints."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2 import memory
from pyllm2.backends import Engine
from pyllm2.errors import ConfigError, FileError, FormatError
from pyllm2.formats import llama2c, llama2c_q8
from pyllm2.formats.reader import Source, open_source
from pyllm2.llama2 import ops
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.imported import WITHOUT_LAYERS
from pyllm2.llama2.model import Llama2, Weights
from pyllm2.parameters import Array, Parameters, Quantized, Streamed, check_shapes

FORMATS = ("v0", "v1", "v2")  # by version: float32, float32, int8
FIELDS = llama2c.FIELDS  # of a config, that a file has


def load_config(path: str | os.PathLike[str]) -> Llama2Config:
    """The config of a checkpoint that can be trained. Raises FileError or FormatError."""
    with open_source(path) as source:
        return _trainable(source)[0]


def load_parameters(path: str | os.PathLike[str]) -> tuple[Llama2Config, Parameters]:
    """Config and parameters of a float32 checkpoint with a shared classifier.

    Raises FileError or FormatError.
    """
    with open_source(path) as source:
        config, header = _trainable(source)
        arrays, _ = llama2c.read_tensors(source, header, config.shapes())
    params = Parameters(config.shapes())
    for name, array in params.items():
        array[...] = arrays[name]
    return config, params


def save_parameters(
    path: str | os.PathLike[str],
    config: Llama2Config,
    params: Mapping[str, Array],
    version: int = 0,
    group_size: int = llama2c_q8.DEFAULT_GROUP_SIZE,
) -> None:
    """Write a checkpoint of version 0 or 1 (float32) or 2 (int8), atomically.

    params: the arrays of `Weights` by name; the classifier is shared if there is none.
    group_size: of version 2.

    Raises ConfigError for a model that run.c cannot compute, FileError from the operating system.
    """
    shapes = config.shapes("classifier" not in params)
    check_shapes(params, shapes)

    def read(name: str, layer: int) -> Array:
        return params[name] if name in WITHOUT_LAYERS else params[name][layer]

    save(path, Streamed("the parameters", config, shapes, read), version, group_size)


def save(
    path: str | os.PathLike[str],
    source: Streamed,
    version: int = 0,
    group_size: int = llama2c_q8.DEFAULT_GROUP_SIZE,
) -> None:
    """Write a model as a checkpoint of version 0, 1 or 2, atomically, one slice at a time.

    Raises ConfigError for a model that run.c cannot compute, FileError from the operating system,
    and what `source.read` raises.
    """
    for name, value in source.config.beyond_run_c.items():
        raise ConfigError(name, value, "llama2.c's files have no such field, run.c no such model")
    values = {name: getattr(source.config, name) for name in llama2c.FIELDS}

    def parts(name: str) -> Iterator[Array]:
        layers = 1 if name in WITHOUT_LAYERS else source.config.n_layers
        return (source.read(name, layer) for layer in range(layers))

    if version == 2:
        llama2c_q8.write_q8_checkpoint(path, values, source.shapes, parts, group_size)
    else:
        llama2c.write_checkpoint(path, values, source.shapes, parts, version)


def read_model(
    source: Source, engine: Engine, memory_map: bool = False, lenient: bool = False
) -> tuple[Llama2, list[str]]:
    """The model of an open file of any version, and warnings.

    memory_map, lenient: see `pyllm2.load`. Raises FileError or FormatError.
    """
    header = llama2c.read_header(source)
    config = read_config(source, header)
    sizes = config.shapes(header.shared_classifier)
    if not memory_map:
        memory.require(
            min(source.size, 4 * config.parameters(header.shared_classifier)),
            "the parameters",
            "use memory mapping or a smaller model",
        )
    if header.version == 2:
        arrays, warnings = llama2c_q8.read_q8_tensors(source, header, sizes, memory_map, lenient)
        weights = _quantized_weights(arrays, header.group_size, engine.ops)
    else:
        tensors, warnings = llama2c.read_tensors(source, header, sizes, memory_map, lenient)
        weights = Weights(**tensors)
    return Llama2(config, weights, engine), warnings


def read_config(source: Source, header: llama2c.Header) -> Llama2Config:
    """The config of a header. Raises FormatError naming a field that is out of range."""
    sizes: Any = header.values
    try:
        return Llama2Config(**sizes)
    except ConfigError as error:
        llama2c.refuse_if_another_kind(source)
        byte = header.byte_of[error.name]
        raise FormatError.field(
            source.path, error.name, error.found, byte, error.expected
        ) from None


# ---- from one version to another -------------------------------------------------------------


def load_float32(
    path: str | os.PathLike[str],
) -> tuple[Llama2Config, dict[str, Array], list[str]]:
    """Config, float32 arrays (int8 ones dequantised) and warnings; no classifier if it is shared.

    Raises FileError or FormatError.
    """
    with open_source(path) as source:
        streamed, warnings = stream(source)
    arrays = {name: np.empty(shape, np.float32) for name, shape in streamed.shapes.items()}
    for name, array in arrays.items():
        for layer, out in enumerate([array] if name in WITHOUT_LAYERS else array):
            out[...] = streamed.read(name, layer)
    return streamed.config, arrays, warnings


def stream(source: Source) -> tuple[Streamed, list[str]]:
    """The model of an open file of any version, float32 (int8 dequantised), and warnings.

    Raises FileError or FormatError.
    """
    header, path = llama2c.read_header(source), source.path
    config = read_config(source, header)
    shapes = config.shapes(header.shared_classifier)
    module: Any = llama2c_q8 if header.version == 2 else llama2c
    places, warnings = module.array_places(source, header, shapes)
    of_slice = {name: s if name in WITHOUT_LAYERS else s[1:] for name, s in shapes.items()}

    def read(name: str, layer: int) -> Array:
        shape, start = of_slice[name], places[name]
        n = math.prod(shape)
        with open_source(path) as again:
            if header.version != 2 or name in llama2c.NORMS:
                numbers = again.read_range(start + 4 * n * layer, 4 * n).view("<f4")
            else:
                matrix = llama2c_q8.read_matrix(again, header, start, n, layer)
                numbers = ops.dequantize(*matrix, header.group_size)
        return numbers.reshape(shape)

    return Streamed(path, config, shapes, read), warnings


def export(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    to: str,
    group_size: int = llama2c_q8.DEFAULT_GROUP_SIZE,
    like_original: bool = False,
) -> tuple[int, list[str]]:
    """Convert a checkpoint; returns the group size used (0 for float32) and warnings.

    to: v0, v1 or v2. For v2 the group size is halved until it divides dim and hidden_dim, or with
    like_original only dim, as in the original, which may leave out inputs of w2.

    Raises FileError or FormatError.
    """
    with open_source(source) as opened:
        streamed, warnings = stream(opened)
    version, size, config = FORMATS.index(to), 0, streamed.config
    if version == 2:
        widths = config.dim, config.hidden_dim
        size = llama2c_q8.fitting_group_size(group_size, *widths, like_original)
    save(target, streamed, version, size)
    return size, warnings


def _trainable(source: Source) -> tuple[Llama2Config, llama2c.Header]:
    """Config and header. Raises FileError for int8 weights or a classifier of its own."""
    header = llama2c.read_header(source)
    if header.version == 2 or not header.shared_classifier:
        llama2c.refuse_if_another_kind(source)
        what = "int8" if header.version == 2 else "a model with a classifier of its own"
        raise FileError(
            source.path, f"is {what}: training needs float32 weights and a shared classifier"
        )
    return read_config(source, header), header


def _quantized_weights(arrays: dict[str, NDArray[Any]], group_size: int, ops: Any) -> Weights:
    """int8 matrices with their scales. The embedding is dequantised, a shared classifier is not."""
    tensors: dict[str, Any] = {}
    for name, array in arrays.items():
        scales = arrays.get(f"{name}_scales")
        if scales is not None:
            tensors[name] = Quantized(array, scales, group_size)
        elif not name.endswith("_scales"):
            tensors[name] = array
    embedding = tensors["token_embedding"][0]
    tensors["classifier"] = tensors["classifier"][0] if "classifier" in tensors else embedding
    tensors["token_embedding"] = ops.dequantize(embedding.values, embedding.scales, group_size)
    return Weights(**tensors)
