"""The ops and the forward pass of csrc/llama2.c, called through ctypes."""

from __future__ import annotations

import ctypes
import struct

import numpy as np

from .tiny import FIELDS, arrays


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
    _fields_ = [(f, ctypes.c_int32) for f in (*FIELDS, "shared_classifier")]


WEIGHTS = (
    "token_embedding", "attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3",
    "final_norm", "classifier",
)  # fmt: skip
BUFFERS = (
    "key_cache", "value_cache", "x", "y", "q", "o", "proj", "gate", "up", "hidden", "ffn", "att",
    "cos", "sin",
)  # fmt: skip


class Weights(ctypes.Structure):
    _fields_ = [(f, ctypes.c_void_p) for f in WEIGHTS]


class State(ctypes.Structure):
    _fields_ = [
        ("cache_length", ctypes.c_int64),
        ("max_tokens", ctypes.c_int64),
        *((f, ctypes.c_void_p) for f in BUFFERS),
    ]


class Model:
    """A v0 file with a shared classifier and one state, fed through the library."""

    def __init__(self, library, content, layers=None, max_tokens=64):
        self.library = library
        shape = dict(zip(FIELDS, struct.unpack_from("<7i", content), strict=False))
        self.floats = np.frombuffer(content, "<f4", offset=28).copy()
        self.config = Config(*shape.values(), 1)
        starts, at = {}, self.floats.ctypes.data
        for name, a in arrays(shape).items():
            starts[name], at = at, at + a.nbytes
        self.weights = Weights(starts.pop("embedding"), *starts.values())
        self.weights.classifier = None
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
        self.library.llama2_forward(
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
