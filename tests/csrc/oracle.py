"""The ops and the forward pass of csrc/llama2.c, called through ctypes, and readers to feed it."""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass

import numpy as np

from .tiny import FIELDS, MAGIC


def floats(*shape):
    return np.zeros(shape, np.float32)


def pointer(a):
    return None if a is None else ctypes.c_void_p(a.ctypes.data)


def call(function, *arguments):
    """Call a C op: arrays as pointers, Python integers as int64_t."""
    as_c = [ctypes.c_int64(a) if isinstance(a, int) else pointer(np.asarray(a)) for a in arguments]
    function(*as_c)


def same_bits(a, b):
    a, b = np.ascontiguousarray(a, np.float32), np.ascontiguousarray(b, np.float32)
    return a.shape == b.shape and np.array_equal(a.view(np.uint32), b.view(np.uint32))


class Config(ctypes.Structure):
    _fields_ = [(f, ctypes.c_int32) for f in (*FIELDS, "shared_classifier", "group_size")]


WEIGHTS = (
    "token_embedding", "attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3",
    "final_norm", "classifier",
)  # fmt: skip
BUFFERS = (
    "key_cache", "value_cache", "x", "y", "q", "o", "proj", "gate", "up", "hidden", "ffn", "att",
    "cos", "sin", "input_scales", "input_values",
)  # fmt: skip
VECTORS = ("token_embedding", "attention_norm", "ffn_norm", "final_norm")


class Matrix(ctypes.Structure):
    _fields_ = [
        ("floats", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
    ]


class Weights(ctypes.Structure):
    _fields_ = [(f, ctypes.c_void_p if f in VECTORS else Matrix) for f in WEIGHTS]


class State(ctypes.Structure):
    _fields_ = [
        ("cache_length", ctypes.c_int64),
        ("max_tokens", ctypes.c_int64),
        *((f, ctypes.c_void_p) for f in BUFFERS),
    ]


@dataclass
class Int8:
    """An int8 matrix, or one a layer: what pyllm2 calls Quantized, cut from a file by ourselves."""

    values: np.ndarray  # (L, rows, cols) or (rows, cols)
    scales: np.ndarray  # (L, groups) or (groups,)
    group_size: int


def shapes_of(shape):
    """The shape of every array by its name in WEIGHTS."""
    C, F, L, NH, NKV, V, _ = (shape[field] for field in FIELDS)
    KV = C // NH * NKV
    of_all_layers = {
        "attention_norm": (C,), "wq": (C, C), "wk": (KV, C), "wv": (KV, C), "wo": (C, C),
        "ffn_norm": (C,), "w1": (F, C), "w2": (C, F), "w3": (F, C),
    }  # fmt: skip
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


def as_matrix(a):
    """A struct over a float32 array, or over int8 values whose layers may be apart."""
    if isinstance(a, Int8):
        return Matrix(None, a.values.ctypes.data, a.scales.ctypes.data, a.values.strides[0])
    return Matrix(a.ctypes.data, None, None, a.strides[0] // 4)


class Model:
    """A v0 or v2 file and one state, fed through the library."""

    def __init__(self, library, content, layers=None, max_tokens=64):
        self.loaded = library
        is_v2 = content[:4] == struct.pack("<I", MAGIC)
        shape, self.arrays = read_v2(content) if is_v2 else read_v0(content)
        self.config = Config(**shape)
        self.weights = Weights()
        for name, a in self.arrays.items():
            setattr(self.weights, name, a.ctypes.data if name in VECTORS else as_matrix(a))
        if layers is not None:
            self.config.n_layers = layers
        S = ctypes.c_int64(shape["seq_len"])
        T = ctypes.c_int64(max_tokens)
        self.memory = floats(library.llama2_state_floats(ctypes.byref(self.config), S, T))
        self.state = State()
        library.llama2_state_bind(
            ctypes.byref(self.state), ctypes.byref(self.config), pointer(self.memory), S, T
        )

    def feed(self, tokens, pos=0, every=True):
        tokens = np.asarray(tokens, np.int32)
        logits = floats(len(tokens) if every else 1, self.config.vocab_size)
        self.loaded.llama2_forward(
            pointer(logits),
            ctypes.byref(self.state),
            ctypes.byref(self.config),
            ctypes.byref(self.weights),
            pointer(tokens),
            ctypes.c_int64(len(tokens)),
            ctypes.c_int64(pos),
            ctypes.c_int32(every),
        )
        return logits

    def buffer(self, name, *shape):
        at = (getattr(self.state, name) - self.memory.ctypes.data) // 4
        return self.memory[at : at + int(np.prod(shape))].reshape(shape).copy()


def assert_state_recorded(model, recorded, n, chunk):
    """Caches of n positions, and what the last of `chunk` tokens left in the last layer."""
    C, F, L, NH, NKV, _, S = (getattr(model.config, f) for f in FIELDS)
    for name in ("key_cache", "value_cache"):
        cache = model.buffer(name, L, S, NKV * C // NH)
        assert same_bits(cache[:, :n], recorded[name]), name
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
