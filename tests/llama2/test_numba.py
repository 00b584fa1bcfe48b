"""The Numba backend: threads, forks, debuggers, and the last bit."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from pyllm2 import backends
from pyllm2.llama2.model import Llama2
from pyllm2.testing import check_op, model_bound
from pyllm2.testing.llama2 import strategies
from tests.support.profiles import few

pytestmark = pytest.mark.skipif(
    backends.why_not("numba") is not None, reason=f"backend 'numba' {backends.why_not('numba')}"
)

# Runs in its own process: a small model, a prompt and two single steps; prints the logits.
PLAY = """
import dataclasses, numpy as np
from pyllm2 import backends
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.model import Llama2
from pyllm2.llama2.initial import random_weights
from pyllm2.inference.language_model import LanguageModel

config = Llama2Config(24, 20, 2, 4, 2, 30, 16)
model = Llama2(config, random_weights(config, True, 1), backends.engine(BACKEND))
session = LanguageModel(model, None, BACKEND).start(8)
session.feed([1, 2, 3])
session.feed([4])
def play():
    print(" ".join(f"{x:.4f}" for x in session.feed([5])[0]))
"""


def played(backend: str, then: str = "play()", **environment: str) -> Any:
    code = f"BACKEND = {backend!r}\n{PLAY}\n{then}"
    env = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300
    )


class Alone:
    """The step of one conversation, with a pace: (token, position) -> logits, (1, V)."""

    def __init__(self, model: Llama2, positions: int, pace: Any) -> None:
        from pyllm2.fast.llama2.engine import Conversation, Step

        self.step = Step(model, positions, lambda _: pace)
        self.conversation = Conversation(model.new_cache(positions), lambda: self.step)

    def __call__(self, token: int, pos: int) -> np.ndarray:
        return self.step([(token, pos, self.conversation)])


@few()
@given(data=st.data())
def test_the_bits_do_not_depend_on_the_number_of_threads(data: st.DataObject) -> None:
    """Threads share rows; no sum is split between threads."""
    from pyllm2.compiling.pace import Pace

    model = data.draw(strategies.models(backends.engine("numba")))
    tokens = data.draw(strategies.token_ids(model.config, most=4))
    logits = []
    for threads in (1, 2):
        step = Alone(model, len(tokens), Pace(threads, ()))
        logits.append([step(int(token), pos) for pos, token in enumerate(tokens)])
    np.testing.assert_array_equal(*logits)


class Drawn:
    """A pace that takes its numbers of threads from a list."""

    most = 2

    def __init__(self, numbers: list[int]) -> None:
        self._numbers = iter(numbers)

    @property
    def threads(self) -> int:
        return next(self._numbers)

    def record(self, seconds: float) -> None:
        assert seconds > 0


@few()
@given(data=st.data())
def test_the_number_of_threads_may_change_from_token_to_token(data: st.DataObject) -> None:
    """As it does on a busy machine: the bits are those of one thread."""
    from pyllm2.compiling.pace import Pace

    model = data.draw(strategies.models(backends.engine("numba")))
    tokens = data.draw(strategies.token_ids(model.config))
    numbers = data.draw(st.lists(st.integers(1, 2), min_size=len(tokens), max_size=len(tokens)))
    steps = (Alone(model, len(tokens), pace) for pace in (Pace(1), Drawn(numbers)))
    logits = [[step(int(token), pos) for pos, token in enumerate(tokens)] for step in steps]
    np.testing.assert_array_equal(*logits)


def test_a_number_of_threads_holds_for_the_plain_ops_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the fast engine, which are what a prompt is fed with."""
    from pyllm2.compiling import numba_build

    asked: list[int] = []

    def on_threads(threads: int) -> Any:
        asked.append(threads)
        return contextlib.nullcontext()

    monkeypatch.setattr(numba_build, "on_threads", on_threads)
    x = np.ones((2, 3), np.float32)
    backends.ops("numba", 1).matmul(x, x)
    assert asked == [1]


@pytest.mark.parametrize("name", ["rmsnorm", "swiglu", "attention"])
def test_a_vector_kernel_stays_inside_the_bound_of_its_op(name: str) -> None:
    """The decode kernel contains the same exp, sums and masks, but no op to test alone."""
    from pyllm2.fast.llama2 import decode

    check_op(name, getattr(decode, f"prompt_{name}"))


@pytest.fixture
def no_prompt_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyllm2.fast.llama2 import engine

    monkeypatch.setattr(engine, "SHORT", 1)


