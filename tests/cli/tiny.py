"""Valid files of a few kilobytes, as bytes: a random model, a scripted model, a vocabulary."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pyllm2.formats.llama2c import layout, write_checkpoint
from pyllm2.formats.llama2c_q8 import write_q8_checkpoint
from pyllm2.formats.vocabulary import write_vocabulary

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
    """The id of a byte token."""
    return 3 + byte


def tensors(shape: Mapping[str, int], shared: bool = True) -> dict[str, Any]:
    """Random weights, always the same; norms are 1."""
    rng = np.random.default_rng(1)
    return {
        name: np.ones(size, np.float32)
        if name.endswith("norm")
        else (0.3 * rng.standard_normal(size)).astype(np.float32)
        for name, size in layout(1, shape, shared)
    }


def to_bytes(shape: Mapping[str, int], weights: Mapping[str, Any], version: int) -> bytes:
    """The file that `write_checkpoint` writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.bin")
        write_checkpoint(path, shape, weights, version)
        return path.read_bytes()


@cache
def checkpoint(version: int = 0, shared: bool = True, **changes: int) -> bytes:
    """A random model of SHAPE, but for `changes`."""
    shape = {**SHAPE, **changes}
    return to_bytes(shape, tensors(shape, shared), version)


@cache
def quantized(group_size: int = 4, shared: bool = True) -> bytes:
    """The same model in int8."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.bin")
        write_q8_checkpoint(path, SHAPE, tensors(SHAPE, shared), group_size)
        return path.read_bytes()


def poisoned(name: str, value: float, layer: int = 0) -> bytes:
    """A model with one bad number: in a layer's matrix or norm, or in the row of BOS."""
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
    """A model that answers the token `after` with these bytes, all different, and stops."""
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
    """Write m.bin and t.bin, good ones unless `files` has others, and whatever else it has."""
    for name, data in {"m.bin": checkpoint(), "t.bin": vocabulary(), **(files or {})}.items():
        (folder / name).write_bytes(data)
