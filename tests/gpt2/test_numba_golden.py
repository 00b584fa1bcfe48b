"""numba-strict against recorded results of llm.c, bit for bit: ops, steps, training runs.

The original adds to the previous contents of its destinations; our backwards start at zero. The
previous contents are one more term: added afterwards if the sum has one other, else put first.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyllm2.backends import Engine
from tests.gpt2.golden import RUNS, STEPS, read_model
from tests.support.tested import BACKENDS, ops_of

pytestmark = pytest.mark.skipif("numba-strict" not in BACKENDS, reason="not asked for")


@pytest.fixture
def llmc(shared: Path) -> Path:
    """The folder golden/llmc."""
    return shared / "golden" / "llmc"


@pytest.fixture
def ops() -> Any:
    return ops_of("numba-strict", "gpt2")


def cases(llmc: Path, name: str) -> Iterator[dict[str, Any]]:
    """The arrays of each case of a file of `ops/`."""
    file = np.load(llmc / "ops" / f"{name}.npz")
    for n in range(int(file["n_cases"])):
        prefix = f"{n}__"
        yield {k.removeprefix(prefix): file[k] for k in file.files if k.startswith(prefix)}


def same(found: Any, *recorded: np.ndarray) -> None:
    """Check that numbers and NaN are equal."""
    for one, there in zip(found if isinstance(found, tuple) else (found,), recorded, strict=True):
        np.testing.assert_array_equal(one, there)
        assert one.dtype == there.dtype


def after(first: Any, rows: np.ndarray) -> np.ndarray:
    """Put a row before all others. (B, T, C)   ->   (1, 1 + B·T, C)"""
    flat = rows.reshape(1, -1, rows.shape[-1])
    return np.concatenate([np.broadcast_to(np.float32(first), (1, 1, flat.shape[-1])), flat], 1)


def test_encoder(llmc: Path, ops: Any) -> None:
    for c in cases(llmc, "encoder"):
        same(ops.encoder_forward(c["inp"], c["wte"], c["wpe"]), c["c_out"])
        found = ops.encoder_backward(c["dout"], c["inp"], c["dwte_init"], c["dwpe_init"])
        same(found, c["c_dwte"], c["c_dwpe"])


def test_layernorm(llmc: Path, ops: Any) -> None:
    """Constant, offset, tiny and huge rows among them."""
    for c in cases(llmc, "layernorm"):
        x, w, dout, mean, rstd = c["inp"], c["weight"], c["dout"], c["c_mean"], c["c_rstd"]
        same(ops.layernorm_forward(x, w, c["bias"]), c["c_out"], mean, rstd)
        same(c["dinp_init"] + ops.layernorm_backward(dout, x, w, mean, rstd)[0], c["c_dinp"])
        # A first row of mean 0 and rstd 1 adds x · dout to dw and dout to db.
        mean, rstd = np.append(np.float32(0), mean)[None], np.append(np.float32(1), rstd)[None]
        x = after(c["dweight_init"], x)
        same(ops.layernorm_backward(after(1, dout), x, w, mean, rstd)[1], c["c_dweight"])
        dout = after(c["dbias_init"], dout)
        same(ops.layernorm_backward(dout, x, w, mean, rstd)[2], c["c_dbias"])


def test_matmul(llmc: Path, ops: Any) -> None:
    """Both paths of the original, with and without a bias."""
    for c in cases(llmc, "matmul"):
        x, w, dout = c["inp"], c["weight"], c["dout"]
        same(ops.matmul_forward(x, w, c.get("bias")), c["c_out"])
        if "bias" in c:
            found = ops.matmul_backward(after(c["dbias_init"], dout), after(1, x), w)
            same(found[2], c["c_dbias"])
        for b, t in np.ndindex(x.shape[:2]):  # a first output of weights `start`
            w_after = np.concatenate([c["dinp_init"][b, t][None], w])
            dout_after = np.append(np.float32(1), dout[b, t])[None, None]
            found = ops.matmul_backward(dout_after, x[b, t][None, None], w_after)
            same(found[0][0, 0], c["c_dinp"][b, t])
        for o in range(len(w)):  # a first row `start`
            one, rows = after(1, dout[..., o : o + 1]), after(c["dweight_init"][o], x)
            found = ops.matmul_backward(one, rows, w[o : o + 1])
            same(found[1][0], c["c_dweight"][o])


def test_attention(llmc: Path, ops: Any) -> None:
    """Peaky and huge scores, and scores below the floor."""
    for c in cases(llmc, "attention"):
        same(ops.attention_forward(c["inp"], int(c["NH"])), c["c_out"], c["c_att"])


@pytest.mark.parametrize("name", [name for name in STEPS if name.startswith("micro")])
def test_attention_backward(llmc: Path, ops: Any, name: str) -> None:
    """In both layers, from zeros, with the Jacobian in the original's order."""
    step = np.load(llmc / "models" / f"{name}.npz")
    for dout, qkv, att, dqkv in zip(
        *(step[f"c_{which}"] for which in ("gact_atty", "act_qkv", "act_att", "gact_qkv")),
        strict=True,
    ):
        same(ops.attention_backward(dout, qkv, att), dqkv)


