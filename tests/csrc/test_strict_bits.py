"""csrc/llama2.c in its strict build against the record of the original, bit for bit."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess

import numpy as np
import pytest

from .oracle import Model, assert_state_recorded, call, floats, same_bits
from .program import CSRC, STRICT
from .tiny import FIELDS, checkpoint_v0

# ---- ops ------------------------------------------------------------------------------------


def test_ops_give_the_recorded_bits(golden, library):
    """rmsnorm, softmax, matmul and swiglu reproduce every recorded result bit for bit."""
    z = np.load(golden / "ops.npz")
    seen = 0
    for key in z.files:
        name = key.rsplit("_", 1)[0]
        if not key.endswith("_y") or name.startswith("qmatmul"):
            continue  # int8: test_int8_bits.py
        y, out = z[key], np.empty_like(z[key])
        if name.startswith("rmsnorm"):
            call(library.llama2_rmsnorm, out, z[name + "_x"], z[name + "_w"], 1, y.size)
        elif name.startswith("softmax"):
            call(library.llama2_softmax, out, z[name + "_x"], 1, y.size)
        elif name.startswith("swiglu"):
            call(library.llama2_swiglu, out, z[name + "_gate"], z[name + "_up"], 1, y.size)
        else:
            w = z[name + "_w"]
            call(library.llama2_matmul, out, z[name + "_x"], w, 1, w.shape[1], w.shape[0])
        assert same_bits(out, y), key
        seen += 1
    assert seen == 17


def test_blocked_matmul_is_the_naive_one(library):
    """Taking outputs four at a time changes no bit, whatever the leftovers."""
    rng = np.random.default_rng(1)
    for T, C, OC in [(1, 1, 1), (1, 7, 3), (1, 64, 33), (3, 5, 8), (4, 9, 5), (7, 33, 10)]:
        x, w = (rng.normal(size=s).astype(np.float32) for s in ((T, C), (OC, C)))
        fast, naive = floats(T, OC), floats(T, OC)
        call(library.llama2_matmul, fast, x, w, T, C, OC)
        call(library.llama2_matmul_naive, naive, x, w, T, C, OC)
        assert same_bits(fast, naive), (T, C, OC)


def test_residual_adds_and_may_work_in_place(library):
    """x + y, rounded once, whether the result goes elsewhere or into x."""
    x, y = np.random.default_rng(2).normal(size=(2, 3, 5)).astype(np.float32)
    out = floats(3, 5)
    call(library.llama2_residual, out, x, y, 3, 5)
    assert same_bits(out, x + y)
    call(library.llama2_residual, x, x, y, 3, 5)
    assert same_bits(x, out)


def test_rope_tables_give_the_recorded_bits(golden, library):
    """Cosine and sine of every recorded position and head size are right to the last bit."""
    z = np.load(golden / "libm.npz")
    positions = z["rope_positions"]
    S = int(positions.max()) + 1
    for hs in (2, 6, 8, 48, 64, 128):
        cos, sin = floats(S, hs // 2), floats(S, hs // 2)
        call(library.llama2_rope_tables, cos, sin, S, hs)
        assert same_bits(cos[positions], z[f"rope_cos_hs{hs}"])
        assert same_bits(sin[positions], z[f"rope_sin_hs{hs}"])


# ---- the forward pass -----------------------------------------------------------------------


@pytest.fixture(scope="session")
def stories(golden):
    return (golden / "stories260K.bin").read_bytes()


def logit_cases(golden):
    return [c for c in json.loads((golden / "logits.json").read_text()) if c["engine"] == "run"]


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_logits_have_the_recorded_bits(golden, library, stories, chunk):
    """Fed one by one or in chunks of any size, the logits are the original's, bit for bit."""
    for case in logit_cases(golden):
        tokens, model = case["tokens"], Model(library, stories)
        parts = [model.feed(tokens[i : i + chunk], i) for i in range(0, len(tokens), chunk)]
        logits = np.concatenate(parts)[case["positions"]]
        assert same_bits(logits, np.load(golden / case["file"])), case["name"]


def test_last_logits_are_the_last_of_all(library):
    """Asking for the last token's logits only gives the last row of all of them."""
    tokens = [1, 5, 259, 260, 7, 9, 11]
    every = Model(library, checkpoint_v0()).feed(tokens)
    assert same_bits(Model(library, checkpoint_v0()).feed(tokens, every=False), every[-1:])


@pytest.mark.parametrize("chunk", [1, 24])
def test_state_has_the_recorded_bits(golden, library, stories, chunk):
    """Caches and the buffers of the last layer are left as the original leaves them."""
    z = np.load(golden / "state_fp32_story24.npz")
    tokens = logit_cases(golden)[0]["tokens"]
    model = Model(library, stories)
    for i in range(0, len(tokens), chunk):
        model.feed(tokens[i : i + chunk], i)
    assert_state_recorded(model, z, len(tokens), chunk)


def test_every_depth_has_the_recorded_bits(golden, library, stories):
    """Cut to its first k layers the model ends in the recorded vector."""
    z = np.load(golden / "state_fp32_story24.npz")
    tokens = logit_cases(golden)[0]["tokens"]
    for layers, wanted in enumerate(z["x_final_normed_by_depth"]):
        model = Model(library, stories, layers=layers)
        model.feed(tokens)
        assert same_bits(model.buffer("y", len(tokens), wanted.size)[-1], wanted), layers


def test_threads_change_no_bit(library, build):
    """With OpenMP the logits of a model large enough to be shared out keep every bit."""
    target = build / "libthreads.so"
    flags = [*STRICT, "-fPIC", "-shared", "-fopenmp", str(CSRC / "llama2.c"), "-lm"]
    compiler = shutil.which("cc") or "cc"
    done = subprocess.run([compiler, *flags, "-o", str(target)], capture_output=True, timeout=120)
    if done.returncode != 0:
        pytest.skip("this compiler has no OpenMP")
    threads = ctypes.CDLL(str(target))
    threads.llama2_state_floats.restype = ctypes.c_int64
    shape = dict(zip(FIELDS, (64, 300, 2, 4, 2, 1000, 64), strict=True))
    content, tokens = checkpoint_v0(shape), [1, *range(3, 40)]
    assert 50000 < 64 * 1000, "the classifier must pass the limit below which one thread works"
    assert same_bits(Model(threads, content).feed(tokens), Model(library, content).feed(tokens))


def test_abi_number_is_known(library):
    """The structs above are the ones of this number."""
    assert library.llama2_abi() == 2
