"""Configuration of all tests: threads, hypothesis profile, fixtures, distribution to workers."""

from __future__ import annotations

import os

# Set before NumPy is imported. Workers run side by side: BLAS threads that spin while they wait for
# work would slow the other workers.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import tests.support.profiles  # noqa: F401  (loads the profile)
from tests.support.golden import shared_folder

# Numba reads the number of threads once: import it before a command in this process lowers it.
with suppress(ImportError):
    import numba  # noqa: F401

# The files that start first. test_warmup compiles all kernels, which every later test then loads
# from the cache; the files after it need none, and occupy the other worker meanwhile. Then those
# that take long, so that no worker ends alone.
FIRST = """
    cli/test_warmup.py
    hostile/test_refusals.py hostile/test_mutation.py hostile/test_llmc.py meta/test_mutate.py
    csrc/test_run_hostile.py csrc/test_train_gpt2_hostile.py csrc/test_train_gpt2_golden.py
    llama2/test_training.py llama2/test_ops.py llama2/test_int8.py gpt2/test_ops.py
    llama2/test_training_numba.py llama2/test_numba.py llama2/test_model.py gpt2/test_numba.py
    gpt2/test_golden.py gpt2/test_engine_numba.py llama2/test_numba_int8.py gpt2/test_model.py
    fast/test_gemm.py llama2/test_tokens_agree.py cli/test_run_golden.py
""".split()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: Any, log: Any) -> Any:
    """Schedule whole files, in the collected order, unless --dist selects another mode.

    A worker keeps the kernels that it has compiled; two workers that share a file would compile
    its kernels twice.
    """
    from xdist.scheduler import LoadFileScheduling

    if config.getoption("dist") != "load":
        return None
    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files of FIRST to the front."""
    rank = {name: i for i, name in enumerate(FIRST)}

    def key(item: pytest.Item) -> int:
        return rank.get("/".join(item.path.parts[-2:]), len(rank))

    items.sort(key=key)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden files; without it tests skip, or fail if PYLLM2_REQUIRE_SHARED."""
    folder = shared_folder()
    if folder is None:
        reason = "no golden files: neither $PYLLM2_SHARED nor ../shared has a folder `golden`"
        if os.environ.get("PYLLM2_REQUIRE_SHARED"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    """The folder golden/llama2."""
    return shared / "golden" / "llama2"


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training in this process draws no loss.png, which takes most of the time of a small run."""
    monkeypatch.setattr("pyllm2.cli.train_run.can_plot", lambda: False)
