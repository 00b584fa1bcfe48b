"""llama2.c's checkpoints in int8 (version 2): groups of values with one float32 scale ("Q8_0").

    float32    attention norms (L, C), feed-forward norms (L, C), final norm (C)
    quantised  the embedding, then wq, wk, wv, wo, w1, w2, w3 (L matrices each), then the classifier
               if it is not shared

A quantised matrix of n numbers is n int8 values followed by n // group_size float32 scales; groups
are cut from the flattened matrix. Scales may be unaligned in the file, so they are copied.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from pyllm2.errors import FileError, FormatError
from pyllm2.formats.llama2c import NORMS, V1_ORDER, Array, Header, Shape, header_bytes, place
from pyllm2.formats.reader import Source
from pyllm2.formats.writer import atomic_write

DEFAULT_GROUP_SIZE = 64
_PIECE = 2**22  # numbers quantised at a time
MAX_GROUP_SIZE = 2**17  # 127 · 127 · group_size must fit in int32


def _stacks(shapes: Mapping[str, Shape]) -> dict[str, tuple[int, int, int]]:
    """The quantised arrays as (layers, rows, columns), in the order of the file."""
    stacks = {}
    for name in V1_ORDER:
        if name in shapes and name not in NORMS:
            rows, columns = shapes[name][-2:]
            stacks[name] = (math.prod(shapes[name][:-2]), rows, columns)
    return stacks


def check_group_size(source: Source, header: Header) -> list[str]:
    """Warnings about the group size. Raises FormatError for one that cannot be used."""
    GS, C, F = header.group_size, header.values["dim"], header.values["hidden_dim"]
    byte = header.byte_of["group_size"]
    if GS < 1:
        raise FormatError.field(source.path, "group_size", GS, byte, "must be at least 1")
    if GS > MAX_GROUP_SIZE:
        expected = f"must be at most {MAX_GROUP_SIZE}"
        raise FormatError.field(source.path, "group_size", GS, byte, expected)
    if C % GS:
        raise FormatError.field(source.path, "group_size", GS, byte, f"must divide dim = {C}")
    if F % GS:
        lost = f"{F % GS} inputs of each feed-forward product are lost, as in the original"
        return [f"{source.path}: group_size = {GS} does not divide hidden_dim = {F}: {lost}"]
    return []


def read_q8_tensors(
    source: Source,
    header: Header,
    shapes: Mapping[str, Shape],
    memory_map: bool = False,
    lenient: bool = False,
) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Arrays by name, and warnings: norms in float32, and of each matrix `wq` int8 values
    (L, rows, columns) and scales `wq_scales` (L, groups). Values are views of one read-only buffer.

    Raises FormatError for a wrong file size, an unusable group size or a scale that is not finite.
    """
    places, warnings = array_places(source, header, shapes, lenient)
    GS, stacks = header.group_size, _stacks(shapes)
    data = source.read_all(memory_map, aligned_byte=header.size)
    arrays: dict[str, NDArray[Any]] = {}
    for name in NORMS:
        end = places[name] + 4 * math.prod(shapes[name])
        arrays[name] = data[places[name] : end].view("<f4").reshape(shapes[name])
    for name, (L, rows, columns) in stacks.items():
        n, step = rows * columns, _matrix_bytes(rows * columns, GS)
        block = data[places[name] : places[name] + L * step]
        arrays[name] = as_strided(
            block.view(np.int8), (L, rows, columns), (step, columns, 1), writeable=False
        )
        scales = np.ascontiguousarray(block.reshape(L, step)[:, n:]).view("<f4")  # (L, n // GS)
        arrays[f"{name}_scales"] = scales
        if not np.isfinite(scales).all():
            layer, group = (int(i) for i in np.argwhere(~np.isfinite(scales))[0])
            found = scales[layer, group]
            where = f"{name}: layer {layer}, group {group}"
            raise FormatError(source.path, f"{where}: scale = {found}: must be finite")
    return arrays, warnings


