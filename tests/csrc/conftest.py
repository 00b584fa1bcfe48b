"""The builds, made once a session, and a folder with a valid model and vocabulary."""

from __future__ import annotations

import ctypes

import pytest

from .program import CSRC, SHIM, STRICT, compile_c
from .tiny import checkpoint_v0, vocabulary


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    return tmp_path_factory.mktemp("csrc_build")


@pytest.fixture(scope="session")
def program(build):
    compile_c(build / "run", *STRICT, str(CSRC / "run.c"))
    return build / "run"


@pytest.fixture(scope="session")
def library(build):
    source = build / "shim.c"
    source.write_text(SHIM)
    flags = [*STRICT, "-fPIC", "-shared", f"-I{CSRC}"]
    compile_c(build / "libshim.so", *flags, str(source))
    lib = ctypes.CDLL(str(build / "libshim.so"))
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
