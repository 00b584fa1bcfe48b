"""The backward ops and both passes of csrc/llama2: bits, threads, memory.

No original in C left a record of these, so the bits are those of an evaluation in Python that adds
in the documented order. Bounds and laws, of the fast build too, are in tests/llama2.
"""

from __future__ import annotations

import inspect
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2 import backends
from pyllm2.backends import Engine
from pyllm2.compiling import c_build
from pyllm2.compiling.c_library import library
from pyllm2.llama2 import ops
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.model import Llama2, Weights
from pyllm2.llama2.ops_c import Ops
from pyllm2.llama2.training import TrainableLlama2
from pyllm2.parameters import Parameters
from tests.csrc.layout import offsets, starts
from tests.csrc.llama2_exact import Exact
from tests.csrc.oracle import same_bits

pytestmark = pytest.mark.skipif(
    c_build.why_not() is not None, reason=f"backend 'c' {c_build.why_not()}"
)


@st.composite
def sizes(draw):
    """B, T, NKV, query heads per group, hs/2, F, V: small, each sometimes 1."""
    most = {"B": 3, "T": 6, "NKV": 3, "group": 3, "half": 3, "F": 20, "V": 12}
    return {name: draw(st.integers(1, top)) for name, top in most.items()}


def arguments(n, seed, drop):
    """Arguments for each op of training; with dropout if `drop`."""
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
    att = ops.attention_forward(q, k, v)[1]
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


FUNCTIONS = [name for name, f in inspect.getmembers(ops, inspect.isfunction) if name[0] != "_"]
NAMES = [
    name for name in FUNCTIONS if name.endswith(("_forward", "_backward")) or name == "dropout"
]
SEEDS = st.integers(0, 2**32 - 1)


def test_the_arguments_are_those_of_every_op():
    """Every op of the specification is tested here, and every backend has it."""
    one = dict.fromkeys(("B", "T", "NKV", "group", "half", "F", "V"), 1)
    assert set(arguments(one, 0, False)) == set(NAMES)
    for backend in ("numpy", "c", "c-strict"):
        found = backends.ops(backend, None, "llama2")
        assert all(callable(getattr(found, name)) for name in FUNCTIONS)


# ---- ops ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@given(n=sizes(), seed=SEEDS, drop=st.booleans())
def test_the_strict_build_adds_in_ascending_order(name, n, seed, drop):
    """Equal bits, except that the two zeros are equal."""
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
    N=st.integers(1, 18),
    OC=st.integers(1, 18),
    C=st.sampled_from([1, 5, 31, 32, 33, 70]),
    more=st.sampled_from([0, 256, 512]),
    seed=SEEDS,
)
def test_matmul_backward_in_tiles_is_the_naive_one(N, OC, C, more, seed):
    """Tiles, their remainder, blocks of 256 rows and old contents of the outputs change no bit."""
    random = np.random.default_rng(seed)
    llama2 = library("llama2", "strict")
    for rows, columns in ((N + more, OC), (N, OC + more)):
        shapes_ = ((rows, columns), (rows, C), (columns, C))
        dout, x, w = (random.normal(size=s).astype(np.float32) for s in shapes_)
        results = []
        for name in ("matmul_backward", "matmul_backward_naive"):
            dx, dw = np.full_like(x, np.nan), np.full_like(w, np.nan)
            getattr(llama2, name)(dx, dw, dout, x, w, rows, C, columns)
            results.append((dx, dw))
        assert all(map(same_bits, *results))


@pytest.mark.parametrize("T", [63, 64, 65, 68, 128, 131])
def test_matmul_in_blocks_of_tokens_is_the_naive_one(T):
    """The end of a block changes no bit."""
    random, llama2 = np.random.default_rng(T), library("llama2", "strict")
    x, w = (random.normal(size=s).astype(np.float32) for s in ((T, 7), (9, 7)))
    blocks, naive = np.full((2, T, 9), np.nan, np.float32)
    llama2.matmul(blocks, x, w, None, T, 7, 9)
    llama2.matmul_naive(naive, x, w, None, T, 7, 9)
    assert same_bits(blocks, naive)


