"""The int8 half of csrc/llama2.c in its strict build against the record of the original."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from .oracle import Model, assert_state_recorded, call, floats, read_v2, same_bits
from .program import CSRC, STRICT
from .tiny import FIELDS, checkpoint_v2


def quantize(library, x, group_size):
    """llama2_quantize of rows; what it leaves unwritten shows."""
    T, C = x.shape
    values = np.full((T, C), 99, np.int8)
    scales = np.full((T, C // group_size), np.nan, np.float32)
    call(library.llama2_quantize, values, scales, x, T, C, group_size)
    return values, scales


def dequantize(library, values, scales, group_size):
    out = np.full(values.shape, np.nan, np.float32)
    call(library.llama2_dequantize, out, values, scales, values.size, group_size)
    return out


def matmul_q8(library, x, x_scales, w, w_scales, group_size):
    (T, C), OC = x.shape, len(w)
    out = np.full((T, OC), np.nan, np.float32)
    call(library.llama2_matmul_q8, out, x, x_scales, w, w_scales, T, C, OC, group_size)
    return out


def definition(x, x_scales, w, w_scales, group_size):
    """Spec 5.3, word for word."""
    (T, C), OC = x.shape, len(w)
    out = floats(T, OC)
    for t, i in np.ndindex(T, OC):
        total = np.float32(0)
        for j in range(0, C - group_size + 1, group_size):
            n = int(x[t, j : j + group_size].astype(int) @ w[i, j : j + group_size].astype(int))
            scale = w_scales[(i * C + j) // group_size]
            total = total + np.float32(n) * scale * x_scales[t, j // group_size]
        out[t, i] = total
    return out


# ---- ops ------------------------------------------------------------------------------------


def test_int8_ops_give_the_recorded_bits(golden, library):
    """quantize, dequantize and matmul_q8 reproduce every recorded result bit for bit."""
    z = np.load(golden / "ops.npz")
    seen = 0
    for name in sorted({key.rsplit("_", 1)[0] for key in z.files}):
        GS = int(z[name + "_gs"]) if name.startswith("q") else 0
        if name.startswith("quant"):
            x, whole = z[name + "_x"], z[name + "_q"].size
            values, scales = quantize(library, x[None], GS)
            assert np.array_equal(values[0, :whole], z[name + "_q"]), name
            assert not values[0, whole:].any(), name
            assert same_bits(scales[0], z[name + "_s"]), name
            out = dequantize(library, values[0], scales[0], GS)
            assert same_bits(out[:whole], z[name + "_deq"]), name
            assert not out[whole:].any(), name
        elif name.startswith("qmatmul"):
            x, w = z[name + "_x"], z[name + "_w"]
            values, scales = quantize(library, x[None], GS)
            flat, w_scales = quantize(library, w.reshape(1, -1), GS)
            got = matmul_q8(library, values, scales, flat.reshape(w.shape), w_scales[0], GS)
            assert same_bits(got[0], z[name + "_y"]), name
        else:
            continue
        seen += 1
    assert seen == 10


def test_halves_are_rounded_away_from_zero(library):
    """A quotient of k + 1/2 goes to the larger magnitude; just below, it does not."""
    below = np.nextafter(np.float32(0.5), np.float32(0))
    x = np.array([[127, 0.5, -0.5, 1.5, -2.5, 126.5, below, -below]], np.float32)
    values, scales = quantize(library, x, 8)
    assert scales.tolist() == [[1.0]]
    assert values.tolist() == [[127, 1, -1, 2, -3, 127, 0, 0]]


def test_every_quotient_is_rounded_like_the_exact_one(library):
    """Around each half: the neighbours in float32 on both sides, of both signs."""
    halves = (np.arange(127) + 0.5).astype(np.float32)
    x = np.concatenate([[127], *(np.nextafter(halves, f) for f in (0, 200)), halves])
    x = np.concatenate([x, -x]).astype(np.float32)[None]
    values, _ = quantize(library, x, x.size)
    exact = np.copysign(np.floor(np.abs(x, dtype=np.float64) + 0.5), x)
    assert np.array_equal(values, exact)


@pytest.mark.parametrize(("T", "C", "GS"), [(1, 1, 1), (2, 64, 32), (3, 10, 4), (2, 3, 4)])
def test_quantize_and_back_are_their_definitions(library, T, C, GS):
    """Spec 5.2 in NumPy, bit for bit; what is left over after the last whole group is 0."""
    x = (np.random.default_rng(C).normal(size=(T, C)) * 40).astype(np.float32)
    whole = C // GS * GS
    groups = x[:, :whole].reshape(T, C // GS, GS)
    wanted_scales = np.abs(groups).max(axis=-1) / np.float32(127)
    quotients = (groups / wanted_scales[..., None]).astype(np.float64)
    wanted = np.zeros((T, C), np.int8)
    wanted[:, :whole] = np.copysign(np.floor(abs(quotients) + 0.5), groups).reshape(T, whole)
    values, scales = quantize(library, x, GS)
    assert same_bits(scales, wanted_scales)
    assert np.array_equal(values, wanted)
    back = floats(T, C)
    back[:, :whole] = (wanted[:, :whole].reshape(groups.shape) * scales[..., None]).reshape(T, -1)
    for t in range(T):
        assert same_bits(dequantize(library, values[t], scales[t], GS), back[t])


# 190 and 127 units in the last place of a subnormal: the scale is one unit, or exact.
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-44, 2.66e-43, 1.78e-43, 1e-38, 3e38])
def test_extreme_groups_stay_within_127(library, size):
    """Zeros, subnormals and the largest floats: no wrap, and the sign is kept."""
    x = np.array([[size, -size, size / 2, 0]], np.float32)
    values, scales = quantize(library, x, 4)
    assert (scales[0, 0] == 0) == (not values.any())
    assert (np.abs(values.astype(int)) <= 127).all()
    assert (values * np.sign(x) >= 0).all()


def test_nothing_hides_a_number_that_is_not_finite(library):
    """The scale of its group is not finite either, wherever it stands, so the logits tell."""
    for bad in (np.nan, -np.nan, np.inf, -np.inf):
        for place in range(4):
            x = np.ones((1, 8), np.float32)
            x[0, place] = bad
            values, scales = quantize(library, x, 4)
            assert not np.isfinite(scales[0, 0])
            assert scales[0, 1] == np.float32(1) / np.float32(127)
            assert values[0, 4:].tolist() == [127] * 4


@pytest.mark.parametrize(
    ("T", "C", "OC", "GS"),
    [(1, 1, 1, 1), (1, 8, 3, 4), (3, 12, 5, 4), (2, 172, 7, 64), (3, 7, 5, 3), (2, 5, 4, 8)],
)
def test_matmul_q8_is_its_definition(library, T, C, OC, GS):
    """Also with rows that groups straddle, and with rows shorter than a group."""
    rng = np.random.default_rng(C)
    x, w = (rng.integers(-127, 128, s).astype(np.int8) for s in ((T, C), (OC, C)))
    x_scales, w_scales = (
        rng.uniform(0, 1, s).astype(np.float32) for s in ((T, C // GS), OC * C // GS)
    )
    wanted = definition(x, x_scales, w, w_scales, GS)
    assert same_bits(matmul_q8(library, x, x_scales, w, w_scales, GS), wanted)


# ---- the forward pass -----------------------------------------------------------------------


def logit_cases(golden):
    return [c for c in json.loads((golden / "logits.json").read_text()) if c["engine"] == "runq"]


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_logits_have_the_recorded_bits(golden, library, chunk):
    """Fed one by one or in chunks of any size, the logits are the original's, bit for bit."""
    cases = logit_cases(golden)
    assert len(cases) == 6
    for case in cases:
        tokens = case["tokens"]
        model = Model(library, (golden / case["model"]).read_bytes())
        parts = [model.feed(tokens[i : i + chunk], i) for i in range(0, len(tokens), chunk)]
        logits = np.concatenate(parts)[case["positions"]]
        assert same_bits(logits, np.load(golden / case["file"])), case["name"]


