"""Small valid files as bytes: random models, scripted models, a vocabulary."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pyllm2.formats.llama2c import V1_ORDER
from pyllm2.formats.llama2c_vocabulary import write_vocabulary
from pyllm2.llama2.checkpoint import save_parameters
from pyllm2.llama2.config import Llama2Config

BYTE_PIECES = [b"<0x%02X>" % byte for byte in range(256)]
WORDS = [b" ", b"a", b"b", b"c", b"e", b"h", b"l", b"o", b"ca", b" ca", b" cab", b"he", b"lo"]
PIECES = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *BYTE_PIECES, *WORDS]
SCORES = [0.0] * 259 + [-float(i) for i in range(len(WORDS))]
V = len(PIECES)
BOS, EOS = 1, 2
SHAPE = {
    "dim": 8,
    "hidden_dim": 12,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "vocab_size": V,
    "seq_len": 32,
}


def byte_id(byte: int) -> int:
    """Id of the token of a byte."""
    return 3 + byte


def tensors(shape: Mapping[str, int], shared: bool = True) -> dict[str, Any]:
    """Weights from a fixed seed; norms are 1."""
    rng = np.random.default_rng(1)
    sizes = Llama2Config(**shape).shapes(shared)
    return {
        name: np.ones(sizes[name], np.float32)
        if name.endswith("norm")
        else (0.3 * rng.standard_normal(sizes[name])).astype(np.float32)
        for name in V1_ORDER
        if name in sizes
    }


def to_bytes(
    shape: Mapping[str, int], weights: Mapping[str, Any], version: int, group_size: int = 4
) -> bytes:
    """The bytes that `save_parameters` writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.bin")
        save_parameters(path, Llama2Config(**shape), weights, version, group_size)
        return path.read_bytes()


@cache
def checkpoint(version: int = 0, shared: bool = True, **changes: int) -> bytes:
    """A random model of SHAPE, updated with `changes`."""
    shape = {**SHAPE, **changes}
    return to_bytes(shape, tensors(shape, shared), version)


@cache
def quantized(group_size: int = 4, shared: bool = True) -> bytes:
    """The same model quantised to int8."""
    return to_bytes(SHAPE, tensors(SHAPE, shared), 2, group_size)


def poisoned(name: str, value: float, layer: int = 0) -> bytes:
    """A model with `value` in one row of one array: the layer's, or that of BOS."""
    weights = tensors(SHAPE, shared=False)
    row = {"token_embedding": BOS, "classifier": BOS, "final_norm": 3}.get(name, layer)
    weights[name][row] = value
    return to_bytes(SHAPE, weights, 0)


@cache
def scripted(follows: tuple[tuple[int, int], ...], seq_len: int = 64) -> bytes:
    """A model whose greedy choice after token a is b, for all given pairs (a, b)."""
    dim = max(4, 2 * len(follows))
    shape = {**SHAPE, "dim": dim, "n_heads": 1, "n_kv_heads": 1, "n_layers": 1, "seq_len": seq_len}
    weights = {
        name: np.ones_like(array) if name.endswith("norm") else np.zeros_like(array)
        for name, array in tensors(shape, shared=False).items()
    }
    for i, (a, b) in enumerate(follows):
        weights["token_embedding"][a, i] = 1
        weights["classifier"][b, i] = 1
    return to_bytes(shape, weights, 1)


def saying(text: bytes, after: int = BOS, seq_len: int = 64) -> bytes:
    """A model that generates these bytes (all different) and EOS after the token `after`."""
    chain = [after, *map(byte_id, text), EOS]
    return scripted(tuple(pairwise(chain)), seq_len)


def vocabulary(pieces: Sequence[bytes] = PIECES, scores: Sequence[float] | None = None) -> bytes:
    """The bytes of a tokenizer.bin."""
    if scores is None:
        scores = (SCORES + [-1e3] * len(pieces))[: len(pieces)]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "t.bin")
        write_vocabulary(path, pieces, scores)
        return Path(path).read_bytes()


def lay_out(folder: Path, files: Mapping[str, bytes] | None = None) -> None:
    """Write m.bin, t.bin and `files`, which may replace either."""
    for name, data in {"m.bin": checkpoint(), "t.bin": vocabulary(), **(files or {})}.items():
        (folder / name).write_bytes(data)
