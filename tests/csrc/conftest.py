"""The programs and libraries of csrc, and folders with valid files for them."""

from __future__ import annotations

import os

import pytest

from pyllm2.compiling import c_build, c_library
from pyllm2.errors import BackendError
from tests.csrc.program import CSRC, SHIM, STRICT, STRICT_O3, TRAINER_SHIM, Build
from tests.csrc.tiny import checkpoint_v0, vocabulary
from tests.support.gpt2_files import model_file, shard_file


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """Compiles into a folder that the worker processes of pytest-xdist share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "csrc_build"
    folder.mkdir(exist_ok=True)
    return Build(folder)


@pytest.fixture(scope="session")
def program(build):
    """The strict build of run.c."""
    return build(CSRC / "run.c", *STRICT)


@pytest.fixture(scope="session")
def library(build):
    """The functions of run.c that SHIM declares."""
    return build.library("shim", SHIM)


@pytest.fixture(scope="session")
def llama2():
    """The strict build of csrc/llama2."""
    if (reason := c_build.why_not()) is not None:
        pytest.skip(reason)
    return c_library.library("llama2", "strict")


@pytest.fixture
def files(tmp_path):
    """A folder with a valid model m.bin and vocabulary t.bin."""
    (tmp_path / "m.bin").write_bytes(checkpoint_v0())
    (tmp_path / "t.bin").write_bytes(vocabulary())
    return tmp_path


@pytest.fixture(scope="session")
def trainer(build):
    """The strict build of train_gpt2.c."""
    return build(CSRC / "train_gpt2.c", *STRICT_O3)


@pytest.fixture(scope="session")
def trainer_library(build):
    """The functions of train_gpt2.c that TRAINER_SHIM declares."""
    return build.library("trainer_shim", TRAINER_SHIM)


@pytest.fixture
def corpus(tmp_path):
    """A folder with a valid model m.bin, and shards train.bin and val.bin for it."""
    (tmp_path / "m.bin").write_bytes(model_file())
    (tmp_path / "train.bin").write_bytes(shard_file(200, seed=1))
    (tmp_path / "val.bin").write_bytes(shard_file(60, seed=2))
    return tmp_path


@pytest.fixture
def threaded(request, monkeypatch):
    """The strict build of the library in the parameter, with threads."""
    strict_flags = c_build._FLAGS["strict"][0]
    monkeypatch.setitem(c_build._FLAGS, "strict-threads", [[*strict_flags, "-fopenmp"]])
    try:
        c_build.compiled_library(request.param, "strict-threads")
    except BackendError as error:
        pytest.skip(f"no OpenMP: {error}")
    return "strict-threads"