@pytest.mark.parametrize("chunk", [1, 24])
def test_state_has_the_recorded_bits(golden, library, chunk):
    """Caches and the buffers of the last layer are left as the original leaves them."""
    z = np.load(golden / "state_q80_g4_story24.npz")
    (case,) = (c for c in logit_cases(golden) if c["name"] == "q80_g4_story24")
    tokens = case["tokens"]
    model = Model(library, (golden / case["model"]).read_bytes())
    for i in range(0, len(tokens), chunk):
        model.feed(tokens[i : i + chunk], i)
    assert_state_recorded(model, z, len(tokens), chunk)


def test_last_logits_are_the_last_of_all(library):
    """Asking for the last token's logits only gives the last row of all of them."""
    tokens = [1, 5, 259, 260, 7, 9, 11]
    for shared in (True, False):
        content = checkpoint_v2(shared=shared)
        every = Model(library, content).feed(tokens)
        assert same_bits(Model(library, content).feed(tokens, every=False), every[-1:])


def test_threads_change_no_bit(library, build):
    """With OpenMP the logits of a model large enough to be shared out keep every bit."""
    target = build / "libthreads8.so"
    flags = [*STRICT, "-fPIC", "-shared", "-fopenmp", str(CSRC / "llama2.c"), "-lm"]
    compiler = shutil.which("cc") or "cc"
    done = subprocess.run([compiler, *flags, "-o", str(target)], capture_output=True, timeout=120)
    if done.returncode != 0:
        pytest.skip("this compiler has no OpenMP")
    threads = ctypes.CDLL(str(target))
    threads.llama2_state_floats.restype = ctypes.c_int64
    shape = dict(zip(FIELDS, (64, 300, 2, 4, 2, 1000, 64), strict=True))
    content, tokens = checkpoint_v2(shape, group_size=32), [1, *range(3, 40)]
    assert same_bits(Model(threads, content).feed(tokens), Model(library, content).feed(tokens))


