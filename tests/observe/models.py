"""Small random models of both families, as `pyllm2.load` would give them."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from pyllm2 import backends
from pyllm2.errors import PyLLM2Error
from pyllm2.formats.llama2c_q8 import quantize_weights
from pyllm2.inference.language_model import LanguageModel
from pyllm2.llama2 import ops
from pyllm2.llama2.model import Llama2
from pyllm2.parameters import Quantized
from pyllm2.testing.gpt2 import strategies as gpt2
from pyllm2.testing.llama2 import strategies as llama2


def int8(model: Llama2, group_size: int) -> Llama2:
    """The model with its matrices in int8."""
    from dataclasses import replace

    def quantized(stack: Any) -> Quantized:
        pairs = [quantize_weights(matrix.ravel(), group_size) for matrix in stack]
        values = np.stack([v.reshape(stack.shape[1:]) for v, _ in pairs])
        return Quantized(values, np.stack([s for _, s in pairs]), group_size)

    w = model.weights
    matrices: dict[str, Any] = {n: quantized(getattr(w, n)) for n in "wq wk wv wo w1 w2 w3".split()}
    table = quantized(w.token_embedding[None])[0]
    expanded = ops.dequantize(table.values, table.scales, group_size)
    weights = replace(w, **matrices, token_embedding=expanded, classifier=table)
    return Llama2(model.config, weights, model.engine)


@st.composite
def language_models(draw: Any, families: tuple[str, ...] = ("llama2", "int8", "gpt2")) -> Any:
    """A random model on NumPy, and ids for it."""
    family = draw(st.sampled_from(families))
    if family == "gpt2":
        model: Any = draw(gpt2.models())
    else:
        model = draw(llama2.models(beyond=family != "int8"))
    if family == "int8":
        divisors = [n for n in range(1, model.config.dim + 1) if model.config.dim % n == 0]
        model = int8(model, draw(st.sampled_from(divisors)))
    ids = draw(llama2.token_ids(model.config))
    return LanguageModel(model, None, "numpy"), ids.tolist()


def can_train(model: LanguageModel) -> bool:
    """Not int8, no classifier of its own, nothing that run.c has not."""
    try:
        return bool(model.trainable)
    except PyLLM2Error:
        return False


def fixed(family: str, layers: int = 2) -> LanguageModel:
    """One model of a family: "llama2", "int8" or "gpt2"."""
    if family == "gpt2":
        config: Any = gpt2.GPT2Config(12, 30, layers, 2, 16, 32)
        params = gpt2.random_parameters(config, seed=1)
        engine = backends.engine("numpy", family="gpt2")
        return LanguageModel(gpt2.GPT2(config, params, engine), None, "numpy")
    config = llama2.Llama2Config(16, 24, layers, 4, 2, 30, 12)
    weights = llama2.random_weights(config, shared_classifier=True, seed=1)
    model = Llama2(config, weights, backends.engine("numpy"))
    return LanguageModel(int8(model, 8) if family == "int8" else model, None, "numpy")