def test_gelu(llmc: Path, ops: Any) -> None:
    """Also where cosh overflows."""
    for c in cases(llmc, "gelu"):
        same(ops.gelu_forward(c["inp"]), c["c_out"])
        same(ops.gelu_backward(np.ones_like(c["inp"]), c["inp"]), c["c_local_grad"])
        same(c["dinp_init"] + ops.gelu_backward(c["dout"], c["inp"]), c["c_dinp"])


def test_residual(llmc: Path, ops: Any) -> None:
    for c in cases(llmc, "residual"):
        same(ops.residual_forward(c["inp1"], c["inp2"]), c["c_out"])
        da, db = ops.residual_backward(c["dout"])
        same((c["dinp1_init"] + da, c["dinp2_init"] + db), c["c_dinp1"], c["c_dinp2"])


def test_softmax_and_loss(llmc: Path, ops: Any) -> None:
    """Rows below the floor (NaN) and probabilities that underflow (infinite loss) among them."""
    for c in cases(llmc, "softmax_crossentropy"):
        probs, targets, V = c["c_probs"], c["targets"], int(c["V"])
        same(ops.softmax_forward(c["logits"], V), probs)
        same(ops.crossentropy_forward(probs, targets), c["c_losses"])
        dlogits = ops.crossentropy_softmax_backward(c["dlosses"], probs, targets, V)
        same(c["dlogits_init"] + dlogits, c["c_dlogits"])


def test_adamw(llmc: Path) -> None:
    """Parameters and moments after every step, also where the steps have gaps."""
    update = ops_of("numba-strict", "training").adamw_update
    for c in cases(llmc, "adamw"):
        w = c["param_init"].copy()
        m, v = np.zeros_like(w), np.zeros_like(w)
        for n, t in enumerate(c["t"]):
            update(w, c["grad"][n], m, v, int(t), *map(float, c["hyper"]))
            same((w, m, v), c["c_param"][n], c["c_m"][n], c["c_v"][n])


@pytest.mark.parametrize("name", STEPS)
def test_a_step(llmc: Path, ops: Any, name: str) -> None:
    """Logits, losses, and the gradient of all sixteen tensors."""
    path = llmc / "models" / f"{name}.npz"
    step, model = np.load(path), read_model(path.parent, Engine(ops))
    acts = model.forward(step["x"], step["y"])
    same((acts.logits, acts.losses), step["c_logits"], step["c_losses"])
    gradient = model.backward(acts, np.full_like(step["c_losses"], 1 / step["x"].size))
    for tensor, found in gradient.items():
        same(found, step[f"c_grad_{tensor}"])


@pytest.mark.parametrize("name", RUNS)
def test_a_training_run(llmc: Path, ops: Any, name: str) -> None:
    """Every mean loss, and the final parameters and moments."""
    path = llmc / "models" / f"{name}.npz"
    run, model = np.load(path), read_model(path.parent, Engine(ops))
    update, hyper = ops_of("numba-strict", "training").adamw_update, map(float, run["hyper"])
    p, m, v, hyper = model.params, model.params.zeros_like(), model.params.zeros_like(), [*hyper]
    for n, (x, y) in enumerate(zip(run["x"], run["y"], strict=True)):
        acts = model.forward(x, y)
        mean = np.add.accumulate(acts.losses.ravel())[-1] / np.float32(x.size)
        same(mean, run["loss_strict"][n])
        gradient = model.backward(acts, np.full(x.shape, 1 / x.size, np.float32))
        update(p.flat, gradient.flat, m.flat, v.flat, n + 1, *hyper)
    same(p.flat, run["final_params_strict"])
    if "final_m_strict" in run:
        same((m.flat, v.flat), run["final_m_strict"], run["final_v_strict"])