def array_places(
    source: Source, header: Header, shapes: Mapping[str, Shape], lenient: bool = False
) -> tuple[dict[str, int], list[str]]:
    """The first byte of every array, and warnings. Raises what `read_q8_tensors` raises."""
    warnings = check_group_size(source, header)
    sizes = [(name, 4 * math.prod(shapes[name])) for name in NORMS]
    for name, (L, m, n) in _stacks(shapes).items():
        sizes.append((name, L * _matrix_bytes(m * n, header.group_size)))
    places, more = place(source, header, sizes, lenient)
    return places, warnings + more


def read_matrix(
    source: Source, header: Header, start: int, n: int, layer: int
) -> tuple[NDArray[np.int8], Array]:
    """Values (n,) and scales (groups,) of one matrix of n numbers.

    start: first byte of its array   Raises FileError; FormatError for a scale that is not finite.
    """
    step = _matrix_bytes(n, header.group_size)
    data = source.read_range(start + layer * step, step)
    scales = np.ascontiguousarray(data[n:]).view("<f4")
    if not np.isfinite(scales).all():
        raise FormatError(source.path, f"byte {start + layer * step + n}: scales must be finite")
    return data[:n].view(np.int8), scales


def _matrix_bytes(n: int, group_size: int) -> int:
    return n + 4 * (n // group_size)


def quantize_weights(flat: Array, group_size: int) -> tuple[NDArray[np.int8], Array]:
    """Quantise a flattened matrix; rounds half to even, as llama2.c's export does.

    flat: (n,)   ->   values: (n,) int8   scales: (n // group_size,)
    The scale of a group of zeros is 0. Numbers after the last full group become 0.
    """
    whole = len(flat) // group_size * group_size
    groups = flat[:whole].reshape(whole // group_size, group_size)
    scales = np.max(np.abs(groups), axis=1) / np.float32(127)
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = np.where(scales[:, None] > 0, groups / scales[:, None], 0)
    values = np.zeros(len(flat), np.int8)
    values[:whole] = np.clip(np.rint(quotient), -127, 127).reshape(-1)
    return values, scales


def fitting_group_size(wanted: int, dim: int, hidden_dim: int, like_original: bool = False) -> int:
    """`wanted`, halved until it divides both widths (with like_original: dim only).

    Example: (64, 64, 172) -> 4; with like_original 64
    """
    size = wanted
    while size > 1 and (dim % size or (hidden_dim % size and not like_original)):
        size //= 2
    return max(size, 1)


def write_q8_checkpoint(
    path: str | os.PathLike[str],
    values: Mapping[str, int],
    names: Collection[str],
    parts: Callable[[str], Iterable[Array]],
    group_size: int,
) -> None:
    """Quantise float32 arrays and write a version 2 file, atomically.

    names: of the arrays; the classifier is shared if it is not there
    parts: the matrices of an array, layer by layer, whose turn comes one by one

    Raises FileError from the operating system, or naming an array with NaN or infinity, which would
    be the scale of its group; and what `parts` raises.
    """
    with atomic_write(path) as file:
        file.write(header_bytes(2, values, "classifier" not in names, group_size))
        for name in V1_ORDER:
            if name not in names:
                continue
            for part in parts(name):
                if name in NORMS:
                    file.write(np.ascontiguousarray(part, dtype="<f4").data)
                    continue
                flat = np.ascontiguousarray(part, dtype=np.float32).reshape(-1)
                scales, step = [], max(1, _PIECE // group_size) * group_size
                for start in range(0, len(flat), step):
                    piece = flat[start : start + step]
                    _require_finite(path, name, piece)
                    found = quantize_weights(piece, group_size)
                    file.write(found[0].data)
                    scales.append(found[1])
                file.write(np.concatenate(scales).astype("<f4").data)


def _require_finite(path: str | os.PathLike[str], name: str, piece: Array) -> None:
    largest = np.abs(piece).max(initial=0)
    if not np.isfinite(largest):
        words = f"array {name!r} has a number that is {largest:g}: int8 is for finite ones"
        raise FileError(path, f"{words}, write v1")
