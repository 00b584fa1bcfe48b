"""Untrained Llamas: shapes by name, and the weights that training begins with."""

from __future__ import annotations

import dataclasses
import math
import re

from pyllm2 import memory
from pyllm2.errors import UsageError
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.random_model import SHAPES
from pyllm2.llama2.training import shapes
from pyllm2.mersenne import MersenneTwister
from pyllm2.training.parameters import Parameters

STD = 0.02
SMALLER = ("wo", "w3")  # see `initial_parameters`
# What may be said of a shape, and what it is if nothing is said; 0 follows from the rest.
_WORDS = {
    "dim": 0, "layers": 0, "heads": 0, "kv_heads": 0, "hidden": 0, "context": 256, "vocab": 32000,
}  # fmt: skip


def hidden_dim(dim: int, multiple_of: int) -> int:
    """The feed-forward width that llama2.c gives a model: 8/3 of dim, rounded up to a multiple.

    Two thirds of the usual 4·dim, since the gated network has three matrices instead of two.
    Example: hidden_dim(288, 32) -> 768
    """
    return -(-int(2 * (4 * dim) / 3) // multiple_of) * multiple_of


def descriptor(text: str, vocab_size: int | None = None) -> Llama2Config:
    """The shape that a few letters name.

        260K, 15M, 42M, 110M        the published ones
        dim=64,layers=5,heads=8     any other; and kv_heads=… (as heads), hidden=… (8/3 of dim),
                                    context=… (256), vocab=… (32000)

    vocab_size: what the tokenizer has, for names that say nothing about it.

    Raises UsageError for a name that there is not, ConfigError for sizes that contradict.
    """
    if text in SHAPES:
        V = SHAPES[text].vocab_size if vocab_size is None else vocab_size
        return dataclasses.replace(SHAPES[text], vocab_size=V)
    found = dict(_WORDS) if vocab_size is None else {**_WORDS, "vocab": vocab_size}
    words = text.split(",")
    for word in words:
        match = re.fullmatch(rf"({'|'.join(_WORDS)})=(\d{{1,9}})", word, re.ASCII)
        if match is None:
            raise UsageError(
                f"model {text!r}: expected {', '.join(SHAPES)}, or dim=…,layers=…,heads=… and "
                "perhaps kv_heads=…,hidden=…,context=…,vocab=…"
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
    """The weights that llama2.c begins with: normal, standard deviation 0.02; norms 1.

    0.02/√(2L) for wo, and, as there, for w3: the rule is about the matrices whose results are
    added to the stream, and the feed-forward one of those is w2, but the published models were
    trained so. Drawn matrix by matrix in the order of the arrays, not with PyTorch's numbers.

    Raises NotEnoughMemoryError before anything is allocated.
    """
    n = config.parameters()
    memory.require(4 * n, f"{n} parameters", "take a smaller model")
    params = Parameters(shapes(config))
    rng = MersenneTwister(seed)
    for name, array in params.items():
        if name.endswith("norm"):
            array[...] = 1
        else:
            std = STD / math.sqrt(2 * config.n_layers) if name in SMALLER else STD
            array[...] = rng.normal(array.size, 0.0, std).reshape(array.shape)
    return params
