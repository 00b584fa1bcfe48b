"""Small valid Llama files as bytes, in the shape whose numbers the tests of csrc name."""

from __future__ import annotations

import struct
from functools import partial

import numpy as np

from pyllm2.llama2.config import Llama2Config
from tests.support import llama2_files

FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
MAGIC = 0x616B3432
SHAPE = dict(zip(FIELDS, (8, 12, 2, 2, 1, 270, 16), strict=True))


def checkpoint(version, shape=None, shared=True, seed=0, group_size=4):
    """Random weights, random norms as well."""
    shape = SHAPE if shape is None else shape
    rng = np.random.default_rng(seed)
    sizes = Llama2Config(**shape).shapes(shared)
    weights = {name: rng.normal(0, 0.3, size).astype("<f4") for name, size in sizes.items()}
    return llama2_files.to_bytes(shape, weights, version, group_size)


checkpoint_v0, checkpoint_v1, checkpoint_v2 = (partial(checkpoint, n) for n in (0, 1, 2))


def vocabulary(n=270, pieces=None):
    """A tokenizer.bin with specials, bytes, then letters and pairs; the first merges go first."""
    extra = [b" ", b"a", b"b", b"c", b"ab", b" a", b"bc", b"abc", b" ab", b"ba", b"cc"]
    pieces = [*llama2_files.PIECES[:259], *extra][:n] if pieces is None else pieces
    return llama2_files.vocabulary(pieces, [-float(i) for i in range(len(pieces))])


def with_field(content, field, value, start=0):
    """content with one field of its header replaced."""
    at = start + 4 * FIELDS.index(field)
    return content[:at] + struct.pack("<i", value) + content[at + 4 :]
