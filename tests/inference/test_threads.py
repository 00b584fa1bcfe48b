"""One loaded model in several threads: each gets the bits that it would get alone."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given
from hypothesis import strategies as st

import pyllm2
from pyllm2 import backends
from pyllm2.compiling.processors import processors
from pyllm2.errors import BackendError
from pyllm2.gpt2 import checkpoint as gpt2
from pyllm2.gpt2.config import GPT2Config
from pyllm2.llama2 import checkpoint as llama2
from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.initial import random_weights
from pyllm2.llama2.model import Llama2
from pyllm2.llama2.training import TrainableLlama2
from pyllm2.parameters import Parameters
from tests.support.profiles import few
from tests.support.tested import BACKENDS, engine_of

V, S = 64, 32
FAMILIES = {
    "gpt2": (gpt2, GPT2Config(S, V, 2, 4, 32, V)),
    "llama2": (llama2, Llama2Config(32, 48, 2, 4, 2, V, S)),
}
THREADS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of each family."""
    path = tmp_path_factory.mktemp("threads")
    for name, (checkpoint, config) in FAMILIES.items():
        params = Parameters(config.shapes())
        params.flat[...] = np.random.default_rng(1).normal(0, 0.2, params.flat.size)
        checkpoint.save_parameters(path / name, config, params)  # type: ignore[attr-defined]
    return path


@pytest.fixture
def _many_switches() -> Iterator[None]:
    """Python changes to another thread between any two kernels."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


# ---- calls: each takes a model and a seed, and returns bytes -----------------------------------


def batch(seed: int, i: int = 0) -> Any:
    """Ids of one of four shapes, so that some threads share a shape and others do not."""
    shape = [(2, 8), (2, 32), (1, 5), (3, 17)][seed % 4]
    return np.random.default_rng([seed, i]).integers(0, V, shape)


def loss(model: Any, seed: int) -> bytes:
    return np.float64(model.loss(batch(seed), batch(seed, 1))).tobytes()


def loss_and_grads(model: Any, seed: int) -> bytes:
    mean, grads = model.loss_and_grads(batch(seed), batch(seed, 1))
    return np.float64(mean).tobytes() + bytes(grads.flat)


def two_micro_batches(model: Any, seed: int) -> bytes:
    return _gradient(model.trainable, seed)


def two_micro_batches_with_dropout(model: Any, seed: int) -> bytes:
    return _gradient(model.dropping, seed)


def _gradient(trainable: Any, seed: int) -> bytes:
    grads = trainable.params.zeros_like()
    trainable.begin_update(seed)
    losses = [
        trainable.add_gradient(batch(seed, i), batch(seed, i + 1), 0.1, grads, fresh=i == 0)
        for i in range(2)
    ]
    return bytes(grads.flat) + b"".join(map(bytes, losses))


def logits(model: Any, seed: int) -> bytes:
    return bytes(model.logits(batch(seed)[0].tolist()))


def generate(model: Any, seed: int) -> bytes:
    found = model.generate(batch(seed)[0, :5].tolist(), max_new_tokens=9, seed=seed)
    return bytes(token.id for token in found)


def session(model: Any, seed: int) -> bytes:
    ids = batch(seed)[0].tolist()
    started = model.start(len(ids))
    parts = ids[:3], ids[3:4], ids[4:]
    return b"".join(bytes(started.feed(part)) for part in parts if part)


CALLS: list[Callable[[Any, int], bytes]] = [
    loss, loss_and_grads, two_micro_batches, two_micro_batches_with_dropout,
    logits, generate, session,
]  # fmt: skip


@functools.cache
def loaded(path: Path, backend: str) -> Any:
    """A model, to be shared; `dropping` is its trainable model with dropout, if it has that."""
    model: Any = pyllm2.load(path, backend=backend)
    model.dropping = model.trainable
    if path.name == "llama2":
        found = model.trainable
        model.dropping = TrainableLlama2(found.config, found.params, found.engine, 0.3, seed=5)
    return model


@functools.cache
def alone(path: Path, backend: str, call: Callable[[Any, int], bytes], seed: int) -> str:
    """The result in one thread, as `digest` shows it."""
    return digest(call, seed, loaded(path, backend))


def digest(call: Callable[[Any, int], bytes], seed: int, model: Any) -> str:
    """The call and 8 digits that stand for its result."""
    return f"{call.__name__} {seed}: {hashlib.sha256(call(model, seed)).hexdigest()[:8]}"


Work = list[tuple[Callable[[Any, int], bytes], int]]
WORK = st.lists(st.tuples(st.sampled_from(CALLS), st.integers(0, 7)), min_size=1, max_size=6)


@pytest.mark.usefixtures("_many_switches")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_threads_share_a_model_and_get_the_bits_of_one(
    family: str, backend: str, folder: Path
) -> None:
    """Whatever they call at the same time: losses, gradients, logits, generation, sessions."""
    engine_of(backend, family)
    path = folder / family
    model = loaded(path, backend)

    @few(8, phases=[Phase.generate])  # threads do not fail twice in the same way
    @given(st.lists(WORK, min_size=THREADS, max_size=THREADS))
    def agree(works: list[Work]) -> None:
        expected = [[alone(path, backend, *item) for item in work] for work in works]
        for _ in range(3):
            assert at_once(model, works) == expected

    agree()


def at_once(model: Any, works: list[Work]) -> list[Any]:
    """The results of each thread, or its exception. All start together."""
    results: list[Any] = [None] * len(works)
    start = threading.Barrier(len(works))

    def run(i: int) -> None:
        start.wait()
        try:
            results[i] = [digest(call, seed, model) for call, seed in works[i]]
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


LAYER = """
import pathlib, sys
import numba
from tests.inference import test_threads as t
sys.setswitchinterval(1e-6)
for family in t.FAMILIES:
    path = pathlib.Path(sys.argv[1]) / family
    model = t.loaded(path, "numba")
    works = [[(call, seed) for call in t.CALLS] for seed in range(t.THREADS)]
    expected = [[t.alone(path, "numba", *item) for item in work] for work in works]
    assert t.at_once(model, works) == expected
