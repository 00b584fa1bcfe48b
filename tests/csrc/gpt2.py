"""Passes of csrc/gpt2 over buffers that tests can look at."""

from __future__ import annotations

import numpy as np

from pyllm2.gpt2.config import GPT2Config
from pyllm2.parameters import Parameters

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
    """All normal, padding rows and biases included; layernorm weights around 1."""
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
    """The shapes that csrc/gpt2/training.h documents, in the order of its struct."""
    C, NH, L, Vp = config.channels, config.num_heads, config.num_layers, config.padded_vocab_size
    channels, statistics, pairs = (L, B, T, C), (L, B, T), (L, B, NH, T, T)
    return {
        "encoded": (B, T, C),
        "ln1": channels,
        "ln1_mean": statistics,
        "ln1_rstd": statistics,
        "qkv": (L, B, T, 3 * C),
        "atty": channels,
        "preatt": pairs,
        "att": pairs,
        "attproj": channels,
        "residual2": channels,
        "ln2": channels,
        "ln2_mean": statistics,
        "ln2_rstd": statistics,
        "fch": (L, B, T, 4 * C),
        "fch_gelu": (L, B, T, 4 * C),
        "fcproj": channels,
        "residual3": channels,
        "lnf": (B, T, C),
        "lnf_mean": (B, T),
        "lnf_rstd": (B, T),
        "logits": (B, T, Vp),
        "probs": (B, T, Vp),
        "losses": (B, T),
    }


def c_config(gpt2, config):
    """The C struct of a GPT2Config."""
    return gpt2.struct("config", **{name: getattr(config, name) for name in gpt2.fields("config")})


class Pass:
    """A model and the buffers of both passes. The activations are NaN at first."""

    def __init__(self, gpt2, config, params, B, T):
        self.gpt2, self.params, self.B, self.T = gpt2, params, B, T
        self.config = c_config(gpt2, config)
        self.acts = Parameters(activation_shapes(config, B, T))
        self.dacts, self.grads = self.acts.zeros_like(), params.zeros_like()
        self.acts.flat.fill(np.nan)

    def forward(self, tokens, targets=None):
        acts, params = self.bound(self.acts), self.parameters(self.params)
        self.gpt2.forward(acts, self.config, params, tokens, targets, self.B, self.T)

    def backward(self, tokens, targets, dloss):
        structs = self.parameters(self.grads), self.bound(self.dacts), self.bound(self.acts)
        structs += self.config, self.parameters(self.params)
        self.gpt2.backward(*structs, tokens, targets, dloss, self.B, self.T)

    def mean_loss(self):
        losses = self.acts.losses
        return np.float32(self.gpt2.mean_loss(losses, losses.size))

    def bound(self, activations):
        """The struct over these activations, as C places them."""
        assert self.gpt2.activation_floats(self.config, self.B, self.T) == activations.flat.size
        struct = self.gpt2.struct("activations")
        self.gpt2.activations_bind(struct, self.config, activations.flat, self.B, self.T)
        return struct

    def parameters(self, params):
        """The struct over these parameters, as C places them."""
        assert self.gpt2.parameter_floats(self.config) == params.flat.size
        struct = self.gpt2.struct("parameters")
        self.gpt2.parameters_bind(struct, self.config, params.flat)
        return struct
