"""The builds, made once a session, and a folder with a valid model and vocabulary."""

from __future__ import annotations

import ctypes

import pytest

from pyllm2 import native
from pyllm2.errors import BackendError

from .gpt2_tiny import model_file, shard_file
from .program import CSRC, SHIM, STRICT, TRAINER_SHIM, compile_c
from .tiny import checkpoint_v0, vocabulary


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    return tmp_path_factory.mktemp("csrc_build")


@pytest.fixture(scope="session")
def program(build):
    compile_c(build / "run", *STRICT, str(CSRC / "run.c"))
    return build / "run"


def shared_library(folder, name, text):
    """A source text that includes files of csrc, built and loaded."""
    source = folder / f"{name}.c"
    source.write_text(text)
    flags = [*STRICT, "-fPIC", "-shared", f"-I{CSRC}"]
    compile_c(folder / f"lib{name}.so", *flags, str(source))
    return ctypes.CDLL(str(folder / f"lib{name}.so"))


@pytest.fixture(scope="session")
def library(build):
    lib = shared_library(build, "shim", SHIM)
    lib.llama2_state_floats.restype = ctypes.c_int64
    lib.shim_encode.restype = ctypes.c_int64
    lib.shim_coin.restype = ctypes.c_float
    return lib


@pytest.fixture
def files(tmp_path):
    """A folder with a valid model m.bin and vocabulary t.bin."""
    (tmp_path / "m.bin").write_bytes(checkpoint_v0())
    (tmp_path / "t.bin").write_bytes(vocabulary())
    return tmp_path


@pytest.fixture(scope="session")
def trainer(build):
    compile_c(build / "train_gpt2", *STRICT, str(CSRC / "train_gpt2.c"))
    return build / "train_gpt2"


@pytest.fixture(scope="session")
def trainer_library(build):
    lib = shared_library(build, "trainer_shim", TRAINER_SHIM)
    lib.shim_open.restype = ctypes.c_int64
    lib.mersenne_u32.restype = ctypes.c_uint32
    lib.mersenne_u64.restype = ctypes.c_uint64
    lib.mersenne_f32.restype = ctypes.c_float
    lib.mersenne_f64.restype = ctypes.c_double
    return lib


@pytest.fixture
def corpus(tmp_path):
    """A folder with a valid model m.bin, and shards train.bin and val.bin for it."""
    (tmp_path / "m.bin").write_bytes(model_file())
    (tmp_path / "train.bin").write_bytes(shard_file(200, seed=1))
    (tmp_path / "val.bin").write_bytes(shard_file(60, seed=2))
    return tmp_path


@pytest.fixture
def threaded(request, monkeypatch):
    """Of the library that is the parameter: a build that is strict but for its threads, three."""
    strict_flags = native._FLAGS["strict"][0]
    monkeypatch.setitem(native._FLAGS, "strict-threads", [[*strict_flags, "-fopenmp"]])
    try:
        loaded = native.compiled_library(request.param, "strict-threads")
    except BackendError as error:
        pytest.skip(f"no OpenMP: {error}")
    usual = loaded.omp_get_max_threads()
    yield "strict-threads"
    loaded.omp_set_num_threads(usual)
