"""Untrained GPT-2s: configs by name, and initial weights."""

from __future__ import annotations

import re

import numpy as np

from pyllm2 import memory
from pyllm2.errors import UsageError
from pyllm2.gpt2.config import GPT2Config
from pyllm2.mersenne import MersenneTwister
from pyllm2.parameters import Parameters

GPT2_VOCABULARY = 50257
GPT2_CONTEXT, GPT3_CONTEXT = 1024, 2048
PADDING = 128  # rows of the token table come in multiples of this
STD = 0.02

# layers -> heads, channels
GPT2_SHAPES = {
    6: (6, 384),
    12: (12, 768),  # 124M
    24: (16, 1024),  # 350M
    36: (20, 1280),  # 774M
    48: (25, 1600),  # 1558M
    60: (30, 1920),
    72: (30, 2880),
    84: (36, 3456),
}
# channels -> layers, head size. llm.c has 5140 where the paper has 5120.
GPT3_SHAPES = {
    384: (6, 64),
    768: (12, 64),
    1024: (24, 64),
    1536: (24, 96),
    2048: (24, 128),
    2560: (32, 80),
    4096: (32, 128),
    5120: (40, 128),
    12288: (96, 128),
}


def descriptor(text: str, vocab_size: int | None = None) -> GPT2Config:
    """The config that a name or a list of sizes describes.

        d12, gpt2:d12                   GPT-2 with 12 layers
        gpt3:c768                       GPT-3 with 768 channels
        layers=2,heads=2,channels=64    any other; optional with their defaults: vocab=… (50257),
                                        context=… (1024)

    vocab_size: that of the tokenizer, where the text has no vocab=….

    Raises UsageError for any other text, ConfigError for sizes that do not go together.
    """
    V = GPT2_VOCABULARY if vocab_size is None else vocab_size
    if match := re.fullmatch(r"(?:gpt2:)?d(\d{1,9})", text, re.ASCII):
        L = int(match[1])
        if L not in GPT2_SHAPES:
            raise UsageError(f"model {text!r}: expected d followed by {_or(GPT2_SHAPES)}")
        NH, C = GPT2_SHAPES[L]
        return _config(GPT2_CONTEXT, V, L, NH, C)
    if match := re.fullmatch(r"gpt3:c(\d{1,9})", text, re.ASCII):
        C = int(match[1])
        if C not in GPT3_SHAPES:
            raise UsageError(f"model {text!r}: expected gpt3:c followed by {_or(GPT3_SHAPES)}")
        L, hs = GPT3_SHAPES[C]
        return _config(GPT3_CONTEXT, V, L, C // hs, C)
    return _from_sizes(text, V)


def _from_sizes(text: str, V: int) -> GPT2Config:
    found = {"vocab": V, "context": GPT2_CONTEXT}
    words = text.split(",")
    for word in words:
        match = re.fullmatch(r"(layers|heads|channels|vocab|context)=(\d{1,9})", word, re.ASCII)
        if match is None:
            raise UsageError(
                f"model {text!r}: expected d12, gpt3:c768, or layers=…,heads=…,channels=… "
                "(optional: vocab=…,context=…)"
            )
        found[match[1]] = int(match[2])
    given = {word.partition("=")[0] for word in words}
    missing = [name for name in ("layers", "heads", "channels") if name not in given]
    if missing or len(given) < len(words):
        fault = f"{missing[0]}=… is missing" if missing else "a size is given twice"
        raise UsageError(f"model {text!r}: {fault}")
    return _config(
        found["context"], found["vocab"], found["layers"], found["heads"], found["channels"]
    )


def _config(S: int, V: int, L: int, NH: int, C: int) -> GPT2Config:
    return GPT2Config(S, V, L, NH, C, -(-V // PADDING) * PADDING)


def _or(numbers: dict[int, tuple[int, int]]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} or {last}"


def initial_parameters(config: GPT2Config, seed: int = 42) -> Parameters:
    """The weights that training starts from, as in llm.c: tables and matrices normal.

    Standard deviation 0.02, but 0.02/√(2L) for the two matrices of a layer whose results are added
    to the residual stream, so that the stream does not grow with depth. Weights of norms are 1;
    biases, and the rows of wte beyond the vocabulary, are 0. Arrays are drawn in PyTorch's order;
    `pyllm2.mersenne` says which last bits differ.

    Raises NotEnoughMemoryError before anything is allocated.
    """
    n = config.parameters()
    memory.require(4 * n, f"{n} parameters", "take a smaller model")
    params = Parameters(config.shapes())
    rng = MersenneTwister(seed)
    V, L = config.vocab_size, config.num_layers
    residual_std = float(np.float32(STD) * (np.float32(1) / np.sqrt(np.float32(2 * L))))
    for name in ("ln1w", "ln2w", "lnfw"):
        params[name][...] = 1
    drawn = [(params.wte[:V], STD), (params.wpe, STD)]
    for i in range(L):
        drawn += [(params.qkvw[i], STD), (params.attprojw[i], residual_std)]
        drawn += [(params.fcw[i], STD), (params.fcprojw[i], residual_std)]
    for array, std in drawn:
        array[...] = rng.normal(array.size, 0.0, std).reshape(array.shape)
    return params
