"""Untrained Llama-2s: configs by name, and initial or random weights."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
from numpy.typing import NDArray

from pyllm2 import memory
from pyllm2.errors import UsageError
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.model import Weights
from pyllm2.mersenne import MersenneTwister
from pyllm2.parameters import Parameters

Array = NDArray[np.float32]

# The models published with llama2.c: C, F, L, NH, NKV, V, S.
SHAPES = {
    "260K": Llama2Config(64, 172, 5, 8, 4, 512, 512),
    "15M": Llama2Config(288, 768, 6, 6, 6, 32000, 256),
    "42M": Llama2Config(512, 1376, 8, 8, 8, 32000, 1024),
    "110M": Llama2Config(768, 2048, 12, 12, 12, 32000, 1024),
}

STD = 0.02
SMALLER = ("wo", "w3")  # see `initial_parameters`
# Sizes in a descriptor and their defaults; a default of 0 is required or computed.
_SIZES = dict.fromkeys("dim layers heads kv_heads hidden".split(), 0)
_SIZES |= {"context": 256, "vocab": 32000}


def hidden_dim(dim: int, multiple_of: int) -> int:
    """The default feed-forward width of llama2.c: 8/3 of dim, rounded up to a multiple.

    Two thirds of the usual 4·dim, since the gated network has three matrices instead of two.
    Example: hidden_dim(288, 32) -> 768
    """
    return -(-int(2 * (4 * dim) / 3) // multiple_of) * multiple_of


def descriptor(text: str, vocab_size: int | None = None) -> Llama2Config:
    """The config that a name or a list of sizes describes.

        260K, 15M, 42M, 110M        published models
        dim=64,layers=5,heads=8     any other; optional with their defaults: kv_heads=… (heads),
                                    hidden=… (8/3 of dim), context=… (256), vocab=… (32000)

    vocab_size: that of the tokenizer, where the text has no vocab=….

    Raises UsageError for any other text, ConfigError for sizes that do not go together.
    """
    if text in SHAPES:
        V = SHAPES[text].vocab_size if vocab_size is None else vocab_size
        return dataclasses.replace(SHAPES[text], vocab_size=V)
    found = dict(_SIZES) if vocab_size is None else {**_SIZES, "vocab": vocab_size}
    words = text.split(",")
    for word in words:
        match = re.fullmatch(rf"({'|'.join(_SIZES)})=(\d{{1,9}})", word, re.ASCII)
        if match is None:
            raise UsageError(
                f"model {text!r}: expected {', '.join(SHAPES)}, or dim=…,layers=…,heads=… "
                "(optional: kv_heads=…,hidden=…,context=…,vocab=…)"
            )
        found[match[1]] = int(match[2])
    given = {word.partition("=")[0] for word in words}
    if len(given) < len(words):
        raise UsageError(f"model {text!r}: a size is given twice")
    for name in ("dim", "layers", "heads"):
        if name not in given:
            raise UsageError(f"model {text!r}: {name}=… is missing")
    C, L, NH, NKV, F, S, V = found.values()
    return Llama2Config(C, F or hidden_dim(C, 32), L, NH, NKV or NH, V, S)


def initial_parameters(config: Llama2Config, seed: int = 1337) -> Parameters:
    """The weights that training starts from, as in llama2.c: norms 1, the others normal.

    Standard deviation 0.02, but 0.02/√(2L) for wo and w3. (The smaller one is meant for matrices
    whose results are added to the residual stream, which are wo and w2; llama2.c takes w3, and the
    published models were trained like that.) Matrices are drawn one after the other, in the order
    of `Llama2Config.shapes`; the numbers are not PyTorch's.

    Raises NotEnoughMemoryError before anything is allocated.
    """
    n = config.parameters()
    memory.require(4 * n, f"{n} parameters", "take a smaller model")
    params = Parameters(config.shapes())
    rng = MersenneTwister(seed)
    for name, array in params.items():
        if name.endswith("norm"):
            array[...] = 1
        else:
            std = STD / math.sqrt(2 * config.n_layers) if name in SMALLER else STD
            array[...] = rng.normal(array.size, 0.0, std).reshape(array.shape)
    return params


def random_weights(config: Llama2Config, shared_classifier: bool, seed: int) -> Weights:
    """Normal weights scaled by 1/√fan-in, for tests and for timing: activations keep their size.

    Trained toys hide differences between backends that random weights show.
    """
    rng = np.random.default_rng(seed)
    C, F, L, V = config.dim, config.hidden_dim, config.n_layers, config.vocab_size
    Q, KV = config.query_dim, config.kv_dim

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(shape[-1]))

    def near_one(*shape: int) -> Array:
        return 1 + np.float32(0.2) * rng.standard_normal(shape, np.float32)

    beyond = {n: s for n, s in config.shapes().items() if n[0] == "b" or n[1:] == "_norm"}
    return Weights(
        token_embedding=rng.standard_normal((V, C), np.float32),
        attention_norm=near_one(L, C),
        wq=normal(L, Q, C),
        wk=normal(L, KV, C),
        wv=normal(L, KV, C),
        wo=normal(L, C, Q),
        ffn_norm=near_one(L, C),
        w1=normal(L, F, C),
        w2=normal(L, C, F),
        w3=normal(L, F, C),
        final_norm=near_one(C),
        classifier=None if shared_classifier else normal(V, C),
        **{name: near_one(*shape) - (name[0] == "b") for name, shape in beyond.items()},
    )
