"""Numba's cache on disk: damaged entries are compiled anew, entries of others are never run."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numba", reason="needs numba")

import numba

from pyllm2.compiling import kernel_cache, numba_build, private

pytestmark = pytest.mark.skipif(
    os.environ.get("NUMBA_DISABLE_JIT", "0") != "0", reason="compiles nothing"
)
STRANGER = 12345
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def _plus_one(x: int) -> int:
    return x + 1


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that does not exist yet; no other place can be used, and nothing has been noted."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    first = [kernel_cache._Places._locator_classes[0]]
    monkeypatch.setattr(kernel_cache._Places, "_locator_classes", first)
    monkeypatch.setattr(kernel_cache, "_noted", set())
    return tmp_path / "cache"


@pytest.fixture
def noted(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What has been logged, without the line that kernels are compiled."""
    caplog.set_level(logging.INFO, "pyllm2")
    return lambda: [m for m in caplog.messages if not m.startswith("compiling the Numba kernels")]


def from_cache() -> bool:
    """Run the kernel as a new process would: whether it was found in the cache."""
    kernel = numba_build.Kernel(_plus_one)
    assert kernel(41) == 42
    return bool(kernel._compiled.stats.cache_hits)


def entry(cache: Path) -> Path:
    """The kernel's only file, made if necessary."""
    from_cache()
    (file,) = (path for path in cache.rglob("*") if not path.is_dir() or path.suffix)
    return file


def test_an_entry_is_found_by_the_next_process(cache: Path) -> None:
    """And only the user can write it."""
    assert [from_cache(), from_cache()] == [False, True]
    assert entry(cache).stat().st_mode & 0o777 == 0o644 & ~_umask()


def _umask() -> int:
    found = os.umask(0o077)
    os.umask(found)
    return found


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o027])
def test_a_lax_umask_makes_no_folder_that_others_can_write(mask: int, cache: Path) -> None:
    """Folders made with it would be refused the next time."""
    usual = os.umask(mask)
    try:
        assert [from_cache(), from_cache()] == [False, True]
    finally:
        os.umask(usual)
    assert not any(path.stat().st_mode & private.OTHERS_WRITE for path in cache.rglob("*"))


# ---- damage -----------------------------------------------------------------------------------


def cut(share: float) -> Callable[[Path], None]:
    def cut_short(file: Path) -> None:
        os.truncate(file, int(share * file.stat().st_size))

    return cut_short


def garble(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def zeros(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def another_object(file: Path) -> None:
    """A whole pickle of something else, as another version might have written it."""
    plant(file, pickle.dumps(["no", "key", "here"]))


def a_folder(file: Path) -> None:
    file.unlink()
    (file / "below").mkdir(parents=True)


def a_link(file: Path) -> None:
    shutil.move(file, elsewhere := file.with_suffix(".moved"))
    file.symlink_to(elsewhere)


def a_dangling_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


def a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def plant(file: Path, pickled: bytes) -> None:
    file.write_bytes(hashlib.sha256(pickled).digest() + pickled)


DAMAGES = [
    cut(0), cut(0.001), cut(0.5), cut(0.999), garble, zeros, another_object, a_folder, a_link,
    a_dangling_link, a_pipe,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_compiled_anew(
    damage: Callable[[Path], None], cache: Path, noted: Callable[[], list[str]]
) -> None:
    """The kernel runs, nothing is said, and the next process finds a whole entry again."""
    damage(entry(cache))
    assert [from_cache(), from_cache()] == [False, True]
    assert noted() == []


@pytest.mark.parametrize("call", ["write", "replace", "open", "mkdir"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_full_or_unwritable_place_is_noted_once(
    call: str,
    number: int,
    cache: Path,
    noted: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Kernels are compiled and run all the same; nothing half written stays."""

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr(kernel_cache.os, "fdopen", lambda fd, _: _FullFile(fd, fail))
        else:
            patch.setattr(Path if call == "mkdir" else kernel_cache.os, call, fail)
        assert [from_cache(), from_cache()] == [False, False]
    (note,) = noted()
    assert note.startswith("compiled kernels are not kept")
    assert not [path for path in cache.rglob("*") if path.is_file()]
    assert [from_cache(), from_cache()] == [False, True]


class _FullFile:
    """A file on a disk that is full."""

    def __init__(self, descriptor: int, write: Callable[..., Any]) -> None:
        self._descriptor, self.write = descriptor, write

    def __enter__(self) -> _FullFile:
        return self

    def __exit__(self, *_: Any) -> None:
        os.close(self._descriptor)


# ---- strangers --------------------------------------------------------------------------------


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._file),)


def for_all(path: Path) -> None:
    path.chmod(0o666 if path.is_file() else 0o777)


def for_the_group(path: Path) -> None:
    path.chmod(0o664 if path.is_file() else 0o775)


def of_a_stranger(path: Path) -> None:
    os.chown(path, STRANGER, STRANGER)


def a_link_to_it(path: Path) -> None:
    shutil.move(path, moved := path.with_name("moved"))
    path.symlink_to(moved)


CHANGES = [for_all, for_the_group, pytest.param(of_a_stranger, marks=as_root), a_link_to_it]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("level", ["file", "folder", "cache"])
def test_what_others_may_have_planted_is_never_unpickled(
    level: str,
    change: Callable[[Path], None],
    cache: Path,
    noted: Callable[[], list[str]],
    tmp_path: Path,
) -> None:
    """A bad file is replaced; in a bad folder nothing is kept, and one note says so."""
    if level == "cache" and change is a_link_to_it:
        pytest.skip("a user may name a link to a folder of theirs")
    file = entry(cache)
    plant(file, pickle.dumps((Trap(tmp_path / "caught"), None)))
    change({"file": file, "folder": file.parent, "cache": cache}[level])
    assert [from_cache(), from_cache()] == [False, level == "file"]
    assert not (tmp_path / "caught").exists()
    assert len(noted()) == (0 if level == "file" else 1)


def test_the_trap_works(cache: Path, tmp_path: Path) -> None:
    """Planted in a file of the user's own, it is unpickled: the tests above can fail."""
    plant(entry(cache), pickle.dumps((Trap(tmp_path / "caught"), None)))
    from_cache()
    assert (tmp_path / "caught").exists()


@pytest.mark.parametrize(
    ("sources", "folder", "fine"),
    [(0o775, 0o775, True), (0o775, 0o755, True), (0o755, 0o775, False), (0o775, 0o777, False)],
)
def test_beside_the_sources_whoever_can_write_those_may_write_the_cache(
    sources: int, folder: int, fine: bool, tmp_path: Path
) -> None:
    """A checkout made with umask 002 has a cache, although its group can write it."""
    (tmp_path / "sources" / "__pycache__").mkdir(parents=True)
    (tmp_path / "sources" / "__pycache__").chmod(folder)
    (tmp_path / "sources").chmod(sources)
    found = private.no_wider_than(tmp_path / "sources" / "__pycache__", tmp_path / "sources")
    assert found is fine
