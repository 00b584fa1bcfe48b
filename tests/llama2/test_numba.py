"""The Numba backend: threads, forks, debuggers, and the last bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2 import backends
from pyllm2.llama2.model import Llama2
from pyllm2.testing import check_op, strategies

pytestmark = pytest.mark.skipif(
    backends.why_not("numba") is not None, reason=f"backend 'numba' {backends.why_not('numba')}"
)

# Runs in a process of its own: a small model, a prompt and two single steps; prints the logits.
PLAY = """
import dataclasses, numpy as np
from pyllm2 import backends
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.model import Llama2
from pyllm2.llama2.random_model import random_weights
from pyllm2.language_model import LanguageModel

config = Llama2Config(24, 20, 2, 4, 2, 30, 16)
model = Llama2(config, random_weights(config, True, 1), backends.ops(BACKEND))
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


@given(data=st.data())
def test_the_bits_do_not_depend_on_the_number_of_threads(data: st.DataObject) -> None:
    """Rows are shared out, a sum is never split."""
    from pyllm2.llama2.engine_numba import Step

    model = data.draw(strategies.models(backends.ops("numba")))
    tokens = data.draw(strategies.token_ids(model.config, most=4))
    logits = []
    for threads in (1, 2):
        cache = model.new_cache(len(tokens))
        step = Step(model, cache, threads)
        logits.append([step(int(token), pos) for pos, token in enumerate(tokens)])
    np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize("name", ["rmsnorm", "swiglu", "attention"])
def test_a_vector_kernel_stays_inside_the_bound_of_its_op(name: str) -> None:
    """The same exp, sums and masks are in the whole step, where no single op can be seen."""
    from pyllm2.llama2 import step_numba

    check_op(name, step_numba.kernel(f"prompt_{name}"))


@given(data=st.data())
def test_a_conversation_may_start_over_in_the_same_cache(data: st.DataObject) -> None:
    """What the step kernel remembers of an earlier conversation does not leak into the next."""
    model = data.draw(strategies.models(backends.ops("numba")))
    old, new = (data.draw(strategies.token_ids(model.config)) for _ in range(2))
    used, fresh = model.new_cache(model.config.seq_len), model.new_cache(model.config.seq_len)
    for pos, token in enumerate(old):
        model.ops.forward(model, np.array([token]), pos, used)
    for cache in (used, fresh):
        model.ops.forward(model, new[:-1], 0, cache) if len(new) > 1 else None
    last = [model.ops.forward(model, new[-1:], len(new) - 1, cache) for cache in (used, fresh)]
    np.testing.assert_array_equal(*last)


def test_threads_that_do_not_all_come_are_not_waited_for() -> None:
    """More than the pool has run one after the other: no barrier would open. One works alone."""
    import numba

    from pyllm2.llama2.config import Llama2Config
    from pyllm2.llama2.engine_numba import Step
    from pyllm2.llama2.random_model import random_weights

    config = Llama2Config(24, 20, 2, 4, 2, 30, 16)
    model = Llama2(config, random_weights(config, True, 1), backends.ops("numba"))
    alone, crowd = (Step(model, model.new_cache(4), n) for n in (1, 4 * numba.get_num_threads()))
    np.testing.assert_array_equal(alone(7, 0), crowd(7, 0))
    assert crowd.threads == 1
    np.testing.assert_array_equal(alone(8, 1), crowd(8, 1))


@pytest.mark.skipif(backends.why_not("c") is not None, reason=f"c {backends.why_not('c')}")
@given(data=st.data())
def test_two_strict_engines_agree_to_the_last_bit(data: st.DataObject) -> None:
    """C and Numba, written apart, on whatever model hypothesis draws: no tolerance at all."""
    numba_model = data.draw(strategies.models(backends.ops("numba-strict")))
    c_model = Llama2(numba_model.config, numba_model.weights, backends.ops("c-strict"))
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
def test_settings_of_numba_change_nothing_visible(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Stepped through as plain Python, with bounds checked, on one thread: the same logits."""
    expected = played("numpy").stdout
    assert len(expected.split()) == 30
    if "NUMBA_BOUNDSCHECK" in environment:  # compiled otherwise: not for the common cache
        environment = {**environment, "NUMBA_CACHE_DIR": str(tmp_path)}
    found = played("numba", **environment)
    assert found.stderr == ""
    pairs = zip(found.stdout.split(), expected.split(), strict=True)
    assert all(abs(float(a) - float(b)) <= 2e-4 for a, b in pairs)  # printed to four places


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    """A file where the cache folder should be: kernels are compiled anew and work."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    found = played("numba", NUMBA_CACHE_DIR=str(blocked / "below"), HOME=str(blocked))
    assert found.returncode == 0, found.stderr
    assert found.stdout == played("numba").stdout


def test_a_child_made_by_fork_goes_on_alone() -> None:
    """OpenMP's threads do not survive a fork; the child uses kernels without them."""
    then = "import os, sys\npid = os.fork()\nif pid == 0: play(); sys.stdout.flush(); os._exit(0)\n"
    found = played("numba", then + "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))")
    assert found.returncode == 0, found.stderr
    assert found.stdout == played("numba").stdout


@pytest.mark.parametrize("value", ["0", "abc"])
def test_an_impossible_number_of_threads_is_one_line(value: str) -> None:
    """The variable, its value, what is allowed; where Numba would answer with a traceback."""
    command = [sys.executable, "-m", "pyllm2", "generate", "m.bin", "--tokenizer", "t.bin"]
    env = {**os.environ, "NUMBA_NUM_THREADS": value}
    result = subprocess.run(
        [*command, "--backend", "numba"], env=env, capture_output=True, text=True
    )
    assert result.returncode == 1
    reason = f"NUMBA_NUM_THREADS = {value!r}: expected 1 to 65536"
    assert result.stderr == f"pyllm2: error: backend 'numba' cannot be loaded: {reason}\n"
