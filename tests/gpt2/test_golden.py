"""Recorded results of the original and of PyTorch: ops, training steps, training runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyllm2
from pyllm2.testing import Bounded, assert_all_close, assert_close, tables
from pyllm2.testing.bounds import U
from tests.gpt2.golden import RUNS, STEPS, bound_of_step, read_debug_state, read_model
from tests.support.tested import BACKENDS, engine_of, ops_of


@pytest.fixture
def llmc(shared: Path) -> Path:
    """The folder golden/llmc."""
    return shared / "golden" / "llmc"


def cases(llmc: Path, name: str) -> Iterator[dict[str, Any]]:
    """The arrays of each case of a file of `ops/`."""
    file = np.load(llmc / "ops" / f"{name}.npz")
    for n in range(int(file["n_cases"])):
        prefix = f"{n}__"
        yield {k.removeprefix(prefix): file[k] for k in file.files if k.startswith(prefix)}


def both(
    backend: str, name: str, inputs: tuple[Any, ...], recorded: Any, added_to: Any = None
) -> None:
    """Check that the recorded and the backend's results are within the op's bound.

    added_to: the previous contents of a destination to which the original adds. It enlarges every
    partial sum, and so the error of each rounding, and the result is rounded once more.
    """
    bounded = tables["gpt2"][name].bound(*inputs)
    found = getattr(ops_of(backend, "gpt2"), name)(*inputs)
    assert_all_close(found, bounded, f"{name} of {backend}")
    if isinstance(bounded, Bounded):
        bounded, recorded, added_to = (bounded,), (recorded,), (added_to,)
    starts = added_to or (None,) * len(bounded)
    for n, (one, there, start) in enumerate(zip(bounded, recorded, starts, strict=True)):
        if there is None:  # a bias that this case does not have
            continue
        if start is not None and start.any():
            there_before = start.astype(np.float64)
            terms = sum(a.size for a in inputs if isinstance(a, np.ndarray))
            room = one.error + terms * U * np.abs(there_before) + U * np.abs(one.value)
            one = Bounded(one.value + there_before, room)
        assert_close(there, one, f"recorded {name} {n}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_encoder(llmc: Path, backend: str) -> None:
    for c in cases(llmc, "encoder"):
        both(backend, "encoder_forward", (c["inp"], c["wte"], c["wpe"]), c["c_out"])
        inputs = c["dout"], c["inp"], c["dwte_init"], c["dwpe_init"]
        both(backend, "encoder_backward", inputs, (c["c_dwte"], c["c_dwpe"]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_layernorm(llmc: Path, backend: str) -> None:
    """Constant, offset, tiny and huge rows among them."""
    for c in cases(llmc, "layernorm"):
        x, w, b = c["inp"], c["weight"], c["bias"]
        mean, rstd = c["c_mean"], c["c_rstd"]
        both(backend, "layernorm_forward", (x, w, b), (c["c_out"], mean, rstd))
        recorded = c["c_dinp"], c["c_dweight"], c["c_dbias"]
        start = c["dinp_init"], c["dweight_init"], c["dbias_init"]
        both(backend, "layernorm_backward", (c["dout"], x, w, mean, rstd), recorded, start)


@pytest.mark.parametrize("backend", BACKENDS)
def test_matmul(llmc: Path, backend: str) -> None:
    for c in cases(llmc, "matmul"):
        both(backend, "matmul_forward", (c["inp"], c["weight"], c.get("bias")), c["c_out"])
        recorded = c["c_dinp"], c["c_dweight"], c.get("c_dbias")
        start = c["dinp_init"], c["dweight_init"], c.get("dbias_init")
        both(backend, "matmul_backward", (c["dout"], c["inp"], c["weight"]), recorded, start)


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention(llmc: Path, backend: str) -> None:
    """Peaky and huge scores, and scores below the floor."""
    for c in cases(llmc, "attention"):
        NH, att = int(c["NH"]), c["c_att"]
        both(backend, "attention_forward", (c["inp"], NH), (c["c_out"], att))
        if not c["datt_init"].any():  # the original's other destinations start from 0
            inputs = c["dout"], c["inp"], att
            both(backend, "attention_backward", inputs, c["c_dinp"], c["dinp_init"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_gelu(llmc: Path, backend: str) -> None:
    for c in cases(llmc, "gelu"):
        both(backend, "gelu_forward", (c["inp"],), c["c_out"])
        both(backend, "gelu_backward", (c["dout"], c["inp"]), c["c_dinp"], c["dinp_init"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_residual(llmc: Path, backend: str) -> None:
    for c in cases(llmc, "residual"):
        both(backend, "residual_forward", (c["inp1"], c["inp2"]), c["c_out"])
        recorded, start = (c["c_dinp1"], c["c_dinp2"]), (c["dinp1_init"], c["dinp2_init"])
        both(backend, "residual_backward", (c["dout"],), recorded, start)


@pytest.mark.parametrize("backend", BACKENDS)
def test_softmax_and_loss(llmc: Path, backend: str) -> None:
    """Rows below the floor (NaN) and probabilities that underflow (infinite loss) among them."""
    for c in cases(llmc, "softmax_crossentropy"):
        V, targets, probs = int(c["V"]), c["targets"], c["c_probs"]
        both(backend, "softmax_forward", (c["logits"], V), probs)
        both(backend, "crossentropy_forward", (probs, targets), c["c_losses"])
        inputs, recorded = (c["dlosses"], probs, targets, V), c["c_dlogits"]
        both(backend, "crossentropy_softmax_backward", inputs, recorded, c["dlogits_init"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_adamw(llmc: Path, backend: str) -> None:
    """Each recorded step from the recorded state before it."""
    op, update = tables["adamw"]["adamw_update"], ops_of(backend, "training").adamw_update
    for c in cases(llmc, "adamw"):
        zero = np.zeros_like(c["param_init"])
        state = c["param_init"], zero, zero
        for n, t in enumerate(c["t"]):
            w, m, v = state
            inputs = w, c["grad"][n], m, v, int(t), *(float(h) for h in c["hyper"])
            bounded = op.bound(*inputs)
            state = c["c_param"][n], c["c_m"][n], c["c_v"][n]
            assert_all_close(state, bounded, "recorded")
            assert_all_close(op.call(update, *inputs), bounded, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", STEPS)
def test_a_step(llmc: Path, name: str, backend: str) -> None:
    """Losses, logits and every gradient, the original's and ours, are within the float64 bound."""
    path = llmc / "models" / f"{name}.npz"
    step, bound = np.load(path), bound_of_step(path)
    model = read_model(path.parent, engine_of(backend, "gpt2"))
    acts = model.forward(step["x"], step["y"])
    gradient = model.params.zeros_like()
    losses = model.add_gradient(step["x"], step["y"], 1 / step["x"].size, gradient, fresh=True)
    for found in (acts.logits, step["c_logits"]):
        assert_close(found, bound.logits, "logits")
    for found in (acts.losses, losses, step["c_losses"]):
        assert_close(found, bound.losses, "losses")
    for tensor, bounded in bound.gradient.items():
        assert_close(gradient[tensor], bounded, f"gradient of {tensor}")
        assert_close(step[f"c_grad_{tensor}"], bounded, f"recorded gradient of {tensor}")
    assert not gradient.wte[model.config.vocab_size :].any()


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b.endswith("-strict")])
@pytest.mark.parametrize("name", STEPS)
def test_the_loss_of_a_loaded_model_has_the_originals_bits(
    llmc: Path, name: str, backend: str
) -> None:
    """With `loss` and `loss_and_grads`; a mean in another order differs in some files."""
    engine_of(backend, "gpt2")
    path = llmc / "models" / f"{name}.npz"
    step, model = np.load(path), pyllm2.load(path.parent / "model.bin", backend=backend)
    assert model.loss(step["x"], step["y"]) == step["c_loss"]
    loss, grads = model.loss_and_grads(step["x"], step["y"])
    assert loss == step["c_loss"]
    for tensor in grads:
        np.testing.assert_array_equal(grads[tensor], step[f"c_grad_{tensor}"], tensor)


