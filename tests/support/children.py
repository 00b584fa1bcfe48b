"""Use loaded models in child processes: `python -m tests.support.children WAYS BACKEND...`.

The parent uses each model before the children are made. Every child answers with what the models
give there. A line of JSON for each way to make children says what differs from the parent.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

import pyllm2
from pyllm2 import backends
from pyllm2.gpt2.config import GPT2Config
from pyllm2.gpt2.model import GPT2
from pyllm2.inference.language_model import LanguageModel
from pyllm2.parameters import Parameters

SECONDS = 100  # for a child, which may have to compile; one that hangs is ended by SIGALRM
CONFIG = GPT2Config(64, 256, 2, 4, 64, 256)
FAMILIES = ("llama2", "gpt2")
X = np.arange(128).reshape(2, 64)
Answer = tuple[list[int], float]  # ids that were generated, mean loss
Key = tuple[str, str]  # backend, family


@functools.cache
def model(backend: str, family: str) -> LanguageModel:
    """The bundled Llama-2, or a random GPT-2; both large enough for several threads."""
    if family == "llama2":
        return pyllm2.load(None, backend=backend)
    params = Parameters(CONFIG.shapes())
    params.flat[...] = np.random.default_rng(1).normal(0, 0.2, params.flat.size)
    engine = backends.engine(backend, family="gpt2")
    return LanguageModel(GPT2(CONFIG, params, engine), None, backend)


def answer(key: Key) -> Answer:
    """What a model says, and its loss."""
    found = model(*key)
    ids = [token.id for token in found.generate([1, 5, 7], max_new_tokens=8, temperature=0)]
    return ids, found.loss_and_grads(X, X)[0]


# ---- the ways to make a child: each maps `answer` over keys in one or more children -------------


def fork(keys: list[Key], work: Callable[[], Any] | None = None) -> list[Answer]:
    """One child of os.fork for all keys; `work` instead of answering them."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        found = work() if work else [answer(key) for key in keys]
        with os.fdopen(writer, "wb") as stream:
            pickle.dump(found, stream)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        data = stream.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != 0:
        raise RuntimeError(f"exit code {code}")
    answers: list[Answer] = pickle.loads(data)
    return answers


def grandchild(keys: list[Key]) -> list[Answer]:
    """A child of a child."""
    return fork(keys, lambda: fork(keys))


def fork_from_thread(keys: list[Key]) -> list[Answer]:
    """The child has one thread, which is not the main thread of the parent."""
    return in_thread(lambda: fork(keys))


def thread_in_fork(keys: list[Key]) -> list[Answer]:
    """The child starts a thread of its own."""
    return fork(keys, lambda: in_thread(lambda: [answer(key) for key in keys]))


def fork_while_busy(keys: list[Key]) -> list[Answer]:
    """A thread of the parent is using the model, and may hold its locks."""
    return [_fork_while_busy(key) for key in keys]


def _fork_while_busy(key: Key) -> Answer:
    stop = threading.Event()

    def use() -> None:
        while not stop.is_set():
            model(*key).loss_and_grads(X, X)

    busy = threading.Thread(target=use)
    busy.start()
    try:
        return [fork([key])[0] for _ in range(3)][-1]
    finally:
        stop.set()
        busy.join()


def in_thread(work: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def pool(keys: list[Key], method: str) -> list[Answer]:
    """A pool of two processes; those of fork inherit the models, the others load them."""
    with multiprocessing.get_context(method).Pool(2) as workers:
        return workers.map_async(answer, keys, chunksize=1).get(SECONDS)


WAYS: dict[str, Callable[[list[Key]], list[Answer]]] = {
    "fork": fork,
    "grandchild": grandchild,
    "fork_from_thread": fork_from_thread,
    "thread_in_fork": thread_in_fork,
    "fork_while_busy": fork_while_busy,
    "pool_fork": functools.partial(pool, method="fork"),
    "pool_forkserver": functools.partial(pool, method="forkserver"),
    "pool_spawn": functools.partial(pool, method="spawn"),
}


def differences(way: str, expected: dict[Key, Answer]) -> list[str]:
    """What children say otherwise than their parent, one line for each."""
    try:
        found = WAYS[way](list(expected))
    except (RuntimeError, multiprocessing.TimeoutError) as error:
        return [repr(error)]
    return [
        f"{'/'.join(key)}: {there}, the parent: {here}"
        for (key, here), there in zip(expected.items(), found, strict=True)
        # a forked child may add in another order than its parent's threads do
        if there[0] != here[0] or abs(there[1] - here[1]) > 1e-4
    ]


if __name__ == "__main__":
    _, ways, *names = sys.argv
    parent = {(n, family): answer((n, family)) for n in names for family in FAMILIES}
    for way in ways.split(","):
        print(json.dumps([way, differences(way, parent)]), flush=True)