@given(n=sizes(), seed=SEEDS)
def test_attention_of_training_is_that_of_inference(n, seed):
    """Two C functions with the same sums give the same bits in the strict build."""
    q, k, v, _ = arguments(n, seed, False)["attention_forward"]
    strict = Ops("strict")
    out, att = strict.attention_forward(q, k, v)
    for b in range(len(q)):
        assert same_bits(out[b], strict.attention(q[b], k[b], v[b]))
    assert not att[..., np.triu(np.ones(att.shape[-2:], bool), 1)].any()


# ---- memory ---------------------------------------------------------------------------------


def activation_shapes(B, T, C, F, L, NH, NKV, hs, V):
    """The shapes that csrc/llama2/training.h documents, in the order of its struct."""
    N, KV = B * T, NKV * hs
    into = [(N, hs // 2)] * 2 + [(L + 1, N, C), (L, N, C), (L, N, C), (L, N, KV), (L, N, KV)]
    middle = [(L, B, NH, T, T), (L, N, C), (L, N, C), (L, N, C)] + [(L, N, F)] * 3
    return into + middle + [(N, C), (N, C), (N, V), (N, V), (N,)]


def gradient_shapes(B, T, C, F, L, NH, NKV, hs, V):
    N, KV = B * T, NKV * hs
    into = [(N,), (N, V), (N, C), (N, C), (N, C), (N, C), (N, KV), (N, KV), (B, NKV, T)]
    return into + [(N, F)] * 3


@given(n=sizes(), L=st.integers(1, 3))
def test_buffers_lie_one_after_the_other(n, L):
    """As training.h documents them, without a gap."""
    llama2, config, B, T = library("llama2", "strict"), config_of(n, L), n["B"], n["T"]
    numbers = {name: getattr(config, name) for name in llama2.fields("config")[:7]}
    c = llama2.struct("config", **numbers)
    letters = config.dim, n["F"], L, config.n_heads, n["NKV"], config.head_size, n["V"]
    for name, shapes in (
        ("activation", activation_shapes(B, T, *letters)),
        ("gradient", gradient_shapes(B, T, *letters)),
    ):
        struct = llama2.struct(f"{name}s")
        getattr(llama2, f"{name}s_bind")(struct, c, None, B, T)
        assert offsets(struct) == starts(shapes)
        total = sum(int(np.prod(shape)) for shape in shapes)
        assert getattr(llama2, f"{name}_floats")(c, B, T) == total


def test_sizes_that_do_not_fit_are_the_largest_integer():
    """Never a small or negative number, which a caller would allocate."""
    llama2, most = library("llama2", "strict"), 2**31 - 1
    sizes_only = [name for name in llama2.fields("config") if name != "windows"]
    c = llama2.struct("config", **dict.fromkeys(sizes_only, most))
    c.n_heads = c.n_kv_heads = 1
    for floats, sizes_ in (
        (llama2.cache_floats, (most,)),
        (llama2.state_floats, (most, 2**40)),
        (llama2.activation_floats, (2**40, 2**40)),
        (llama2.gradient_floats, (2**40, 2**40)),
    ):
        assert floats(c, *sizes_) == 2**63 - 1


# ---- both passes ----------------------------------------------------------------------------


def in_one_piece(ops_):
    """The engine of a build: both passes are one call of C each."""
    return Engine(ops_, ops_.forward, ops_.losses, ops_.add_gradient)


def random_model(config, engine, seed):
    """All weights normal; norms around 1."""
    random, params = np.random.default_rng(seed), Parameters(config.shapes())
    for name, a in params.items():
        a[...] = random.normal(1 if name.endswith("norm") else 0, 0.3, a.shape)
    return TrainableLlama2(config, params, engine)


def random_batch(config, B, T, seed):
    """tokens, targets: (B, T); some targets are -1."""
    random, V = np.random.default_rng(seed), config.vocab_size
    return random.integers(0, V, (B, T)), random.integers(-1, V, (B, T))


def config_of(n, L):
    NH = n["NKV"] * n["group"]
    return Llama2Config(NH * 2 * n["half"], n["F"], L, NH, n["NKV"], n["V"], n["T"])


@given(n=sizes(), L=st.integers(1, 3), seed=SEEDS)
def test_both_passes_are_the_composition_of_their_ops(n, L, seed):
    """Equal bits in the strict build: losses, a first gradient, and a second one added to it."""
    config, strict = config_of(n, L), Ops("strict")
    batches = [random_batch(config, n["B"], n["T"], seed + i) for i in range(2)]
    results = []
    for engine in (in_one_piece(strict), Engine(strict)):
        model = random_model(config, engine, seed)
        grads = model.params.zeros_like()
        grads.flat.fill(np.nan)
        for i, (tokens, targets) in enumerate(batches):
            losses = model.add_gradient(tokens, targets, 0.3, grads, fresh=i == 0)
            assert same_bits(losses, model.losses(tokens, targets))
            results.append([losses, *(a.copy() for a in grads.values())])
    for whole, composed in zip(results[:2], results[2:], strict=True):
        for name, a, b in zip(("losses", *config.shapes()), whole, composed, strict=True):
            np.testing.assert_array_equal(a, b, name)


def test_buffers_are_kept_and_what_is_left_in_them_does_not_matter():
    """After another batch, another shape or NaN in every buffer, a gradient has the same bits."""
    n = {"B": 2, "T": 5, "NKV": 2, "group": 2, "half": 2, "F": 11, "V": 13}
    config, strict = config_of(n, 2), Ops("strict")
    model = random_model(config, in_one_piece(strict), 1)

    def gradient(T, seed):
        grads = model.params.zeros_like()
        return model.add_gradient(*random_batch(config, 2, T, seed), 0.5, grads, True), grads.flat

    first = gradient(5, 1)
    gradient(5, 2)
    with strict._buffers.of(config, 2, 5) as buffers:
        buffers.memory.fill(np.nan)
        buffers.workspace.fill(np.nan)
    again = gradient(5, 1)
    with strict._buffers.of(config, 2, 5) as kept:
        assert kept is buffers
    gradient(3, 3)
    assert all(map(same_bits, first, again))
    assert all(map(same_bits, first, gradient(5, 1)))


def test_threads_of_python_may_share_a_model():
    """Each gets the losses and gradient of its own batch, although the buffers are shared."""
    config = Llama2Config(32, 64, 2, 4, 2, 40, 32)
    model = random_model(config, in_one_piece(Ops("strict")), 1)
    batches = [random_batch(config, 2, 32, seed) for seed in range(4)]

    def gradient(batch):
        grads = model.params.zeros_like()
        return model.add_gradient(*batch, 0.5, grads, True), grads.flat

    alone = [gradient(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            for expected, found in zip(alone, pool.map(gradient, batches), strict=True):
                assert all(map(same_bits, expected, found))


def test_a_gradient_that_c_cannot_write_into_is_refused():
    """C would write into a copy."""
    config = Llama2Config(4, 6, 1, 2, 1, 5, 3)
    model = random_model(config, in_one_piece(Ops("strict")), 1)
    tokens, targets = random_batch(config, 1, 3, 1)
    grads = Parameters(config.shapes(), np.zeros(model.params.flat.size))
    with pytest.raises(TypeError, match="float32"):
        model.add_gradient(tokens, targets, 1.0, grads, fresh=True)


@given(n=sizes(), L=st.integers(1, 2), seed=SEEDS)
def test_training_sees_the_logits_that_inference_does(n, L, seed):
    """Equal bits."""
    config, strict = config_of(n, L), Ops("strict")
    model = random_model(config, Engine(strict), seed)
    tokens, targets = random_batch(config, n["B"], n["T"], seed)
    logits = model.forward(tokens, targets).logits.reshape(n["B"], n["T"], -1)
    run = Llama2(config, Weights(**model.params, classifier=None), Engine(strict))
    for sequence, expected in zip(tokens, logits, strict=True):
        assert same_bits(run.forward(sequence, 0, run.new_cache(n["T"])), expected)


# ---- threads --------------------------------------------------------------------------------


@pytest.mark.parametrize("threaded", ["llama2"], indirect=True)
def test_threads_change_no_bit(threaded):
    """Sizes at which every loop runs in parallel."""
    config = Llama2Config(48, 700, 1, 4, 2, 1500, 36)
    tokens, targets = random_batch(config, 2, 36, 6)
    assert min(72 * 48 * 24, 2 * 36 * 36 * 48, 72 * 700, 72 * 1500) > 50000
    results = []
    for build in ("strict", threaded):
        model = random_model(config, in_one_piece(Ops(build, threads=3)), 6)
        grads = model.params.zeros_like()
        results.append((model.add_gradient(tokens, targets, 1 / 72, grads, True), grads.flat))
    assert all(map(same_bits, *results))