@pytest.mark.parametrize("name", STEPS)
def test_pytorch_in_float64_is_our_float64(llmc: Path, name: str) -> None:
    """PyTorch's gelu has the exact √(2/π): a difference of 1e-7, far below the bound."""
    path = llmc / "models" / f"{name}.npz"
    step, bound = np.load(path), bound_of_step(path)
    V = read_model(path.parent).config.vocab_size
    logits = step["t64_logits"]
    assert (np.abs(logits - bound.logits.value[..., :V]) <= bound.logits.error[..., :V]).all()
    assert abs(step["t64_loss"] - bound.losses.value.mean()) <= bound.losses.error.max()
    for tensor, (value, error) in bound.gradient.items():
        if f"t64_grad_{tensor}" in step.files:
            off = np.abs(step[f"t64_grad_{tensor}"] - value)
            assert (off <= error).all(), tensor


@pytest.mark.parametrize("name", ["micro", "small", "tiny"])
def test_pytorch_in_float32_lies_within_the_bound(llmc: Path, name: str) -> None:
    """The debug state that the original uses for its own test."""
    folder = llmc / "models" / name
    state = read_debug_state(folder)
    B, T = state["x"].shape
    bound = bound_of_step(folder / f"step_b{B}t{T}.npz")
    V = state["logits"].shape[-1]
    assert_close(state["logits"], Bounded(*(a[..., :V] for a in bound.logits)), "logits")
    assert abs(state["loss"] - bound.losses.value.mean()) <= bound.losses.error.max()
    for tensor, bounded in bound.gradient.items():
        assert_close(state["grads"][tensor], bounded, f"gradient of {tensor}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", RUNS)
def test_a_training_run(llmc: Path, name: str, backend: str) -> None:
    """AdamW over 10 to 20 steps: every loss and the final parameters.

    Losses within 5e-5, ten times the difference between correct float32 programs. Of the
    parameters 99.9 % within 1e-5, and all within half a step (where a gradient nearly vanishes).
    Key biases are left out: their gradient is rounding noise, which AdamW scales to steps of lr.
    """
    path = llmc / "models" / f"{name}.npz"
    run = np.load(path)
    model = read_model(path.parent, engine_of(backend, "gpt2"))
    update = ops_of(backend, "training").adamw_update
    p, (lr, *others) = model.params, (float(h) for h in run["hyper"])
    gradient, m, v = p.zeros_like(), p.zeros_like(), p.zeros_like()
    losses = []
    for t, (x, y) in enumerate(zip(run["x"], run["y"], strict=True), start=1):
        found = model.add_gradient(x, y, 1 / x.size, gradient, fresh=True)
        losses.append(found.astype(np.float64).mean())
        update(p.flat, gradient.flat, m.flat, v.flat, t, lr, *others)
    assert np.abs(losses - run["loss_strict"]).max() <= 5e-5
    off = type(p)(p.shapes, np.abs(p.flat - run["final_params_strict"]))
    off.qkvb[:, model.config.channels : 2 * model.config.channels] = 0
    assert np.quantile(off.flat, 0.999) <= 1e-5
    assert off.flat.max() <= 0.5 * lr
