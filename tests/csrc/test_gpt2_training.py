"""csrc/gpt2: memory, accumulation, both passes as the composition of their ops, threads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.backends import Engine
from pyllm2.compiling import c_build
from pyllm2.compiling.c_library import library
from pyllm2.gpt2.config import GPT2Config
from pyllm2.gpt2.ops_c import Ops
from pyllm2.gpt2.training import TrainableGPT2
from pyllm2.parameters import Parameters
from pyllm2.training.ops_c import Ops as TrainingOps
from tests.csrc.gpt2 import Pass, activation_shapes, c_config, random_batch, random_parameters
from tests.csrc.layout import offsets, starts
from tests.csrc.oracle import same_bits

pytestmark = pytest.mark.skipif(
    c_build.why_not() is not None, reason=f"backend 'c' {c_build.why_not()}"
)

INT64_MAX = 2**63 - 1
GPT2_124M = GPT2Config(1024, 50257, 12, 12, 768, 50304)
SMALL = GPT2Config(
    max_seq_len=9, vocab_size=13, num_layers=2, num_heads=2, channels=6, padded_vocab_size=16
)


@pytest.fixture(scope="module")
def gpt2():
    return library("gpt2", "strict")


@st.composite
def configs(draw):
    """Every shape, small: one head, head size 1, a vocabulary with and without padding."""
    NH, hs, V = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 20))
    padded = V + draw(st.integers(0, 3))
    return GPT2Config(draw(st.integers(1, 9)), V, draw(st.integers(1, 3)), NH, NH * hs, padded)


# ---- memory ---------------------------------------------------------------------------------


@given(config=configs(), B=st.integers(1, 3), T=st.integers(1, 5))
def test_tensors_lie_one_after_the_other_in_the_order_of_a_model_file(config, B, T):
    """Parameters in the order of GPT2Config.shapes; activations as training.h says."""
    gpt2, shapes = library("gpt2", "strict"), activation_shapes(config, B, T)
    params, acts, c = gpt2.struct("parameters"), gpt2.struct("activations"), c_config(gpt2, config)
    gpt2.parameters_bind(params, c, None)
    assert tuple(config.shapes()) == gpt2.fields("parameters")
    assert offsets(params) == starts(config.shapes().values())
    assert gpt2.parameter_floats(c) == config.parameters()
    gpt2.activations_bind(acts, c, None, B, T)
    assert tuple(shapes) == gpt2.fields("activations")
    assert offsets(acts) == starts(shapes.values())
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    assert gpt2.activation_floats(c, B, T) == total


def test_sizes_of_the_smallest_model_that_openai_published(gpt2):
    """The figures that llm.c prints, up to the padding of the vocabulary."""
    config = c_config(gpt2, GPT2_124M)
    assert gpt2.parameter_floats(config) == 124475904
    assert gpt2.activation_floats(config, 4, 64) == 73347840


def test_sizes_that_do_not_fit_are_the_largest_integer(gpt2):
    """Never a small or negative number, which a caller would allocate."""
    config = gpt2.struct("config", **dict.fromkeys(gpt2.fields("config"), 2**31 - 1))
    config.num_heads = 1
    assert gpt2.parameter_floats(config) == INT64_MAX
    assert gpt2.activation_floats(config, 4, 64) == INT64_MAX
    config = c_config(gpt2, GPT2_124M)
    for B, T in ((INT64_MAX, 1), (1, 2**40), (2**40, 2**40)):
        assert gpt2.activation_floats(config, B, T) == INT64_MAX


# ---- both passes ----------------------------------------------------------------------------


@given(config=configs(), data=st.data())
def test_both_passes_are_the_composition_of_their_ops(config, data):
    """The strict build to the bit: what is kept, losses, gradients."""
    B, T = data.draw(st.integers(1, 3)), data.draw(st.integers(1, config.max_seq_len))
    seed = data.draw(st.integers(0, 2**32 - 1))
    params, (tokens, targets) = random_parameters(config, seed), random_batch(config, B, T, seed)
    model = TrainableGPT2(config, params, Engine(Ops("strict")))
    acts = model.forward(tokens, targets)
    grads = model.backward(acts, np.full((B, T), 0.25, np.float32))

    whole = Pass(library("gpt2", "strict"), config, params, B, T)
    whole.forward(tokens, targets)
    whole.backward(tokens, targets, 0.25)
    for name in ("residual3", "lnf", "lnf_mean", "lnf_rstd", "logits", "probs", "losses"):
        kept = whole.acts[name][-1] if name == "residual3" else whole.acts[name]
        np.testing.assert_array_equal(kept, getattr(acts, name), name)
    for layer, block in enumerate(acts.blocks):
        for name in ("ln1", "ln1_rstd", "qkv", "att", "atty", "residual2", "ln2", "fch_gelu"):
            np.testing.assert_array_equal(whole.acts[name][layer], getattr(block, name), name)
    for name, gradient in whole.grads.items():
        np.testing.assert_array_equal(gradient, grads[name], name)


def test_a_forward_writes_everything_but_future_scores_and_losses_nobody_asked_for(gpt2):
    """Buffers that held NaN hold none, except those that training.h documents as unwritten."""
    run = Pass(gpt2, SMALL, random_parameters(SMALL, 1), 2, 5)
    tokens, targets = random_batch(SMALL, 2, 5, 1)
    run.forward(tokens)
    assert np.isnan(run.acts.losses).all()
    run.forward(tokens, targets)
    future = np.triu(np.ones((5, 5), bool), 1)
    for name, a in run.acts.items():
        unwritten = np.broadcast_to(future, a.shape) if name == "preatt" else np.zeros(a.shape)
        np.testing.assert_array_equal(np.isnan(a), unwritten, name)
    np.testing.assert_array_equal(run.acts.att[..., future], 0)


def test_a_backward_adds_to_what_is_there(gpt2):
    """A gradient of zero leaves the outputs unchanged."""
    tokens, targets = random_batch(SMALL, 2, 4, 2)
    run = Pass(gpt2, SMALL, random_parameters(SMALL, 2), 2, 4)
    run.forward(tokens, targets)
    run.grads.flat[...] = before = np.random.default_rng(3).normal(size=run.grads.flat.size)
    run.backward(tokens, targets, 0)
    assert same_bits(run.grads.flat, before.astype(np.float32))


def test_padding_learns_nothing_from_a_loss(gpt2):
    """The rows of wte past the vocabulary, whatever they hold, get a gradient of zero."""
    tokens, targets = random_batch(SMALL, 2, 4, 5)
    run = Pass(gpt2, SMALL, random_parameters(SMALL, 5), 2, 4)
    run.forward(tokens, targets)
    run.backward(tokens, targets, 1)
    assert not run.grads.wte[SMALL.vocab_size :].any()
    assert run.grads.wte[: SMALL.vocab_size].all()
    assert not run.acts.probs[..., SMALL.vocab_size :].any()
    assert same_bits(run.dacts.losses, np.ones((2, 4)))


def test_the_mean_loss_is_a_sum_in_order_divided_once(gpt2):
    """In float32: sums in other orders have other bits."""
    losses = np.float32([2.0**24, 1, 1, 1 - 2.0**24])
    assert gpt2.mean_loss(losses, 4) == 1 / 4
    assert gpt2.mean_loss(losses[:3], 3) == np.float32(2**24) / np.float32(3)


# ---- ops ------------------------------------------------------------------------------------


@given(N=st.integers(1, 26), C=st.integers(1, 20), OC=st.integers(1, 20), bias=st.booleans())
def test_matmul_in_tiles_is_the_naive_one(N, C, OC, bias):
    """Eight rows at a time give the same bits, with any remainder."""
    random, gpt2 = np.random.default_rng(N), library("gpt2", "strict")
    x, w, b = (random.normal(size=s).astype(np.float32) for s in ((N, C), (OC, C), (OC,)))
    tiled, naive = np.full((2, N, OC), np.nan, np.float32)
    gpt2.matmul_forward(tiled, x, w, b if bias else None, N, C, OC)
    gpt2.matmul_forward_naive(naive, x, w, b if bias else None, N, C, OC)
    assert same_bits(tiled, naive)


def test_every_backward_adds(gpt2):
    """A dout of zero leaves the contents of every output alone, to the bit."""
    random = np.random.default_rng(4)

    def normal(*shape):
        return random.normal(size=shape).astype(np.float32)

    B, T, C, NH, OC, V, Vp = 2, 3, 4, 2, 5, 6, 7
    N, zero = B * T, np.zeros(1000, np.float32)
    x, w, rows = normal(N, C), normal(OC, C), normal(N)
    qkv, att, probs = normal(B, T, 3 * C), normal(B, NH, T, T), normal(N, Vp)
    tokens, targets = random.integers(0, V, (2, N), dtype=np.int32)
    calls = {
        "encoder": ([(Vp, C), (T, C)], zero, tokens, B, T, C),
        "layernorm": ([(N, C), (C,), (C,)], zero, x, normal(C), rows, np.abs(rows), N, C),
        "matmul": ([(N, C), (OC, C), (OC,)], zero, x, w, N, C, OC),
        "gelu": ([(N, C)], zero, x, N * C),
        "residual": ([(N, C), (N, C)], zero, N * C),
        "crossentropy_softmax": ([(N, Vp)], zero, probs, targets, N, V, Vp),
    }
    for name, (shapes, *inputs) in calls.items():
        outputs = [normal(*shape) for shape in shapes]
        before = [a.copy() for a in outputs]
        getattr(gpt2, f"{name}_backward")(*outputs, *inputs)
        assert all(map(same_bits, outputs, before)), name
    # attention multiplies the contents of datt and dpreatt, so these are zero here
    dqkv, between = normal(B, T, 3 * C), np.zeros((2, B, NH, T, T), np.float32)
    before = dqkv.copy()
    gpt2.attention_backward(dqkv, *between, zero, qkv, att, B, T, C, NH)
    assert same_bits(dqkv, before)
    assert not between.any()


# ---- threads --------------------------------------------------------------------------------


@pytest.mark.parametrize("threaded", ["gpt2"], indirect=True)
def test_threads_change_no_bit(threaded):
    """Sizes at which every loop runs in parallel: activations, gradients, the optimizer."""
    config = GPT2Config(40, 1500, 1, 4, 48, 1504)
    params, (tokens, targets) = random_parameters(config, 6), random_batch(config, 2, 36, 6)
    assert min(72 * 48 * 48, 2 * 36 * 36 * 48, 72 * 1500, params.flat.size) > 50000
    passes = []
    for build in ("strict", threaded):
        Ops(build, threads=3)
        run = Pass(library("gpt2", build), config, params, 2, 36)
        run.forward(tokens, targets)
        run.backward(tokens, targets, 1 / 72)
        learned = Parameters(params.shapes, params.flat.copy())
        m, v = params.zeros_like(), params.zeros_like()
        TrainingOps(build, threads=3).adamw_update(
            learned.flat, run.grads.flat, m.flat, v.flat, 1, 1e-3, 0.9, 0.999, 1e-8, 0.1
        )
        passes.append((run.acts, run.dacts, run.grads, learned, m, v))
    for one, several in zip(*passes, strict=True):
        for name in one:
            assert same_bits(one[name], several[name]), name


@pytest.mark.parametrize("threaded", ["gpt2"], indirect=True)
def test_matmul_with_rows_left_over_is_shared_out_as_well(threaded):
    """The naive loops, which the tiles of eight rows do not use above."""
    x, w, b = (
        np.random.default_rng(7).normal(size=s).astype(np.float32)
        for s in ((1, 33, 48), (48, 48), (48,))
    )
    assert x.size * 48 > 50000
    one, several = (Ops(build, 3).matmul_forward(x, w, b) for build in ("strict", threaded))
    assert same_bits(one, several)
