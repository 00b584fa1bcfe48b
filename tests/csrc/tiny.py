"""Valid files of a few kilobytes, as bytes: a random model in three layouts, a vocabulary."""

from __future__ import annotations

import struct

import numpy as np

FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
MAGIC = 0x616B3432
SHAPE = {
    "dim": 8,
    "hidden_dim": 12,
    "n_layers": 2,
    "n_heads": 2,
    "n_kv_heads": 1,
    "vocab_size": 270,
    "seq_len": 16,
}


def arrays(shape, seed=0):
    """Random arrays by name, in the order of a v0 file without its RoPE tables."""
    rng = np.random.default_rng(seed)
    C, F, L, NH, NKV, V, _ = (shape[field] for field in FIELDS)
    KV = C // NH * NKV
    shapes = {
        "embedding": (V, C),
        "attention_norm": (L, C),
        "wq": (L, C, C),
        "wk": (L, KV, C),
        "wv": (L, KV, C),
        "wo": (L, C, C),
        "ffn_norm": (L, C),
        "w1": (L, F, C),
        "w2": (L, C, F),
        "w3": (L, F, C),
        "final_norm": (C,),
        "classifier": (V, C),
    }
    return {name: rng.normal(0, 0.3, s).astype("<f4") for name, s in shapes.items()}


def checkpoint_v0(shape=None, shared=True, seed=0):
    """The bytes of a small v0 checkpoint."""
    shape = SHAPE if shape is None else shape
    a = arrays(shape, seed)
    rope = np.zeros(2 * shape["seq_len"] * (shape["dim"] // shape["n_heads"] // 2), "<f4")
    fields = [shape[f] if shared or f != "vocab_size" else -shape[f] for f in FIELDS]
    classifier = b"" if shared else a["classifier"].tobytes()
    body = [a[name].tobytes() for name in a if name != "classifier"]
    return struct.pack("<7i", *fields) + b"".join(body) + rope.tobytes() + classifier


def checkpoint_v1(shape=None, shared=True, seed=0):
    """The same weights in the v1 layout."""
    shape = SHAPE if shape is None else shape
    a = arrays(shape, seed)
    order = [
        "attention_norm",
        "ffn_norm",
        "final_norm",
        "embedding",
        "wq",
        "wk",
        "wv",
        "wo",
        "w1",
        "w2",
        "w3",
    ] + ([] if shared else ["classifier"])
    head = struct.pack("<Ii7iB", MAGIC, 1, *(shape[f] for f in FIELDS), shared)
    return head.ljust(256, b"\0") + b"".join(a[name].tobytes() for name in order)


def quantized(a, group_size):
    """The bytes of an int8 tensor as the exporter writes it: values, then a scale to each group."""
    groups = a.reshape(-1, group_size)
    scales = np.abs(groups).max(axis=1) / np.float32(127)
    values = np.rint(groups / scales[:, None]).astype(np.int8)
    return values.tobytes() + scales.astype("<f4").tobytes()


def checkpoint_v2(shape=None, shared=True, seed=0, group_size=4):
    """The same weights in the v2 layout, matrices rounded to int8; group_size divides dim."""
    shape = SHAPE if shape is None else shape
    a = arrays(shape, seed)
    fields = (shape[f] for f in FIELDS)
    head = struct.pack("<Ii7iBi", MAGIC, 2, *fields, shared, group_size).ljust(256, b"\0")
    floats = [a[name].tobytes() for name in ("attention_norm", "ffn_norm", "final_norm")]
    tensors = [a["embedding"]]
    for name in ("wq", "wk", "wv", "wo", "w1", "w2", "w3"):
        tensors += list(a[name])
    tensors += [] if shared else [a["classifier"]]
    return head + b"".join(floats) + b"".join(quantized(t, group_size) for t in tensors)


def vocabulary(n=270, pieces=None):
    """The bytes of a small vocabulary: specials, bytes, then a few letters and pairs."""
    special = [b"<unk>", b"\n<s>\n", b"\n</s>\n"] + [b"<0x%02X>" % b for b in range(256)]
    extra = [b" ", b"a", b"b", b"c", b"ab", b" a", b"bc", b"abc", b" ab", b"ba", b"cc"]
    pieces = (special + extra)[:n] if pieces is None else pieces
    longest = max(len(p) for p in pieces)
    records = [struct.pack("<fi", -float(i), len(p)) + p for i, p in enumerate(pieces)]
    return struct.pack("<i", longest) + b"".join(records)


def with_field(content, field, value, start=0):
    at = start + 4 * FIELDS.index(field)
    return content[:at] + struct.pack("<i", value) + content[at + 4 :]
