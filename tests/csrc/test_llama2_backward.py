"""csrc/llama2_backward.c and both passes of csrc/llama2_training.c: bits, threads, memory.

No original in C has left a record of these, so the bits are those of an evaluation in Python that
adds in the promised order. Bounds and laws, of the fast build too, are in tests/llama2.
"""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2 import backends, native
from pyllm2.c_library import Library
from pyllm2.llama2 import ops, ops_backward
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.model import Llama2, Weights
from pyllm2.llama2.ops_c import Ops
from pyllm2.llama2.training import TrainableLlama2, shapes
from pyllm2.training.parameters import Parameters

from .llama2_backward import Exact
from .oracle import same_bits

pytestmark = pytest.mark.skipif(
    native.why_not() is not None, reason=f"backend 'c' {native.why_not()}"
)


@st.composite
def sizes(draw):
    """B, T, NKV, query heads a group, hs/2, F, V: small, and every one of them 1 at times."""
    most = {"B": 3, "T": 6, "NKV": 3, "group": 3, "half": 3, "F": 20, "V": 12}
    return {name: draw(st.integers(1, top)) for name, top in most.items()}


def arguments(n, seed, drop):
    """What each op of `ops_backward` may be called with. drop: with dropout, or None."""
    random = np.random.default_rng(seed)

    def normal(*shape):
        return random.normal(size=shape).astype(np.float32)

    def keep(*shape):
        return random.choice(np.float32([0, 1.25]), shape) if drop else None

    B, T, NKV, hs, F, V = n["B"], n["T"], n["NKV"], 2 * n["half"], n["F"], n["V"]
    N, NH = B * T, n["NKV"] * n["group"]
    C = NH * hs
    q, k, v = normal(B, T, NH, hs), normal(B, T, NKV, hs), normal(B, T, NKV, hs)
    keep_weights = keep(B, NH, T, T)
    att = ops_backward.attention_forward(q, k, v)[1]
    targets = random.integers(-1, V, N, dtype=np.int32)
    probs = ops.softmax(normal(N, V))
    return {
        "embedding_backward": (normal(N, C), random.integers(0, V, N), normal(V, C)),
        "rmsnorm_backward": (normal(N, C), normal(N, C), normal(C)),
        "matmul_backward": (normal(N, F), normal(N, C), normal(F, C)),
        "rope_backward": (normal(N, NH, hs), normal(N, hs // 2), normal(N, hs // 2)),
        "attention_forward": (q, k, v, keep_weights),
        "attention_backward": (normal(B, T, C), q, k, v, att, keep_weights),
        "swiglu_backward": (normal(N, F), 3 * normal(N, F), normal(N, F)),
        "dropout": (normal(N, C), keep(N, C)),
        "crossentropy_forward": (3 * normal(N, V), targets),
        "crossentropy_backward": (normal(N), probs, targets),
    }


def tuple_of(results):
    return results if isinstance(results, tuple) else (results,)


NAMES = tuple(
    name for name, f in inspect.getmembers(ops_backward, inspect.isfunction) if name[0] != "_"
)
SEEDS = st.integers(0, 2**32 - 1)


def test_the_arguments_are_those_of_every_op():
    """An op that the specification gains is not forgotten here, and no backend lacks one."""
    one = dict.fromkeys(("B", "T", "NKV", "group", "half", "F", "V"), 1)
    assert set(arguments(one, 0, False)) == set(NAMES)
    forward = {name for name, f in inspect.getmembers(ops, inspect.isfunction) if name[0] != "_"}
    for backend in ("numpy", "c", "c-strict"):
        found = backends.ops(backend, None, "llama2")
        assert all(callable(getattr(found, name)) for name in forward | set(NAMES))


# ---- ops ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@given(n=sizes(), seed=SEEDS, drop=st.booleans())
def test_the_strict_build_adds_in_ascending_order(name, n, seed, drop):
    """Every result to the bit; zeros of either sign are the same number."""
    try:
        exact = Exact()
    except OSError as error:
        pytest.skip(f"no glibc: {error}")
    given_to_it = arguments(n, seed, drop)[name]
    found = tuple_of(getattr(Ops("strict"), name)(*given_to_it))
    expected = tuple_of(getattr(exact, name)(*given_to_it))
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_array_equal(a, b)


@given(
    N=st.integers(1, 18), OC=st.integers(1, 18), C=st.sampled_from([1, 5, 31, 32, 33, 70]),
    more=st.sampled_from([0, 256, 512]), seed=SEEDS,
)  # fmt: skip
def test_matmul_backward_in_tiles_is_the_naive_one(N, OC, C, more, seed):
    """Tiles, what they leave over, and 256 rows before the next change no bit; nor stale memory."""
    random = np.random.default_rng(seed)
    library = Library("llama2_training", "strict", prefix="llama2")
    for rows, columns in ((N + more, OC), (N, OC + more)):
        shapes_ = ((rows, columns), (rows, C), (columns, C))
        dout, x, w = (random.normal(size=s).astype(np.float32) for s in shapes_)
        results = []
        for name in ("matmul_backward", "matmul_backward_naive"):
            dx, dw = np.full_like(x, np.nan), np.full_like(w, np.nan)
            library.call(name, dx, dw, dout, x, w, rows, C, columns)
            results.append((dx, dw))
        assert all(map(same_bits, *results))


@pytest.mark.parametrize("T", [63, 64, 65, 68, 128, 131])
def test_matmul_in_blocks_of_tokens_is_the_naive_one(T):
    """Training feeds thousands of rows at once; where one block ends changes no bit."""
    random, library = np.random.default_rng(T), Library("llama2", "strict")
    x, w = (random.normal(size=s).astype(np.float32) for s in ((T, 7), (9, 7)))
    blocks, naive = np.full((2, T, 9), np.nan, np.float32)
    library.call("matmul", blocks, x, w, T, 7, 9)
    library.call("matmul_naive", naive, x, w, T, 7, 9)
    assert same_bits(blocks, naive)


@given(n=sizes(), seed=SEEDS)
def test_attention_of_training_is_that_of_inference(n, seed):
    """To the bit in the strict build, where two functions of C do the same sums."""
    q, k, v, _ = arguments(n, seed, False)["attention_forward"]
    strict = Ops("strict")
    out, att = strict.attention_forward(q, k, v)
    for b in range(len(q)):
        assert same_bits(out[b], strict.attention(q[b], k[b], v[b]))
    assert not att[..., np.triu(np.ones(att.shape[-2:], bool), 1)].any()


# ---- both passes ----------------------------------------------------------------------------


def random_model(config, ops_, seed):
    """Everything normal; norms about 1."""
    random, params = np.random.default_rng(seed), Parameters(shapes(config))
    for name, a in params.items():
        a[...] = random.normal(1 if name.endswith("norm") else 0, 0.3, a.shape)
    return TrainableLlama2(config, params, ops_)


def random_batch(config, B, T, seed):
    """tokens, targets: (B, T); some targets are not asked about."""
    random, V = np.random.default_rng(seed), config.vocab_size
    return random.integers(0, V, (B, T)), random.integers(-1, V, (B, T))


class Composed:
    """The same ops without the passes in one piece."""

    def __init__(self, whole):
        self._whole = whole

    def __getattr__(self, name):
        if name in ("losses", "add_gradient"):
            raise AttributeError(name)
        return getattr(self._whole, name)


def config_of(n, L):
    NH = n["NKV"] * n["group"]
    return Llama2Config(NH * 2 * n["half"], n["F"], L, NH, n["NKV"], n["V"], n["T"])


@given(n=sizes(), L=st.integers(1, 3), seed=SEEDS)
def test_both_passes_are_the_composition_of_their_ops(n, L, seed):
    """The strict build to the bit: losses, the first gradient, and what a second adds to it."""
    config, strict = config_of(n, L), Ops("strict")
    batches = [random_batch(config, n["B"], n["T"], seed + i) for i in range(2)]
    results = []
    for ops_ in (strict, Composed(strict)):
        model = random_model(config, ops_, seed)
        grads = model.params.zeros_like()
        grads.flat.fill(np.nan)
        for i, (tokens, targets) in enumerate(batches):
            losses = model.add_gradient(tokens, targets, 0.3, grads, fresh=i == 0)
            assert same_bits(losses, model.losses(tokens, targets))
            results.append([losses, *(a.copy() for a in grads.values())])
    for whole, composed in zip(results[:2], results[2:], strict=True):
        for name, a, b in zip(("losses", *shapes(config)), whole, composed, strict=True):
            np.testing.assert_array_equal(a, b, name)


def test_buffers_are_kept_and_what_is_left_in_them_does_not_matter():
    """Another batch, another shape, NaN in every buffer: the first gradient comes out again."""
    n = {"B": 2, "T": 5, "NKV": 2, "group": 2, "half": 2, "F": 11, "V": 13}
    config, strict = config_of(n, 2), Ops("strict")
    model = random_model(config, strict, 1)

    def gradient(T, seed):
        grads = model.params.zeros_like()
        return model.add_gradient(*random_batch(config, 2, T, seed), 0.5, grads, True), grads.flat

    first = gradient(5, 1)
    gradient(5, 2)
    buffers = strict._buffers
    for a in (*buffers._acts.values(), *buffers._grads.values()):
        a.fill(np.nan)
    again = gradient(5, 1)
    assert strict._buffers is buffers
    gradient(3, 3)
    assert all(map(same_bits, first, again))
    assert all(map(same_bits, first, gradient(5, 1)))


def test_a_gradient_that_c_cannot_write_into_is_refused():
    """Rather than left as it was while a copy is written to."""
    config = Llama2Config(4, 6, 1, 2, 1, 5, 3)
    model = random_model(config, Ops("strict"), 1)
    tokens, targets = random_batch(config, 1, 3, 1)
    grads = Parameters(shapes(config), np.zeros(model.params.flat.size))
    with pytest.raises(TypeError, match="float32"):
        model.add_gradient(tokens, targets, 1.0, grads, fresh=True)


@given(n=sizes(), L=st.integers(1, 2), seed=SEEDS)
def test_training_sees_the_logits_that_inference_does(n, L, seed):
    """To the bit: the model that is trained is the one that is run."""
    config, strict = config_of(n, L), Ops("strict")
    model = random_model(config, Composed(strict), seed)
    tokens, targets = random_batch(config, n["B"], n["T"], seed)
    logits = model.forward(tokens, targets).logits.reshape(n["B"], n["T"], -1)
    run = Llama2(config, Weights(**model.params, classifier=None), strict)
    for sequence, expected in zip(tokens, logits, strict=True):
        assert same_bits(run.forward(sequence, 0, run.new_cache(n["T"])), expected)


# ---- threads --------------------------------------------------------------------------------


@pytest.mark.parametrize("threaded", ["llama2_training"], indirect=True)
def test_threads_change_no_bit(threaded):
    """Large enough that every loop is shared out."""
    config = Llama2Config(48, 700, 1, 4, 2, 1500, 36)
    tokens, targets = random_batch(config, 2, 36, 6)
    assert min(72 * 48 * 24, 2 * 36 * 36 * 48, 72 * 700, 72 * 1500) > 50000
    results = []
    for build in ("strict", threaded):
        model = random_model(config, Ops(build, threads=3), 6)
        grads = model.params.zeros_like()
        results.append((model.add_gradient(tokens, targets, 1 / 72, grads, True), grads.flat))
    assert all(map(same_bits, *results))
