"""Whole GPT-2 passes of csrc/gpt2.c over memory of our own, where every buffer can be looked at."""

from __future__ import annotations

from ctypes import c_float, c_int64

import numpy as np

from pyllm2.gpt2.config import GPT2Config
from pyllm2.gpt2.ops_c import ACTIVATIONS, CONFIG, CActivations, CConfig, CParameters
from pyllm2.training.parameters import Parameters

HEADER = 1024  # bytes before the parameters of a model file


def read_model(path):
    """Config and parameters of an llm.c model file, version 3."""
    content = path.read_bytes()
    magic, version, *fields = np.frombuffer(content, "<i4", 8)
    assert (magic, version) == (20240326, 3)
    config = GPT2Config(*map(int, fields))
    flat = np.frombuffer(content, "<f4", config.parameters(), HEADER).copy()
    return config, Parameters(config.shapes(), flat)


def random_parameters(config, seed):
    """Everything normal, the padding rows and the biases too; norms about 1."""
    random = np.random.default_rng(seed)
    params = Parameters(config.shapes())
    for name, a in params.items():
        mean = 1 if name in ("ln1w", "ln2w", "lnfw") else 0
        a[...] = random.normal(mean, 0.3, a.shape)
    return params


def random_batch(config, B, T, seed):
    """tokens, targets: (B, T)"""
    random = np.random.default_rng(seed)
    return random.integers(0, config.vocab_size, (2, B, T), dtype=np.int32)


def activation_shapes(config, B, T):
    """What the header file says, said again."""
    C, NH, L, Vp = config.channels, config.num_heads, config.num_layers, config.padded_vocab_size
    in_layers = dict.fromkeys(
        ("ln1", "atty", "attproj", "residual2", "ln2", "fcproj", "residual3"), (L, B, T, C)
    )
    in_layers |= dict.fromkeys(("ln1_mean", "ln1_rstd", "ln2_mean", "ln2_rstd"), (L, B, T))
    in_layers |= dict.fromkeys(("fch", "fch_gelu"), (L, B, T, 4 * C))
    in_layers |= dict.fromkeys(("preatt", "att"), (L, B, NH, T, T))
    outside = {"encoded": (B, T, C), "lnf": (B, T, C), "logits": (B, T, Vp), "probs": (B, T, Vp)}
    outside |= dict.fromkeys(("lnf_mean", "lnf_rstd", "losses"), (B, T))
    shapes = {**in_layers, **outside, "qkv": (L, B, T, 3 * C)}
    return {name: shapes[name] for name in ACTIVATIONS}


class Pass:
    """A model and the buffers of one forward and backward. Forward buffers begin as NaN."""

    def __init__(self, library, config, params, B, T):
        self.engine, self.params, self.B, self.T = library, params, B, T
        self.config = CConfig(*(getattr(config, name) for name in CONFIG))
        self.acts = Parameters(activation_shapes(config, B, T))
        self.dacts, self.grads = self.acts.zeros_like(), params.zeros_like()
        self.acts.flat.fill(np.nan)

    def forward(self, tokens, targets=None):
        acts, params = self.bound(self.acts), self.parameters(self.params)
        self.engine.call("forward", acts, self.config, params, tokens, targets, self.B, self.T)

    def backward(self, tokens, targets, dloss):
        self.engine.call(
            "backward", self.parameters(self.grads), self.bound(self.dacts), self.bound(self.acts),
            self.config, self.parameters(self.params), tokens, targets, c_float(dloss),
            self.B, self.T,
        )  # fmt: skip

    def mean_loss(self):
        losses = self.acts.losses
        return np.float32(self.engine.call("mean_loss", losses, losses.size, returns=c_float))

    def bound(self, activations):
        """The struct over these activations, as C places them."""
        needed = self.engine.call("activation_floats", self.config, self.B, self.T, returns=c_int64)
        assert needed == activations.flat.size
        struct = CActivations()
        self.engine.call("activations_bind", struct, self.config, activations.flat, self.B, self.T)
        return struct

    def parameters(self, params):
        """The struct over these parameters, as C places them."""
        needed = self.engine.call("parameter_floats", self.config, returns=c_int64)
        assert needed == params.flat.size
        struct = CParameters()
        self.engine.call("parameters_bind", struct, self.config, params.flat)
        return struct