@pytest.mark.usefixtures("no_prompt_is_short")
@few(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_long_prompt_lies_within_the_bound_wherever_it_is_cut(data: st.DataObject) -> None:
    """Vector code with BLAS, between steps of the kernel that decodes."""
    model = data.draw(strategies.models(backends.engine("numba")))
    tokens = data.draw(strategies.token_ids(model.config))
    value, error = model_bound(model, tokens)
    cache, pos = model.new_cache(len(tokens)), 0
    while pos < len(tokens):
        n = data.draw(st.integers(1, len(tokens) - pos))
        logits = model.forward(tokens[pos : pos + n], pos, cache)
        assert (np.abs(logits - value[pos : pos + n]) <= error[pos : pos + n]).all()
        pos += n


@few()
@given(data=st.data())
def test_a_conversation_may_start_over_in_the_same_cache(data: st.DataObject) -> None:
    """Keys that the decode kernel keeps from an earlier conversation do not affect the next."""
    model = data.draw(strategies.models(backends.engine("numba")))
    old, new = (data.draw(strategies.token_ids(model.config)) for _ in range(2))
    used, fresh = model.new_cache(model.config.seq_len), model.new_cache(model.config.seq_len)
    for pos, token in enumerate(old):
        model.forward(np.array([token]), pos, used)
    for cache in (used, fresh):
        model.forward(new[:-1], 0, cache) if len(new) > 1 else None
    last = [model.forward(new[-1:], len(new) - 1, cache) for cache in (used, fresh)]
    np.testing.assert_array_equal(*last)


def test_missing_threads_do_not_block_a_step() -> None:
    """More threads than the pool has would wait at a barrier for ever: one thread does the work."""
    import numba

    from pyllm2.compiling.pace import Pace
    from pyllm2.llama2.config import Llama2Config
    from pyllm2.llama2.initial import random_weights

    config = Llama2Config(24, 20, 2, 4, 2, 30, 16)
    model = Llama2(config, random_weights(config, True, 1), backends.engine("numba"))
    one, crowd = (Alone(model, 4, Pace(n, ())) for n in (1, 4 * numba.get_num_threads()))
    np.testing.assert_array_equal(one(7, 0), crowd(7, 0))
    assert crowd.step.alone
    np.testing.assert_array_equal(one(8, 1), crowd(8, 1))


@pytest.mark.skipif(backends.why_not("c") is not None, reason=f"c {backends.why_not('c')}")
@few()
@given(data=st.data())
def test_two_strict_engines_agree_to_the_last_bit(data: st.DataObject) -> None:
    """C and Numba give the same bits for any model."""
    numba_model = data.draw(strategies.models(backends.engine("numba-strict")))
    c_model = Llama2(numba_model.config, numba_model.weights, backends.engine("c-strict"))
    tokens = data.draw(strategies.token_ids(numba_model.config))
    caches = [m.new_cache(len(tokens)) for m in (numba_model, c_model)]
    np.testing.assert_array_equal(caches[0].cos, caches[1].cos)
    np.testing.assert_array_equal(caches[0].sin, caches[1].sin)
    np.testing.assert_array_equal(
        numba_model.forward(tokens, 0, caches[0]), c_model.forward(tokens, 0, caches[1])
    )


@pytest.mark.parametrize(
    "environment",
    [
        {"NUMBA_DISABLE_JIT": "1"},
        {"NUMBA_BOUNDSCHECK": "1"},
        {"NUMBA_NUM_THREADS": "1"},
        {"NUMBA_THREADING_LAYER": "workqueue"},
    ],
    ids=lambda e: next(iter(e)),
)
def test_settings_of_numba_do_not_change_the_logits(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """The logits are the same as plain Python, with bounds checks and on one thread."""
    expected = played("numpy").stdout
    assert len(expected.split()) == 30
    if "NUMBA_BOUNDSCHECK" in environment:  # compiled otherwise: not for the common cache
        # without optimisation, which nothing here depends on, that takes half the time
        environment |= {"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_OPT": "0"}
        environment |= {"PYTHONWARNINGS": "ignore:Cannot cache compiled function"}
    found = played("numba", **environment)
    assert found.stderr == ""
    pairs = zip(found.stdout.split(), expected.split(), strict=True)
    assert all(abs(float(a) - float(b)) <= 2e-4 for a, b in pairs)  # printed to four places


def test_kernels_work_without_a_writable_cache(tmp_path: Path) -> None:
    """If the cache folder cannot be created, kernels are compiled again and work."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    found = played("numba", NUMBA_CACHE_DIR=str(blocked / "below"), HOME=str(blocked))
    assert found.returncode == 0, found.stderr
    assert found.stdout == played("numba").stdout


def test_a_forked_child_uses_serial_kernels() -> None:
    """OpenMP's threads do not survive a fork: the child uses serial kernels."""
    then = "import os, sys\npid = os.fork()\nif pid == 0: play(); sys.stdout.flush(); os._exit(0)\n"
    found = played("numba", then + "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))")
    assert found.returncode == 0, found.stderr
    assert found.stdout == played("numba").stdout


@pytest.mark.parametrize("value", ["0", "abc", "1025", "1" + "0" * 5000])
def test_an_impossible_number_of_threads_is_one_line(value: str) -> None:
    """The variable, its value and the allowed range instead of Numba's traceback."""
    command = [sys.executable, "-m", "pyllm2", "generate", "m.bin", "--tokenizer", "t.bin"]
    env = {**os.environ, "NUMBA_NUM_THREADS": value}
    result = subprocess.run(
        [*command, "--backend", "numba"], env=env, capture_output=True, text=True
    )
    assert result.returncode == 1
    reason = f"NUMBA_NUM_THREADS = {value!r}: expected 1 to 1024"
    assert result.stderr == f"pyllm2: error: backend 'numba' cannot be loaded: {reason}\n"
