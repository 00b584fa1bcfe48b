"""Only a cache of the user's own is used, and whatever happens in it, the C library loads."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyllm2.compiling import c_build, private
from pyllm2.errors import BackendError

pytestmark = pytest.mark.skipif(
    c_build.why_not() is not None, reason=f"backend 'c' {c_build.why_not()}"
)
CACHED = (c_build._cache_folder, c_build._temporary_folder, c_build._compiler_version)
STRANGER = 12345
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache; what the process knows of its usual one is forgotten."""
    monkeypatch.setenv("PYLLM2_CACHE", str(tmp_path / "cache"))
    for function in CACHED:
        function.cache_clear()
    yield tmp_path / "cache" / "native"
    for function in CACHED:
        function.cache_clear()


def load() -> Any:
    return c_build.compiled_library.__wrapped__("limits", "strict")


def is_library(loaded: Any) -> bool:
    return hasattr(loaded, "limits_abi")


def entry(cache: Path) -> Path:
    """The library of a cache that has been filled, moved away from where it was loaded."""
    load()
    (library,) = cache.glob("*.so")
    bytes_ = library.read_bytes()
    library.unlink()  # a loaded file must not be overwritten
    library.write_bytes(bytes_)
    library.chmod(0o700)
    return library


# ---- whose it is -------------------------------------------------------------------------------


