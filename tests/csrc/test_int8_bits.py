"""The int8 half of csrc/llama2 in its strict build against the record of the original."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.model import Weights
from pyllm2.llama2.ops_c import Ops
from tests.csrc.oracle import Model, assert_state_recorded, floats, read_v2, same_bits
from tests.csrc.tiny import FIELDS, checkpoint_v2


def quantize(llama2, x, group_size):
    """llama2_quantize of rows, into outputs that are filled with 99 and NaN."""
    T, C = x.shape
    values = np.full((T, C), 99, np.int8)
    scales = np.full((T, C // group_size), np.nan, np.float32)
    llama2.quantize(values, scales, x, T, C, group_size)
    return values, scales


def dequantize(llama2, values, scales, group_size):
    out = np.full(values.shape, np.nan, np.float32)
    llama2.dequantize(out, values, scales, values.size, group_size)
    return out


def matmul_q8(llama2, x, x_scales, w, w_scales, group_size):
    (T, C), OC = x.shape, len(w)
    out = np.full((T, OC), np.nan, np.float32)
    llama2.matmul_q8(out, x, x_scales, w, w_scales, T, C, OC, group_size)
    return out


def definition(x, x_scales, w, w_scales, group_size):
    """The int8 product of llama2.c: out[t, i] = sum over groups of (integer dot) * both scales.

    Groups of w are those of the flattened matrix; the last C mod group_size inputs are dropped.
    """
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


def test_int8_ops_give_the_recorded_bits(golden, llama2):
    """quantize, dequantize and matmul_q8 reproduce every recorded result bit for bit."""
    z = np.load(golden / "ops.npz")
    seen = 0
    for name in sorted({key.rsplit("_", 1)[0] for key in z.files}):
        GS = int(z[name + "_gs"]) if name.startswith("q") else 0
        if name.startswith("quant"):
            x, whole = z[name + "_x"], z[name + "_q"].size
            values, scales = quantize(llama2, x[None], GS)
            assert np.array_equal(values[0, :whole], z[name + "_q"]), name
            assert not values[0, whole:].any(), name
            assert same_bits(scales[0], z[name + "_s"]), name
            out = dequantize(llama2, values[0], scales[0], GS)
            assert same_bits(out[:whole], z[name + "_deq"]), name
            assert not out[whole:].any(), name
        elif name.startswith("qmatmul"):
            x, w = z[name + "_x"], z[name + "_w"]
            values, scales = quantize(llama2, x[None], GS)
            flat, w_scales = quantize(llama2, w.reshape(1, -1), GS)
            got = matmul_q8(llama2, values, scales, flat.reshape(w.shape), w_scales[0], GS)
            assert same_bits(got[0], z[name + "_y"]), name
        else:
            continue
        seen += 1
    assert seen == 10


def test_halves_are_rounded_away_from_zero(llama2):
    """A quotient of k + 1/2 rounds to the larger magnitude; just below it does not."""
    below = np.nextafter(np.float32(0.5), np.float32(0))
    x = np.array([[127, 0.5, -0.5, 1.5, -2.5, 126.5, below, -below]], np.float32)
    values, scales = quantize(llama2, x, 8)
    assert scales.tolist() == [[1.0]]
    assert values.tolist() == [[127, 1, -1, 2, -3, 127, 0, 0]]


def test_every_quotient_is_rounded_like_the_exact_one(llama2):
    """Each half and its float32 neighbours, of both signs."""
    halves = (np.arange(127) + 0.5).astype(np.float32)
    x = np.concatenate([[127], *(np.nextafter(halves, f) for f in (0, 200)), halves])
    x = np.concatenate([x, -x]).astype(np.float32)[None]
    values, _ = quantize(llama2, x, x.size)
    exact = np.copysign(np.floor(np.abs(x, dtype=np.float64) + 0.5), x)
    assert np.array_equal(values, exact)


@pytest.mark.parametrize(("T", "C", "GS"), [(1, 1, 1), (2, 64, 32), (3, 10, 4), (2, 3, 4)])
def test_quantize_and_back_are_their_definitions(llama2, T, C, GS):
    """scale = max|x| / 127, values rounded half away from zero; 0 after the last whole group."""
    x = (np.random.default_rng(C).normal(size=(T, C)) * 40).astype(np.float32)
    whole = C // GS * GS
    groups = x[:, :whole].reshape(T, C // GS, GS)
    wanted_scales = np.abs(groups).max(axis=-1) / np.float32(127)
    quotients = (groups / wanted_scales[..., None]).astype(np.float64)
    wanted = np.zeros((T, C), np.int8)
    wanted[:, :whole] = np.copysign(np.floor(abs(quotients) + 0.5), groups).reshape(T, whole)
    values, scales = quantize(llama2, x, GS)
    assert same_bits(scales, wanted_scales)
    assert np.array_equal(values, wanted)
    back = floats(T, C)
    back[:, :whole] = (wanted[:, :whole].reshape(groups.shape) * scales[..., None]).reshape(T, -1)
    for t in range(T):
        assert same_bits(dequantize(llama2, values[t], scales[t], GS), back[t])


# 190 and 127 times the smallest subnormal: the scale is inexact, and exact.
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-44, 2.66e-43, 1.78e-43, 1e-38, 3e38])
def test_extreme_groups_stay_within_127(llama2, size):
    """Zeros, subnormals and the largest floats: no wrap, and the sign is kept."""
    x = np.array([[size, -size, size / 2, 0]], np.float32)
    values, scales = quantize(llama2, x, 4)
    assert (scales[0, 0] == 0) == (not values.any())
    assert (np.abs(values.astype(int)) <= 127).all()
    assert (values * np.sign(x) >= 0).all()


def test_nothing_hides_a_number_that_is_not_finite(llama2):
    """The scale of its group is not finite either, so the logits are not."""
    for bad in (np.nan, -np.nan, np.inf, -np.inf):
        for place in range(4):
            x = np.ones((1, 8), np.float32)
            x[0, place] = bad
            values, scales = quantize(llama2, x, 4)
            assert not np.isfinite(scales[0, 0])
            assert scales[0, 1] == np.float32(1) / np.float32(127)
            assert values[0, 4:].tolist() == [127] * 4


@pytest.mark.parametrize(
    ("T", "C", "OC", "GS"),
    [(1, 1, 1, 1), (1, 8, 3, 4), (3, 12, 5, 4), (2, 172, 7, 64), (3, 7, 5, 3), (2, 5, 4, 8)],
)
def test_matmul_q8_is_its_definition(llama2, T, C, OC, GS):
    """Also where groups straddle rows, and where rows are shorter than a group."""
    rng = np.random.default_rng(C)
    x, w = (rng.integers(-127, 128, s).astype(np.int8) for s in ((T, C), (OC, C)))
    x_scales, w_scales = (
        rng.uniform(0, 1, s).astype(np.float32) for s in ((T, C // GS), OC * C // GS)
    )
    wanted = definition(x, x_scales, w, w_scales, GS)
    assert same_bits(matmul_q8(llama2, x, x_scales, w, w_scales, GS), wanted)


# ---- the forward pass -----------------------------------------------------------------------


def logit_cases(golden):
    return [c for c in json.loads((golden / "logits.json").read_text()) if c["engine"] == "runq"]


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_logits_have_the_recorded_bits(golden, llama2, chunk):
    """In chunks of any size, the logits have the bits of the original."""
    cases = logit_cases(golden)
    assert len(cases) == 6
    for case in cases:
        tokens = case["tokens"]
        model = Model(llama2, (golden / case["model"]).read_bytes())
        parts = [model.feed(tokens[i : i + chunk], i) for i in range(0, len(tokens), chunk)]
        logits = np.concatenate(parts)[case["positions"]]
        assert same_bits(logits, np.load(golden / case["file"])), case["name"]


@pytest.mark.parametrize("chunk", [1, 24])
def test_state_has_the_recorded_bits(golden, llama2, chunk):
    """The cache and the buffers of the last layer equal those of the original."""
    z = np.load(golden / "state_q80_g4_story24.npz")
    (case,) = (c for c in logit_cases(golden) if c["name"] == "q80_g4_story24")
    tokens = case["tokens"]
    model = Model(llama2, (golden / case["model"]).read_bytes())
    for i in range(0, len(tokens), chunk):
        model.feed(tokens[i : i + chunk], i)
    assert_state_recorded(model, z, len(tokens), chunk)


def test_last_logits_are_the_last_of_all(llama2):
    """The logits of the last token alone equal the last row of all logits."""
    tokens = [1, 5, 259, 260, 7, 9, 11]
    for shared in (True, False):
        content = checkpoint_v2(shared=shared)
        every = Model(llama2, content).feed(tokens)
        assert same_bits(Model(llama2, content).feed(tokens, every=False), every[-1:])


def test_every_layer_has_scales_of_its_own(llama2):
    """Changing the scales of the last layer changes the logits, for every matrix."""
    content, tokens = checkpoint_v2(), [1, 5, 259]
    first = Model(llama2, content).feed(tokens)
    for name in ("wq", "wk", "wv", "wo", "w1", "w2", "w3"):
        model = Model(llama2, content)
        model.arrays[name].scales[-1] *= 2
        assert not same_bits(model.feed(tokens), first), name


# ---- as Python calls it ---------------------------------------------------------------------


@pytest.fixture(scope="session")
def ops(llama2):
    return Ops("strict")


def python_model(content):
    """A model and a cache as the C backend uses them, over the arrays of a v2 file."""
    shape, arrays = read_v2(content)
    config = Llama2Config(**{name: shape[name] for name in FIELDS})
    cache_shape = (shape["n_layers"], shape["seq_len"], shape["n_kv_heads"], config.head_size)
    cos, sin = Ops("strict").rope_tables(shape["seq_len"], config.head_size)
    cache = SimpleNamespace(
        cos=cos,
        sin=sin,
        positions=shape["seq_len"],
        keys=floats(*cache_shape),
        values=floats(*cache_shape),
        engine_state=None,
    )
    return SimpleNamespace(config=config, weights=Weights(**arrays)), cache


def test_the_backend_gives_the_recorded_logits(golden, ops):
    """`forward` over views of the file, whose layers are apart, gives the bits of the original."""
    for case in logit_cases(golden):
        model, cache = python_model((golden / case["model"]).read_bytes())
        assert not model.weights.wq.values.flags.c_contiguous
        logits = ops.forward(model, np.array(case["tokens"]), 0, cache)[case["positions"]]
        assert same_bits(logits, np.load(golden / case["file"])), case["name"]


def test_odd_strides_change_no_bit(ops):
    """Matrices whose rows are not contiguous are copied first."""
    tokens, wanted = np.arange(1, 9), []
    for odd in (False, True):
        model, cache = python_model(checkpoint_v2(shared=False))
        for name in ("wq", "w2", "classifier") if odd else ():
            matrix = getattr(model.weights, name)
            matrix.values = np.asfortranarray(matrix.values)
        wanted.append(ops.forward(model, tokens, 0, cache))
    assert same_bits(*wanted)


def test_the_backend_has_the_ops(llama2, ops):
    """Each op of the backend equals the function of the library, for arrays of any strides."""
    rng = np.random.default_rng(8)
    x, w = (rng.normal(size=s).astype(np.float32) for s in ((12, 3), (12, 5)))
    values, scales = ops.quantize(x.T, 4)
    w_values, w_scales = ops.quantize(w.T, 4)
    wanted = quantize(llama2, np.ascontiguousarray(x.T), 4)
    assert np.array_equal(values, wanted[0])
    assert same_bits(scales, wanted[1])
    assert same_bits(ops.dequantize(values, scales, 4), dequantize(llama2, values, scales, 4))
    got = ops.matmul_q8(values, scales, np.asfortranarray(w_values), w_scales.ravel(), 4)
    assert same_bits(got, definition(values, scales, w_values, w_scales.ravel(), 4))
