"""The Numba backend in training: threads, forks, debuggers, and the last bit."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2 import backends
from pyllm2.testing import tables
from pyllm2.testing.gpt2 import strategies
from tests.support.profiles import few
from tests.support.tested import engine_of, ops_of

pytestmark = pytest.mark.skipif(
    backends.why_not("numba") is not None, reason=f"backend 'numba' {backends.why_not('numba')}"
)
needs_c = pytest.mark.skipif(backends.why_not("c") is not None, reason=f"c {backends.why_not('c')}")

OPS = {"gpt2": tables["gpt2"], "training": tables["adamw"]}
NAMES = [(package, name) for package, ops in OPS.items() for name in ops]


def results(package: str, name: str, ops: Any, inputs: Any) -> tuple[np.ndarray, ...]:
    """The results of an op, returned or written, as a tuple."""
    found = OPS[package][name].call(getattr(ops, name), *inputs)
    return found if isinstance(found, tuple) else (found,)


def assert_same(found: Any, expected: Any) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@needs_c
@pytest.mark.parametrize(("package", "name"), NAMES)
@given(data=st.data())
def test_two_strict_ops_agree_to_the_last_bit(package: str, name: str, data: st.DataObject) -> None:
    """C and Numba give the same bits for any inputs."""
    inputs = data.draw(OPS[package][name].inputs)
    found, expected = (
        results(package, name, ops_of(backend, package), inputs)
        for backend in ("numba-strict", "c-strict")
    )
    assert_same(found, expected)


@needs_c
@few()
@given(data=st.data())
def test_two_strict_models_agree_to_the_last_bit(data: st.DataObject) -> None:
    """Logits, losses and gradient of the composition of ops."""
    model = data.draw(strategies.trainable_models(engine_of("numba-strict", "gpt2")))
    tokens, targets = data.draw(strategies.batches(model.config))
    both = []
    for ops in (model.ops, ops_of("c-strict", "gpt2")):
        one = model.with_ops(ops)
        acts = one.forward(tokens, targets)
        gradient = one.backward(acts, np.full(tokens.shape, 0.125, np.float32))
        both.append((acts.logits, acts.losses, gradient.flat))
    assert_same(*both)


@pytest.mark.parametrize("name", OPS["gpt2"])
@given(data=st.data())
def test_the_bits_do_not_depend_on_the_number_of_threads(name: str, data: st.DataObject) -> None:
    """Threads share rows, outputs or heads; no sum is split."""
    inputs = data.draw(OPS["gpt2"][name].inputs)
    assert_same(*(results("gpt2", name, ops, inputs) for ops in ops_of_threads(1, 2)))


def ops_of_threads(*numbers: int) -> list[Any]:
    from pyllm2.gpt2.ops_numba import Ops

    return [_made.setdefault(n, Ops("fast", n)) for n in numbers]


_made: dict[int, Any] = {}


def test_a_number_of_threads_is_restored_after_the_call() -> None:
    """Other kernels keep their number; more than the processors means all of them."""
    import numba

    usual = numba.get_num_threads()
    x = np.ones((1, 2, 3), np.float32)
    for ops in ops_of_threads(1, 4 * usual):
        np.testing.assert_array_equal(ops.residual_forward(x, x), 2 * x)
        assert numba.get_num_threads() == usual


@pytest.mark.parametrize("backend", ["numba", "numba-strict"])
def test_an_argument_may_be_named_or_left_out(backend: str) -> None:
    """As in the specification."""
    ops = ops_of(backend, "gpt2")
    qkv = np.random.default_rng(0).normal(size=(1, 3, 12)).astype(np.float32)
    whole, last = ops.attention_forward(qkv, 2), ops.attention_forward(qkv, NH=2, first=2)
    assert_same(whole, ops.attention_forward(qkv, 2, 0))
    assert_same(last, (whole[0][:, 2:], whole[1][:, :, 2:]))
    w, b = np.ones((2, 12), np.float32), np.float32([1, 2])
    without, with_b = ops.matmul_forward(qkv, w), ops.matmul_forward(qkv, w, b=b)
    np.testing.assert_allclose(with_b - without, np.broadcast_to(b, (1, 3, 2)), rtol=1e-5)


# Runs in its own process: every op of training on a small model; prints losses and norms.
TRAIN = """
import numpy as np
from pyllm2 import backends
from pyllm2.gpt2.config import GPT2Config
from pyllm2.gpt2.training import TrainableGPT2
from pyllm2.parameters import Parameters

config = GPT2Config(8, 11, 2, 2, 12, 16)
params = Parameters(config.shapes())
params.flat[:] = np.random.default_rng(0).normal(0, 0.3, params.flat.size)
model = TrainableGPT2(config, params, backends.engine(BACKEND, family="gpt2"))
optimizer = backends.ops(BACKEND, package="training")
m, v = params.zeros_like(), params.zeros_like()
tokens, targets = np.random.default_rng(1).integers(0, 11, (2, 2, 5))
def train():
    for t in (1, 2, 3):
        acts = model.forward(tokens, targets)
        gradient = model.backward(acts, np.full((2, 5), 0.1, np.float32))
        norm = optimizer.global_norm(gradient.flat)
        optimizer.adamw_update(
            params.flat, gradient.flat, m.flat, v.flat, t, 0.01, 0.9, 0.999, 1e-8, 0.1, 1 / norm
        )
        print(f"{acts.losses.mean():.4f} {norm:.4f}")
    last = model.ops.attention_forward(acts.blocks[1].qkv, 2, 4)[0]
    print(f"{abs(last).mean():.4f} {abs(acts.logits).max():.4f}")
"""


def trained(backend: str, then: str = "train()", **environment: str) -> list[float]:
    """The numbers that training prints."""
    code = f"BACKEND = {backend!r}\n{TRAIN}\n{then}"
    env = {**os.environ, **environment}
    result = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300
    )
    assert (result.returncode, result.stderr) == (0, "")
    return [float(word) for word in result.stdout.split()]


@pytest.mark.parametrize("backend", ["numba", "numba-strict"])
def test_every_op_runs_as_plain_python(backend: str) -> None:
    """Nothing is compiled, for a debugger; four printed digits are the same."""
    found, expected = trained(backend, NUMBA_DISABLE_JIT="1"), trained("numpy")
    assert len(found) == 8
    assert np.abs(np.subtract(found, expected)).max() <= 2e-4


def test_a_forked_child_uses_serial_kernels() -> None:
    """OpenMP's threads do not survive a fork: the child uses serial kernels."""
    then = "train()\nimport os, sys\nsys.stdout.flush()\npid = os.fork()\n"
    then += "if pid == 0: train(); sys.stdout.flush(); os._exit(0)\n"
    then += "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    found, expected = trained("numba", then), trained("numba", "train(); train()")
    assert len(found) == 16
    assert np.abs(np.subtract(found, expected)).max() <= 2e-4