def test_every_layer_has_scales_of_its_own(library):
    """The scales of the last layer count, for every matrix that a layer has."""
    content, tokens = checkpoint_v2(), [1, 5, 259]
    first = Model(library, content).feed(tokens)
    for name in ("wq", "wk", "wv", "wo", "w1", "w2", "w3"):
        model = Model(library, content)
        model.arrays[name].scales[-1] *= 2
        assert not same_bits(model.feed(tokens), first), name


# ---- as Python calls it ---------------------------------------------------------------------


@pytest.fixture(scope="session")
def ops():
    from pyllm2 import native
    from pyllm2.llama2.ops_c import Ops

    if (reason := native.why_not()) is not None:
        pytest.skip(reason)
    return Ops("strict")


def python_model(content):
    """What the C backend needs of a model and a cache, over the arrays of a v2 file."""
    shape, arrays = read_v2(content)
    config = SimpleNamespace(
        **shape,
        head_size=shape["dim"] // shape["n_heads"],
    )
    cache_shape = (shape["n_layers"], shape["seq_len"], shape["n_kv_heads"], config.head_size)
    cache = SimpleNamespace(
        positions=shape["seq_len"], keys=floats(*cache_shape), values=floats(*cache_shape)
    )
    return SimpleNamespace(config=config, weights=SimpleNamespace(**arrays)), cache


def test_the_backend_gives_the_recorded_logits(golden, ops):
    """`forward` over views into the file, whose layers are apart: the original's bits."""
    for case in logit_cases(golden):
        model, cache = python_model((golden / case["model"]).read_bytes())
        assert not model.weights.wq.values.flags.c_contiguous
        logits = ops.forward(model, np.array(case["tokens"]), 0, cache)[case["positions"]]
        assert same_bits(logits, np.load(golden / case["file"])), case["name"]


def test_odd_strides_change_no_bit(ops):
    """Matrices that are not rows after rows are copied first."""
    tokens, wanted = np.arange(1, 9), []
    for odd in (False, True):
        model, cache = python_model(checkpoint_v2(shared=False))
        for name in ("wq", "w2", "classifier") if odd else ():
            matrix = getattr(model.weights, name)
            matrix.values = np.asfortranarray(matrix.values)
        wanted.append(ops.forward(model, tokens, 0, cache))
    assert same_bits(*wanted)


def test_the_backend_has_the_ops(library, ops):
    """Each op of the backend is the function of the library, for arrays of any strides."""
    rng = np.random.default_rng(8)
    x, w = (rng.normal(size=s).astype(np.float32) for s in ((12, 3), (12, 5)))
    values, scales = ops.quantize(x.T, 4)
    w_values, w_scales = ops.quantize(w.T, 4)
    wanted = quantize(library, np.ascontiguousarray(x.T), 4)
    assert np.array_equal(values, wanted[0])
    assert same_bits(scales, wanted[1])
    assert same_bits(ops.dequantize(values, scales, 4), dequantize(library, values, scales, 4))
    got = ops.matmul_q8(values, scales, np.asfortranarray(w_values), w_scales.ravel(), 4)
    assert same_bits(got, definition(values, scales, w_values, w_scales.ravel(), 4))