print(numba.threading_layer())
"""


def test_a_threading_layer_that_is_not_thread_safe_serves_one_thread_at_a_time(
    folder: Path,
) -> None:
    """Numba's "workqueue", all that it has where there is no OpenMP, aborts the process if not."""
    engine_of("numba")
    found = subprocess.run(
        [sys.executable, "-c", LAYER, str(folder)],
        env={**os.environ, "NUMBA_THREADING_LAYER": "workqueue"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert (found.returncode, found.stdout) == (0, "workqueue\n"), found.stderr


# ---- how many threads --------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("threads", [-1, 0, 1025, 100_000, 2**64])
def test_an_impossible_number_of_threads_is_refused(threads: int, backend: str) -> None:
    """OpenMP would die of the stacks of 100,000 threads."""
    engine_of(backend)
    for make in (backends.ops, backends.engine):
        with pytest.raises(BackendError, match=rf"^threads = {threads}: expected 1 to 1024$"):
            make(backend, threads)


@pytest.mark.parametrize("value", ["1025", "100000", "2,100000", "9" * 5000])
def test_the_variable_of_openmp_is_bounded_too(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a list; one line names the variable, and no other backend minds."""
    engine_of("c")
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    with pytest.raises(BackendError, match=r"^backend 'c' cannot be loaded: OMP_NUM_THREADS = '"):
        backends.require("c")
    for other in ("numpy", "c-strict"):
        backends.require(other)


def test_more_threads_than_processors_are_noted_once(caplog: pytest.LogCaptureFixture) -> None:
    """The number is kept; the note says how many processors there are."""
    many = processors() + 1
    backends._note_many_threads.cache_clear()
    with caplog.at_level("INFO", "pyllm2"):
        for threads in (many, many, 1):
            backends.ops.__wrapped__("numpy", threads)
    expected = f"{many} threads, but {many - 1} processors: fewer may be faster"
    assert caplog.messages == [expected]


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


def test_the_threads_of_c_may_change_from_token_to_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they do on a busy machine: the bits are those of one thread."""
    engine_of("c")
    config = Llama2Config(256, 256, 1, 4, 2, 256, 8)  # products large enough for threads
    model = Llama2(config, random_weights(config, True, 1), backends.engine("c"))
    logits = []
    for numbers in ([1] * 6, [2, 1, 2, 2, 1, 2]):
        drawn = Drawn(numbers)
        monkeypatch.setattr(model.ops, "_pace", functools.partial(lambda pace, _: pace, drawn))
        cache = model.new_cache(6)
        logits.append([model.forward(np.array([i]), i, cache) for i in range(6)])
        with pytest.raises(StopIteration):
            _ = drawn.threads  # all have been used
    np.testing.assert_array_equal(*logits)
