"""csrc/gpt2 and adamw.c in their strict builds against the record of llm.c, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from pyllm2.compiling import c_build
from pyllm2.compiling.c_library import library
from pyllm2.training.ops_c import Ops as TrainingOps
from tests.csrc.gpt2 import Pass, read_model
from tests.csrc.oracle import same_bits

pytestmark = pytest.mark.skipif(
    c_build.why_not() is not None, reason=f"backend 'c' {c_build.why_not()}"
)

# Every recorded step and run: model and file.
STEPS = """micro/step_b1t3 micro/step_b2t4 micro/step_b2t8 small/step_b1t7 small/step_b2t64
    tiny/step_b1t32 tiny/step_b2t3 tiny/step_b3t5 tiny/step_b4t16 tiny/step_b8t1""".split()
RUNS = """micro/train_stream15 small/train_overfit10 small/train_stream12 tiny/train_overfit10
    tiny/train_stream20 tiny/train_stream20_wd""".split()


@pytest.fixture(scope="module")
def gpt2():
    """gpt2.matmul_forward(...) in the strict build."""
    return library("gpt2", "strict")


@pytest.fixture(scope="module")
def golden(shared):
    return shared / "golden" / "llmc"


def cases(path):
    """The arrays, by name, of every recorded case of an op."""
    z = np.load(path)
    for case in range(int(z["n_cases"])):
        prefix = f"{case}__"
        yield {key.removeprefix(prefix): z[key] for key in z.files if key.startswith(prefix)}


def nan_like(*recorded):
    return [np.full_like(a, np.nan) for a in recorded]


def same(found, recorded):
    """The same bits, or both NaN: the bits of a NaN depend on the processor."""
    nan = np.isnan(recorded)
    return np.array_equal(np.isnan(found), nan) and same_bits(found[~nan], recorded[~nan])


def test_encoder(golden, gpt2):
    for c in cases(golden / "ops" / "encoder.npz"):
        (out,), (B, T, C) = nan_like(c["c_out"]), c["c_out"].shape
        gpt2.encoder_forward(out, c["inp"], c["wte"], c["wpe"], B, T, C)
        assert same(out, c["c_out"])
        dwte, dwpe = c["dwte_init"].copy(), c["dwpe_init"].copy()
        gpt2.encoder_backward(dwte, dwpe, c["dout"], c["inp"], B, T, C)
        assert same(dwte, c["c_dwte"])
        assert same(dwpe, c["c_dwpe"])


def test_layernorm(golden, gpt2):
    """Constant, offset, tiny and huge rows."""
    for c in cases(golden / "ops" / "layernorm.npz"):
        x, w, b, dout = c["inp"], c["weight"], c["bias"], c["dout"]
        N, C = x.size // x.shape[-1], x.shape[-1]
        out, mean, rstd = nan_like(c["c_out"], c["c_mean"], c["c_rstd"])
        gpt2.layernorm_forward(out, mean, rstd, x, w, b, N, C)
        assert same(out, c["c_out"])
        assert same(mean, c["c_mean"])
        assert same(rstd, c["c_rstd"])
        dx, dw, db = (c[name].copy() for name in ("dinp_init", "dweight_init", "dbias_init"))
        gpt2.layernorm_backward(dx, dw, db, dout, x, w, mean, rstd, N, C)
        assert same(dx, c["c_dinp"])
        assert same(dw, c["c_dweight"])
        assert same(db, c["c_dbias"])


@pytest.mark.parametrize("forward", ["matmul_forward", "matmul_forward_naive"])
def test_matmul(golden, gpt2, forward):
    """With and without bias, with and without remaining rows after the tiles."""
    for c in cases(golden / "ops" / "matmul.npz"):
        x, w, b, dout = c["inp"], c["weight"], c.get("bias"), c["dout"]
        OC, C = w.shape
        (out,) = nan_like(c["c_out"])
        getattr(gpt2, forward)(out, x, w, b, x.size // C, C, OC)
        assert same(out, c["c_out"])
        dx, dw = c["dinp_init"].copy(), c["dweight_init"].copy()
        db = c["dbias_init"].copy() if "dbias_init" in c else None
        gpt2.matmul_backward(dx, dw, db, dout, x, w, x.size // C, C, OC)
        assert same(dx, c["c_dinp"])
        assert same(dw, c["c_dweight"])
        assert db is None or same(db, c["c_dbias"])


def test_attention(golden, gpt2):
    """Scores below the floor, and gradients that are not zero before the call."""
    for c in cases(golden / "ops" / "attention.npz"):
        qkv, NH = c["inp"], int(c["NH"])
        B, T, C = c["c_out"].shape
        out, preatt, att = nan_like(c["c_out"], c["c_preatt"], c["c_att"])
        gpt2.attention_forward(out, preatt, att, qkv, B, T, C, NH, 0)
        assert same(out, c["c_out"])
        assert same(preatt, c["c_preatt"])
        assert same(att, c["c_att"])
        dqkv, dpreatt, datt = (c[f"{name}_init"].copy() for name in ("dinp", "dpreatt", "datt"))
        gpt2.attention_backward(dqkv, dpreatt, datt, c["dout"], qkv, att, B, T, C, NH)
        assert same(dqkv, c["c_dinp"])
        assert same(dpreatt, c["c_dpreatt"])
        assert same(datt, c["c_datt"])


def test_gelu(golden, gpt2):
    """Also where cosh overflows."""
    for c in cases(golden / "ops" / "gelu.npz"):
        x = c["inp"]
        (out,) = nan_like(c["c_out"])
        gpt2.gelu_forward(out, x, x.size)
        assert same(out, c["c_out"])
        dx, slope = c["dinp_init"].copy(), np.zeros_like(x)
        gpt2.gelu_backward(dx, c["dout"], x, x.size)
        assert same(dx, c["c_dinp"])
        gpt2.gelu_backward(slope, np.ones_like(x), x, x.size)
        assert same(slope, c["c_local_grad"])


def test_residual(golden, gpt2):
    for c in cases(golden / "ops" / "residual.npz"):
        (out,), n = nan_like(c["c_out"]), c["c_out"].size
        gpt2.residual_forward(out, c["inp1"], c["inp2"], n)
        assert same(out, c["c_out"])
        da, db = c["dinp1_init"].copy(), c["dinp2_init"].copy()
        gpt2.residual_backward(da, db, c["dout"], n)
        assert same(da, c["c_dinp1"])
        assert same(db, c["c_dinp2"])


def test_softmax_and_crossentropy(golden, gpt2):
    """Large padding, rows below the floor, probabilities that underflow."""
    for c in cases(golden / "ops" / "softmax_crossentropy.npz"):
        targets, V, Vp = c["targets"], int(c["V"]), c["logits"].shape[-1]
        probs, losses = nan_like(c["c_probs"], c["c_losses"])
        gpt2.softmax_forward(probs, c["logits"], losses.size, V, Vp)
        assert same(probs, c["c_probs"])
        gpt2.crossentropy_forward(losses, probs, targets, losses.size, Vp)
        assert same(losses, c["c_losses"])
        dlogits, sizes = c["dlogits_init"].copy(), (losses.size, V, Vp)
        gpt2.crossentropy_softmax_backward(dlogits, c["dlosses"], probs, targets, *sizes)
        assert same(dlogits, c["c_dlogits"])


def test_adamw(golden):
    """Parameters and both moments after every step, of step numbers up to 10000."""
    ops = TrainingOps("strict")
    for c in cases(golden / "ops" / "adamw.npz"):
        w = c["param_init"].copy()
        m, v = np.zeros_like(w), np.zeros_like(w)
        for i, t in enumerate(c["t"]):
            ops.adamw_update(w, c["grad"][i], m, v, int(t), *c["hyper"])
            assert same(w, c["c_param"][i]), int(t)
            assert same(m, c["c_m"][i]), int(t)
            assert same(v, c["c_v"][i]), int(t)


def test_every_recorded_step_and_run_is_tried(golden):
    """A new recording must be added to the lists above."""
    found = {f"{path.parent.name}/{path.stem}" for path in golden.glob("models/*/*_*.npz")}
    assert found == {*STEPS, *RUNS}


@pytest.mark.parametrize("step", STEPS)
def test_a_step_has_the_recorded_bits(golden, gpt2, step):
    """Losses, logits, gradients of all parameters, and every buffer where it is recorded."""
    z = np.load(golden / "models" / f"{step}.npz")
    x, y = z["x"], z["y"]
    config, params = read_model(golden / "models" / step.split("/")[0] / "model.bin")
    run = Pass(gpt2, config, params, *x.shape)
    run.forward(x, y)
    run.backward(x, y, np.float32(1) / np.float32(x.size))
    assert same(run.mean_loss(), z["c_loss"])
    assert same(run.acts.losses, z["c_losses"])
    assert same(run.acts.logits, z["c_logits"])
    for name, gradient in run.grads.items():
        assert same(gradient, z[f"c_grad_{name}"]), name
    for key in z.files:
        for prefix, found in (("c_act_", run.acts), ("c_gact_", run.dacts)):
            if key.startswith(prefix):
                assert same(found[key.removeprefix(prefix)], z[key]), key


@pytest.mark.parametrize("name", RUNS)
def test_a_training_run_has_the_recorded_bits(golden, gpt2, name):
    """The loss of every step, and the parameters and moments at the end."""
    z = np.load(golden / "models" / f"{name}.npz")
    config, params = read_model(golden / "models" / name.split("/")[0] / "model.bin")
    m, v = params.zeros_like(), params.zeros_like()
    _, B, T = z["x"].shape
    run, ops = Pass(gpt2, config, params, B, T), TrainingOps("strict")
    for t, (x, y) in enumerate(zip(z["x"], z["y"], strict=True), start=1):
        run.forward(x, y)
        assert same(run.mean_loss(), z["loss_strict"][t - 1]), t
        run.grads.flat.fill(0)
        run.dacts.flat.fill(0)
        run.backward(x, y, np.float32(1) / np.float32(B * T))
        ops.adamw_update(params.flat, run.grads.flat, m.flat, v.flat, t, *z["hyper"])
    assert same(params.flat, z["final_params_strict"])
    if "final_m_strict" in z:
        assert same(m.flat, z["final_m_strict"])
        assert same(v.flat, z["final_v_strict"])
