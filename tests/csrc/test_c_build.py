"""Compiling csrc into the cache: once, safely, and with a plain reason where it is impossible."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyllm2 import backends
from pyllm2.compiling import c_build
from pyllm2.compiling.c_header import Interface
from pyllm2.errors import BackendError

pytestmark = pytest.mark.skipif(
    c_build.why_not() is not None, reason=f"backend 'c' {c_build.why_not()}"
)

LOAD = "from pyllm2.compiling import c_build; import logging; logging.basicConfig(level=20); "
LIMITS = LOAD + "c_build.compiled_library('limits', 'strict')"
NOTE = "compiling the C library limits"


def python(code: str, cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYLLM2_CACHE": str(cache), **environment}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)


def test_a_second_process_does_not_compile(tmp_path: Path) -> None:
    """The first says so on stderr, the second finds the library."""
    assert NOTE in python(LIMITS, tmp_path).stderr
    assert python(LIMITS, tmp_path).stderr == ""
    assert (tmp_path / "native").stat().st_mode & 0o777 == 0o700


def test_processes_that_start_together_compile_once(tmp_path: Path) -> None:
    """One holds the lock, the others wait and load its result."""
    env = {**os.environ, "PYLLM2_CACHE": str(tmp_path)}
    together = [
        subprocess.Popen([sys.executable, "-c", LIMITS], env=env, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    outputs = [p.communicate()[1] for p in together]
    assert [p.returncode for p in together] == [0] * 4
    assert sum(NOTE in text for text in outputs) == 1


def test_a_damaged_library_is_rebuilt_and_never_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its checksum is compared first."""
    monkeypatch.setattr(c_build, "_cache_folder", lambda: tmp_path)
    load = c_build.compiled_library.__wrapped__
    load("limits", "strict")
    (library,) = tmp_path.glob("*.so")
    for damage in (b"", b"not a library", b"\x7fELF"):
        library.unlink()  # a file that is loaded must not be overwritten
        library.write_bytes(damage)
        caplog.clear()
        with caplog.at_level("INFO"):
            load("limits", "strict")
        assert NOTE in caplog.text


def test_without_a_compiler_there_is_one_plain_line(tmp_path: Path) -> None:
    """Everything else works; the C backend says why not."""
    flags = ["--tokenizer", "t.bin", "--backend", "c"]
    command = [sys.executable, "-m", "pyllm2", "generate", "x.bin", *flags]
    env = {**os.environ, "CC": "no-such-compiler", "PYLLM2_CACHE": str(tmp_path)}
    result = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1
    expected = "backend 'c' needs a C compiler: $CC = no-such-compiler not found"
    assert result.stderr == f"pyllm2: error: {expected}\n"
    code = "from pyllm2 import backends; print(backends.default())"
    fallback = python(code, tmp_path, CC="no-such-compiler").stdout.strip()
    assert fallback not in ("c", "c-strict")


def test_a_compiler_that_fails_is_quoted_in_one_line(tmp_path: Path) -> None:
    """The first line of its complaint, and no library left behind."""
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'something is wrong' >&2\necho more >&2\nexit 1\n")
    compiler.chmod(0o755)
    code = LOAD + (
        "from pyllm2.errors import BackendError\n"
        "try: c_build.compiled_library('llama2', 'fast')\n"
        "except BackendError as error: print(error)"
    )
    result = python(code, tmp_path / "cache", CC=str(compiler))
    assert result.stdout == f"backend 'c': {compiler} failed: something is wrong\n"
    assert list((tmp_path / "cache" / "native").glob("*.so")) == []


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    """The library is compiled into a temporary folder, with a note."""
    blocked = tmp_path / "file"
    blocked.write_text("")  # a file where the folder should be: works for root, too
    result = python(LIMITS, blocked)
    assert result.returncode == 0
    assert "cannot be written" in result.stderr


def test_loading_the_fast_builds_leaves_subnormals_alone() -> None:
    """No start-up object of -ffast-math has switched the process to flush-to-zero."""
    code = LOAD + (
        "import numpy as np\n"
        "for name in c_build.SOURCES: c_build.compiled_library(name, 'fast')\n"
        "tiny = np.float32(2.0**-126); print(float(tiny / np.float32(8)) == 2.0**-129)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "True", result.stderr


def test_a_library_of_other_headers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer to NAME_abi() is the hash of the headers that it was compiled with."""
    read = c_build.interface("limits")
    monkeypatch.setattr(c_build, "interface", lambda name: Interface(abi=read.abi + 1))
    monkeypatch.setattr(c_build, "_fingerprint", lambda source, flags: "kept")
    load = c_build.compiled_library.__wrapped__
    load("limits", "strict")
    monkeypatch.setattr(c_build, "interface", lambda name: read)
    with pytest.raises(BackendError, match="not built from the headers"):
        load("limits", "strict")


def test_a_change_of_source_or_flags_changes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old library is never taken for a new one."""
    source = tmp_path / "llama2.c"
    source.write_text("int a;")
    source.with_suffix(".h").write_text("")
    names = {c_build._fingerprint(source, ["-O2"]), c_build._fingerprint(source, ["-O3"])}
    source.write_text("int b;")
    names.add(c_build._fingerprint(source, ["-O2"]))
    monkeypatch.setattr(c_build, "_cpu", lambda: "another processor")
    names.add(c_build._fingerprint(source, ["-O2"]))
    assert len(names) == 4


def test_a_change_of_anything_included_changes_the_name(tmp_path: Path) -> None:
    """Directly or through another include; a cycle is allowed."""
    source = tmp_path / "gpt2.c"
    source.write_text('#include "gpt2.h"\n#  include "ops.c"\n#include <math.h>\n')
    names = set()
    for header, ops in (("1", "2"), ("0", "2"), ("0", "3"), ("0", "4")):
        (tmp_path / "gpt2.h").write_text(header)
        (tmp_path / "ops.c").write_text('#include "deep.h"\n#include "gpt2.c"\n')
        (tmp_path / "deep.h").write_text(ops)
        names.add(c_build._fingerprint(source, []))
    assert len(names) == 4


def test_every_backend_name_is_known_and_an_unknown_one_is_not() -> None:
    """The error lists the choices."""
    for name in backends.NAMES:
        assert backends.why_not(name) is None or isinstance(backends.why_not(name), str)
    with pytest.raises(backends.BackendError, match=f"choose from {', '.join(backends.NAMES)}"):
        backends.ops("fortran")
