"""hypothesis strategies for Llama-2's training: op inputs, whole small models, batches.

As in `strategies`, whose numbers and arrays these are. N rows are B sequences of T positions.
"""

from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from pyllm2.llama2 import ops_backward as specification
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.random_model import random_weights
from pyllm2.llama2.training import TrainableLlama2, shapes
from pyllm2.testing import strategies
from pyllm2.testing.gpt2_strategies import ids, mild, probabilities
from pyllm2.testing.strategies import Array, Draw, arrays, numbers, sizes
from pyllm2.training.parameters import Parameters

Tokens = NDArray[np.integer]


def targets(shape: tuple[int, ...], V: int) -> st.SearchStrategy[Tokens]:
    """In [0, V), and now and then -1: not asked."""
    asked = st.sampled_from([True, True, True, False])
    return st.builds(
        lambda a, keep: np.where(keep, a, -1).astype(a.dtype),
        ids(shape, V),
        hnp.arrays(bool, shape, elements=asked, fill=st.nothing()),
    )


@st.composite
def masks(draw: Draw, shape: tuple[int, ...]) -> Array | None:
    """What `dropout` keeps: nothing to drop, a mask, everything dropped."""
    p = draw(st.sampled_from([0.0, 0.1, 0.5, 0.75, 1.0]))
    if p == 0:
        return None
    scale = np.float32(1 / (1 - p)) if p < 1 else np.float32(2)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return np.where(random.random(shape) < p, np.float32(0), scale)


@st.composite
def embedding_backward_inputs(draw: Draw) -> tuple[Array, Tokens, Array]:
    N, V, C = draw(sizes(20)), draw(sizes(12)), draw(sizes(40))
    return draw(arrays((N, C))), draw(ids((N,), V)), draw(arrays((V, C)))


@st.composite
def rmsnorm_backward_inputs(draw: Draw) -> tuple[Array, Array, Array]:
    """Rows as they come, small beside epsilon, or zero."""
    x, weight = draw(strategies.rmsnorm_inputs())
    x *= np.float32(draw(st.sampled_from([1, 1, 1, 1e-3, 0])))
    return draw(arrays(x.shape)), x, weight


@st.composite
def matmul_backward_inputs(draw: Draw) -> tuple[Array, Array, Array]:
    """A square weight comes up often: its transpose fits as well, and must not be taken."""
    N, C = draw(sizes(40)), draw(sizes(100))
    OC = C if draw(st.integers(0, 3)) == 0 else draw(sizes(70))
    return draw(arrays((N, OC))), draw(arrays((N, C))), draw(arrays((OC, C)))


@st.composite
def attention_forward_inputs(draw: Draw) -> tuple[Array, Array, Array, Array | None]:
    """(q, k, v, keep): mild scores, or peaky ones, where one weight takes all."""
    B, T = draw(st.integers(1, 3)), draw(sizes(9))
    NKV, group, hs = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(sizes(20))
    NH = NKV * group
    limit = draw(st.sampled_from([1.0, 17.0]))  # scores up to 1, or to a few hundred
    q, k = (np.clip(draw(arrays((B, T, n, hs), mild)), -limit, limit) for n in (NH, NKV))
    return q, k, draw(arrays((B, T, NKV, hs))), draw(masks((B, NH, T, T)))


@st.composite
def attention_backward_inputs(draw: Draw) -> tuple[Any, ...]:
    q, k, v, keep = draw(attention_forward_inputs())
    out, att = specification.attention_forward(q, k, v, keep)
    return draw(arrays(out.shape)), q, k, v, att, keep


@st.composite
def swiglu_backward_inputs(draw: Draw) -> tuple[Array, Array, Array]:
    gate, up = draw(strategies.swiglu_inputs())
    return draw(arrays(gate.shape)), gate, up


@st.composite
def dropout_inputs(draw: Draw) -> tuple[Array, Array | None]:
    """Of rows, or of the weights of attention."""
    shape = draw(st.sampled_from([(1, 1), (4, 6), (7, 33), (2, 3, 4, 4)]))
    return draw(arrays(shape)), draw(masks(shape))


@st.composite
def crossentropy_forward_inputs(draw: Draw) -> tuple[Array, Tokens]:
    N, V = draw(sizes(12)), draw(sizes(60))
    elements = st.one_of(st.floats(-30, 30, width=32), numbers)
    return draw(arrays((N, V), elements)), draw(targets((N,), V))


@st.composite
def crossentropy_backward_inputs(draw: Draw) -> tuple[Array, Array, Tokens]:
    N, V = draw(sizes(12)), draw(sizes(60))
    probs = draw(hnp.arrays(np.float32, (N, V), elements=probabilities))
    return draw(arrays((N,))), probs, draw(targets((N,), V))


# ---- whole models ---------------------------------------------------------------------------


@st.composite
def trainable_configs(draw: Draw) -> Llama2Config:
    """Every shape, small: grouped heads, one head, head size 2, widths that nothing divides."""
    NKV, group, pairs = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    return Llama2Config(
        dim=NKV * group * 2 * pairs,
        hidden_dim=draw(sizes(30)),
        n_layers=draw(st.integers(1, 2)),
        n_heads=NKV * group,
        n_kv_heads=NKV,
        vocab_size=draw(st.integers(1, 30)),
        seq_len=draw(st.integers(1, 10)),
    )


def random_parameters(config: Llama2Config, seed: int) -> Parameters:
    """Those of `random_model`, in one vector."""
    params = Parameters(shapes(config))
    weights = random_weights(config, shared_classifier=True, seed=seed)
    for name, array in params.items():
        array[...] = getattr(weights, name)
    return params


@st.composite
def trainable_models(draw: Draw, ops: Any, dropout: float = 0.0) -> TrainableLlama2:
    """A whole random model over an ops object."""
    config, seed = draw(trainable_configs()), draw(st.integers(0, 2**32 - 1))
    return TrainableLlama2(config, random_parameters(config, seed), ops, dropout, seed)


@st.composite
def batches(draw: Draw, config: Llama2Config) -> tuple[Tokens, Tokens]:
    """Tokens and targets, (B, T), T up to the context; repeats among them, some not asked."""
    shape = draw(st.integers(1, 3)), draw(st.integers(1, config.seq_len))
    return draw(ids(shape, config.vocab_size)), draw(targets(shape, config.vocab_size))