def below_a_folder_for_all(cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.parent.chmod(0o777)


def for_all(cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)


def for_the_group(cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o770)


def a_link(cache: Path) -> None:
    cache.parent.mkdir()
    (cache.parent / "elsewhere").mkdir(mode=0o700)
    cache.symlink_to(cache.parent / "elsewhere")


def a_file(cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("")


def of_a_stranger(cache: Path) -> None:
    cache.mkdir(parents=True, mode=0o700)
    os.chown(cache, STRANGER, STRANGER)


@pytest.mark.parametrize(
    "make",
    [
        *(below_a_folder_for_all, for_all, for_the_group, a_link, a_file),
        pytest.param(of_a_stranger, marks=as_root),
    ],
)
def test_a_folder_that_others_can_fill_is_not_used(
    make: Callable[[Path], None], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One note, a temporary folder, and nothing written where others could replace it."""
    make(cache)
    with caplog.at_level("INFO", "pyllm2"):
        assert is_library(load())
        assert is_library(load())
    assert sum(str(cache) in message for message in caplog.messages) == 1
    assert "compiled in every process" in caplog.text
    assert c_build._cache_folder().stat().st_mode & 0o777 == 0o700
    assert not cache.is_dir() or not list(cache.iterdir())


def test_a_sticky_folder_above_is_good_enough(cache: Path) -> None:
    """As /tmp: others can write it, but cannot replace a folder of ours."""
    cache.mkdir(parents=True, mode=0o700)
    cache.parent.chmod(0o1777)
    assert private.why_not_private(cache) is None


def writable_by_all(library: Path) -> None:
    library.chmod(0o777)


def linked(library: Path) -> None:
    moved = library.with_name("moved")
    library.rename(moved)
    library.symlink_to(moved)


def digest_linked(library: Path) -> None:
    linked(library.with_suffix(".sha256"))


def given_away(library: Path) -> None:
    os.chown(library, STRANGER, STRANGER)


def folder_instead(library: Path) -> None:
    library.unlink()
    (library / "below").mkdir(parents=True)


def digest_is_a_folder(library: Path) -> None:
    folder_instead(library.with_suffix(".sha256"))


def digest_is_no_text(library: Path) -> None:
    library.with_suffix(".sha256").write_bytes(b"\xff\xfe\x00")


def a_fifo(library: Path) -> None:
    library.unlink()
    os.mkfifo(library)


def lock_is_a_folder(library: Path) -> None:
    library.unlink()
    lock = Path(f"{library}.lock")
    lock.unlink()
    lock.mkdir()


@pytest.mark.parametrize(
    "spoil",
    [
        *(writable_by_all, linked, digest_linked, folder_instead, digest_is_a_folder),
        *(digest_is_no_text, a_fifo, lock_is_a_folder),
        pytest.param(given_away, marks=as_root),
    ],
)
def test_an_entry_that_is_not_the_users_own_file_is_compiled_anew(
    spoil: Callable[[Path], None], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is neither loaded nor an error, and a good one stands there afterwards."""
    library = entry(cache)
    spoil(library)
    with caplog.at_level("INFO", "pyllm2"):
        assert is_library(load())
    assert "compiling the C library limits" in caplog.text
    assert not library.is_symlink()
    assert c_build._intact(library)


# ---- compilers ---------------------------------------------------------------------------------


def script(path: Path, *lines: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


def compiler() -> str:
    return str(shutil.which(c_build._compiler()[0]))


@pytest.mark.parametrize("words", ["{cc} -m64", "{wrapper} {cc}", "'{spaced}' {cc}", "{spaced}"])
def test_the_compiler_may_be_several_words(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrapper, options, a path with spaces in it."""
    cc = compiler()
    wrapper = script(tmp_path / "wrapper", 'exec "$@"')
    start = f'case "$1" in {cc}) exec "$@";; *) exec {cc} "$@";; esac'
    spaced = script(tmp_path / "a folder" / "cc", start)
    monkeypatch.setenv("CC", words.format(cc=cc, wrapper=wrapper, spaced=spaced))
    if "-m64" in words and os.uname().machine != "x86_64":
        pytest.skip("-m64 is an option for x86-64")
    assert c_build.why_not() is None
    assert is_library(load())


@pytest.mark.parametrize("named", ["no-such-compiler gcc", "'unclosed", " "])
def test_a_compiler_that_is_not_there_is_one_line(
    named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line quotes $CC."""
    monkeypatch.setenv("CC", named)
    assert c_build.why_not() == f"needs a C compiler: $CC = {named} not found"


def test_a_compiler_may_print_any_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its version, and its complaint, need not be UTF-8."""
    start = f'if [ "$1" = --version ]; then printf "\\377"; else exec {compiler()} "$@"; fi'
    monkeypatch.setenv("CC", str(script(tmp_path / "cc", start)))
    assert is_library(load())
    c_build._compiler_version.cache_clear()
    monkeypatch.setenv("CC", str(script(tmp_path / "bad", 'printf "\\377 bad" >&2', "exit 1")))
    with pytest.raises(BackendError, match=r"failed: \ufffd bad$"):
        load()


def test_a_compiler_for_another_processor_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it makes cannot be loaded from anywhere; the line names the way out."""
    made = 'while [ "$1" != -o ]; do [ $# = 0 ] && exit; shift; done; echo junk > "$2"'
    monkeypatch.setenv("CC", str(script(tmp_path / "cc", made)))
    with pytest.raises(BackendError, match="set CC to a compiler for this machine, PYLLM2_CACHE"):
        load()


# ---- file systems ------------------------------------------------------------------------------


def test_a_cache_from_which_nothing_can_be_run(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Mounted noexec, for instance: a temporary folder is used, with a note."""
    usual = ctypes.CDLL

    def noexec(path: str) -> ctypes.CDLL:
        if path.startswith(str(cache)):
            raise OSError(f"{path}: failed to map segment from shared object")
        return usual(path)

    monkeypatch.setattr(ctypes, "CDLL", noexec)
    with caplog.at_level("INFO", "pyllm2"):
        assert is_library(load())
    assert "failed to map segment from shared object: a temporary folder is used" in caplog.text


def test_a_cache_that_is_full(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A library that cannot be renamed into place is compiled in a temporary folder."""
    usual = os.replace

    def full(old: Any, new: Any) -> None:
        if str(new).startswith(str(cache)):
            raise OSError(errno.ENOSPC, "No space left on device", str(new))
        usual(old, new)

    monkeypatch.setattr(os, "replace", full)
    with caplog.at_level("INFO", "pyllm2"):
        assert is_library(load())
    assert "No space left on device" in caplog.text


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is renamed into place: the lock only saves work."""
    import fcntl

    def no_locks(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert is_library(load())


def test_a_lock_that_is_never_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while the library is compiled without it."""
    import fcntl

    def held(*_: Any) -> None:
        raise BlockingIOError

    monkeypatch.setattr(fcntl, "flock", held)
    monkeypatch.setattr(c_build, "_PATIENCE", 0.2)
    assert is_library(load())
