"""csrc/llama2 in its strict build against the record of the original, bit for bit."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest

from pyllm2.compiling.c_library import library
from tests.csrc.oracle import Model, assert_state_recorded, floats, same_bits
from tests.csrc.tiny import FIELDS, checkpoint_v0, checkpoint_v2

# ---- ops ------------------------------------------------------------------------------------


def test_ops_give_the_recorded_bits(golden, llama2):
    """rmsnorm, softmax, matmul and swiglu reproduce every recorded result bit for bit."""
    z = np.load(golden / "ops.npz")
    seen = 0
    for key in z.files:
        name = key.rsplit("_", 1)[0]
        if not key.endswith("_y") or name.startswith("qmatmul"):
            continue  # int8: test_int8_bits.py
        y, out = z[key], np.empty_like(z[key])
        if name.startswith("rmsnorm"):
            llama2.rmsnorm(out, z[name + "_x"], z[name + "_w"], 1, y.size, 1e-5)
        elif name.startswith("softmax"):
            llama2.softmax(out, z[name + "_x"], 1, y.size)
        elif name.startswith("swiglu"):
            llama2.swiglu(out, z[name + "_gate"], z[name + "_up"], 1, y.size)
        else:
            w = z[name + "_w"]
            llama2.matmul(out, z[name + "_x"], w, None, 1, w.shape[1], w.shape[0])
        assert same_bits(out, y), key
        seen += 1
    assert seen == 17


def test_blocked_matmul_is_the_naive_one(llama2):
    """Four outputs at a time give the same bits, with any remainder."""
    rng = np.random.default_rng(1)
    for T, C, OC in [(1, 1, 1), (1, 7, 3), (1, 64, 33), (3, 5, 8), (4, 9, 5), (7, 33, 10)]:
        x, w, b = (rng.normal(size=s).astype(np.float32) for s in ((T, C), (OC, C), OC))
        for bias in (None, b):
            fast, naive = floats(T, OC), floats(T, OC)
            llama2.matmul(fast, x, w, bias, T, C, OC)
            llama2.matmul_naive(naive, x, w, bias, T, C, OC)
            assert same_bits(fast, naive), (T, C, OC)


def test_residual_adds_and_may_work_in_place(llama2):
    """x + y, rounded once; the result may overwrite x."""
    x, y = np.random.default_rng(2).normal(size=(2, 3, 5)).astype(np.float32)
    out = floats(3, 5)
    llama2.residual(out, x, y, 3, 5)
    assert same_bits(out, x + y)
    llama2.residual(x, x, y, 3, 5)
    assert same_bits(x, out)


def test_rope_tables_give_the_recorded_bits(golden, llama2):
    """Cosine and sine of every recorded position and head size."""
    z = np.load(golden / "libm.npz")
    positions = z["rope_positions"]
    S = int(positions.max()) + 1
    for hs in (2, 6, 8, 48, 64, 128):
        cos, sin = floats(S, hs // 2), floats(S, hs // 2)
        llama2.rope_tables(cos, sin, None, S, hs, 10000.0, 1.0)
        assert same_bits(cos[positions], z[f"rope_cos_hs{hs}"])
        assert same_bits(sin[positions], z[f"rope_sin_hs{hs}"])


# ---- the forward pass -----------------------------------------------------------------------


@pytest.fixture(scope="session")
def stories(golden):
    return (golden / "stories260K.bin").read_bytes()


def logit_cases(golden):
    return [c for c in json.loads((golden / "logits.json").read_text()) if c["engine"] == "run"]


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_logits_have_the_recorded_bits(golden, llama2, stories, chunk):
    """In chunks of any size, the logits have the bits of the original."""
    for case in logit_cases(golden):
        tokens, model = case["tokens"], Model(llama2, stories)
        parts = [model.feed(tokens[i : i + chunk], i) for i in range(0, len(tokens), chunk)]
        logits = np.concatenate(parts)[case["positions"]]
        assert same_bits(logits, np.load(golden / case["file"])), case["name"]


def test_last_logits_are_the_last_of_all(llama2):
    """The logits of the last token alone equal the last row of all logits."""
    tokens = [1, 5, 259, 260, 7, 9, 11]
    every = Model(llama2, checkpoint_v0()).feed(tokens)
    assert same_bits(Model(llama2, checkpoint_v0()).feed(tokens, every=False), every[-1:])


@pytest.mark.parametrize("chunk", [1, 24])
def test_state_has_the_recorded_bits(golden, llama2, stories, chunk):
    """The cache and the buffers of the last layer equal those of the original."""
    z = np.load(golden / "state_fp32_story24.npz")
    tokens = logit_cases(golden)[0]["tokens"]
    model = Model(llama2, stories)
    for i in range(0, len(tokens), chunk):
        model.feed(tokens[i : i + chunk], i)
    assert_state_recorded(model, z, len(tokens), chunk)


def test_every_depth_has_the_recorded_bits(golden, llama2, stories):
    """The first k layers alone give the recorded vector."""
    z = np.load(golden / "state_fp32_story24.npz")
    tokens = logit_cases(golden)[0]["tokens"]
    for layers, wanted in enumerate(z["x_final_normed_by_depth"]):
        model = Model(llama2, stories, layers=layers)
        model.feed(tokens)
        assert same_bits(model.buffer("y", len(tokens), wanted.size)[-1], wanted), layers


@pytest.mark.parametrize("threaded", ["llama2"], indirect=True)
@pytest.mark.parametrize("file", [checkpoint_v0, partial(checkpoint_v2, group_size=32)])
def test_threads_change_no_bit(llama2, threaded, file):
    """With OpenMP the logits of a model large enough for threads keep every bit."""
    functions = library("llama2", threaded, threads=3)
    shape = dict(zip(FIELDS, (64, 300, 2, 4, 2, 1000, 64), strict=True))
    content, tokens = file(shape), [1, *range(3, 40)]
    assert 64 * 1000 > 50000, "the classifier must be large enough for threads"
    assert same_bits(Model(functions, content).feed(tokens), Model(llama2, content).feed(tokens))
