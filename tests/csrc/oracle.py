"""Models of csrc/llama2 over llama2.c files, which are read without pyllm2."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from tests.csrc.tiny import FIELDS, MAGIC


def floats(*shape):
    return np.zeros(shape, np.float32)


def same_bits(a, b):
    a, b = np.ascontiguousarray(a, np.float32), np.ascontiguousarray(b, np.float32)
    return a.shape == b.shape and np.array_equal(a.view(np.uint32), b.view(np.uint32))


WEIGHTS = """token_embedding attention_norm wq wk wv wo ffn_norm w1 w2 w3
    final_norm classifier""".split()
VECTORS = "token_embedding attention_norm ffn_norm final_norm".split()


@dataclass
class Int8:
    """Int8 matrices of a file: what pyllm2 calls Quantized, read without pyllm2."""

    values: np.ndarray  # (L, rows, cols) or (rows, cols)
    scales: np.ndarray  # (L, groups) or (groups,)
    group_size: int


def shapes_of(shape):
    """The shape of every array by its name in WEIGHTS."""
    C, F, L, NH, NKV, V, _ = (shape[field] for field in FIELDS)
    KV = C // NH * NKV
    of_all_layers = {"attention_norm": (C,), "ffn_norm": (C,), "wq": (C, C), "wo": (C, C)}
    of_all_layers |= {"wk": (KV, C), "wv": (KV, C), "w1": (F, C), "w2": (C, F), "w3": (F, C)}
    stacks = {name: (L, *s) for name, s in of_all_layers.items()}
    return stacks | {"token_embedding": (V, C), "final_norm": (C,), "classifier": (V, C)}


def read_v0(content):
    """Fields and arrays of a v0 file with a shared classifier."""
    shape = dict(zip(FIELDS, struct.unpack_from("<7i", content), strict=False))
    found, at = {}, 28
    for name, s in ((name, shapes_of(shape)[name]) for name in WEIGHTS[:-1]):
        found[name] = np.frombuffer(content, "<f4", int(np.prod(s)), at).reshape(s).copy()
        at += found[name].nbytes
    return shape, {**found, "classifier": found["token_embedding"]}


def read_v2(content):
    """Fields, with shared_classifier and group_size, and arrays of a v2 file."""
    fields = (*FIELDS, "shared_classifier", "group_size")
    shape = dict(zip(fields, struct.unpack_from("<7iBi", content, 8), strict=True))
    GS, found, at = shape["group_size"], {}, 256
    for name in ("attention_norm", "ffn_norm", "final_norm"):
        s = shapes_of(shape)[name]
        found[name] = np.frombuffer(content, "<f4", int(np.prod(s)), at).reshape(s).copy()
        at += found[name].nbytes
    for name in ("embedding", "wq", "wk", "wv", "wo", "w1", "w2", "w3", "classifier"):
        if name == "classifier" and shape["shared_classifier"]:
            found["classifier"] = found.pop("embedding")
            break
        *L, rows, cols = shapes_of(shape)["token_embedding" if name == "embedding" else name]
        n = rows * cols
        layers = L[0] if L else 1
        each = n + 4 * (n // GS)
        block = np.frombuffer(content, np.uint8, layers * each, at).reshape(layers, each)
        at += block.nbytes
        values = block.view(np.int8)[:, :n].reshape(layers, rows, cols)
        scales = block[:, n:].copy().view("<f4")
        found[name] = Int8(values, scales, GS) if L else Int8(values[0], scales[0], GS)
        if name == "embedding":
            flat = values.reshape(-1, GS) * scales.reshape(-1, 1)
            found["token_embedding"] = flat.reshape(rows, cols)
    assert at == len(content)
    found.pop("embedding", None)
    return shape, found


class Model:
    """A v0 or v2 file with a cache and buffers, run by a build of the library llama2."""

    def __init__(self, llama2, content, layers=None, max_tokens=64):
        self.llama2 = llama2
        is_v2 = content[:4] == struct.pack("<I", MAGIC)
        shape, self.arrays = read_v2(content) if is_v2 else read_v0(content)
        S = shape["seq_len"]
        plain = {"head_size": shape["dim"] // shape["n_heads"], "norm_epsilon": 1e-5}
        self.config = llama2.struct("config", **shape, **plain)
        if layers is not None:
            self.config.n_layers = layers
        self.weights = llama2.struct(
            "weights",
            **{name: a if name in VECTORS else self.matrix(a) for name, a in self.arrays.items()},
        )
        self.cache, self.state = llama2.struct("cache"), llama2.struct("state")
        self.cached = floats(llama2.cache_floats(self.config, S))
        self.memory = floats(llama2.state_floats(self.config, S, max_tokens))
        llama2.cache_bind(self.cache, self.config, self.cached, S)
        llama2.state_bind(self.state, self.config, self.memory, S, max_tokens)

    def matrix(self, a):
        """A struct over a float32 array, or over int8 values whose layers may be apart."""
        if isinstance(a, Int8):
            first, stride = a.values[0] if a.values.ndim == 3 else a.values, a.values.strides[0]
            return self.llama2.struct("matrix", values=first, scales=a.scales, stride=stride)
        return self.llama2.struct("matrix", floats=a, stride=a.strides[0] // 4)

    def feed(self, tokens, pos=0, every=True):
        tokens = np.asarray(tokens, np.int32)
        logits = floats(len(tokens) if every else 1, self.config.vocab_size)
        structs = self.state, self.cache, self.config, self.weights
        self.llama2.forward(logits, *structs, tokens, len(tokens), pos, every)
        return logits

    def buffer(self, name, *shape):
        """The start of a buffer of the state, or of the cache."""
        memory, struct = (
            (self.cached, self.cache) if name in ("keys", "values") else (self.memory, self.state)
        )
        at = (getattr(struct, name) - memory.ctypes.data) // 4
        return memory[at : at + int(np.prod(shape))].reshape(shape).copy()


def assert_state_recorded(model, recorded, n, chunk):
    """The cache of n positions, and the last layer's buffers for the last of `chunk` tokens."""
    C, F, L, NH, NKV, _, S = (getattr(model.config, f) for f in FIELDS)
    for name, key in (("keys", "key_cache"), ("values", "value_cache")):
        cache = model.buffer(name, L, S, NKV * C // NH)
        assert same_bits(cache[:, :n], recorded[key]), name
    assert same_bits(model.buffer("att", NH, n), recorded["att_last_layer"])
    for name, size, key in (
        ("q", C, "q_last_layer"),
        ("proj", C, "attn_proj_last_layer"),
        ("hidden", F, "ffn_hidden_last_layer"),
        ("up", F, "ffn_up_last_layer"),
        ("ffn", C, "ffn_out_last_layer"),
        ("y", C, "x_final_normed"),
    ):
        assert same_bits(model.buffer(name, chunk, size)[-1], recorded[key]), name
