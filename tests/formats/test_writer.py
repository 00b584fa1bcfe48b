"""Atomic writing: old or new, symbolic links stay, nothing of a killed process is left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

from pyllm2.errors import FileError
from pyllm2.formats.writer import atomic_write, require_writable, temporary_beside


def write(path: Path | str, data: bytes) -> None:
    with atomic_write(path) as file:
        file.write(data)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, OSError])
def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, error: type[BaseException]
) -> None:
    """An exception while writing leaves no temporary file."""
    path = tmp_path / "m.bin"
    path.write_bytes(b"old")

    def write_half() -> None:
        with atomic_write(path) as file:
            file.write(b"half of the n")
            raise error

    with pytest.raises(FileError if error is OSError else error):
        write_half()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["m.bin"]


@pytest.mark.parametrize("existing", [True, False])
def test_a_symbolic_link_stays_and_its_target_is_replaced(tmp_path: Path, existing: bool) -> None:
    """Through a chain of links into another folder, relative and absolute."""
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
    target = tmp_path / "c" / "real"
    if existing:
        target.write_bytes(b"old")
        target.chmod(0o640)
    (tmp_path / "b" / "link").symlink_to(target)
    (tmp_path / "a" / "link").symlink_to("../b/link")
    write(tmp_path / "a" / "link", b"new")
    assert target.read_bytes() == b"new"
    assert (tmp_path / "a" / "link").is_symlink()
    assert (tmp_path / "b" / "link").is_symlink()
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["real"]
    if existing:
        assert target.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name", ["pipe", "/proc/self/fd"])
def test_a_pipe_is_written_to(tmp_path: Path, name: str) -> None:
    """A FIFO gives its reader the bytes and stays a FIFO; so does a pipe named in /proc."""
    path = tmp_path / name
    if name == "pipe":
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    elif path.exists():
        reader, writer = os.pipe()
        path = path / str(writer)
    else:
        pytest.skip("no /proc")
    require_writable(path)
    write(path, b"bytes")
    assert path.is_fifo()
    assert os.read(reader, 100) == b"bytes"


def test_a_device_is_written_to(tmp_path: Path) -> None:
    """It stays a device: a node with the numbers of /dev/null, made for this test."""
    path = tmp_path / "null"
    try:
        os.mknod(path, 0o20666, os.stat("/dev/null").st_rdev)
        path.open("wb").close()
    except OSError:
        pytest.skip("only root makes devices")
    require_writable(path)
    write(path, b"bytes")
    assert path.is_char_device()


def test_a_file_without_a_name_is_written_to(tmp_path: Path) -> None:
    """/proc/self/fd/N of a file that was deleted names no file that could be replaced."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc")
    path = tmp_path / "deleted"
    with path.open("w+b") as file:
        path.unlink()
        write(f"/proc/self/fd/{file.fileno()}", b"bytes")
        assert file.read() == b"bytes"
    assert list(tmp_path.iterdir()) == []


def unusable(folder: Path) -> dict[str, tuple[str, str]]:
    """(path, reason) of paths that cannot be written."""
    (folder / "loop").symlink_to("loop")
    listener = socket.socket(socket.AF_UNIX)
    before = os.getcwd()
    os.chdir(folder)  # the name of a socket has at most 107 bytes
    listener.bind("socket")
    os.chdir(before)
    listener.close()
    (folder / "file").write_bytes(b"")
    return {
        "folder": (str(folder), "is a folder, expected a file to write"),
        "socket": (str(folder / "socket"), "is a socket, expected a file to write"),
        "loop": (str(folder / "loop"), "too many levels of symbolic links"),
        "nowhere": (str(folder / "none" / "x"), "no such file or directory"),
        "slash": (str(folder / "x") + "/", "no such file or directory"),
        "below a file": (str(folder / "file" / "x"), "not a directory"),
        "empty": ("", "no such file or directory"),
        "zero": ("a\0b", "not a path: it contains a zero byte"),
        "long": (str(folder / ("x" * 300)), "file name too long"),
        "full": ("/dev/full", "no space left on device"),
    }


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """With the system's reason; all but a full device before the work."""
    for name, (path, reason) in unusable(tmp_path).items():
        before = sorted(os.listdir(tmp_path))
        with pytest.raises(FileError) as found:
            write(path, b"x")
        assert found.value.reason == reason, name
        if name != "full":
            with pytest.raises(FileError) as found:
                require_writable(path)
            assert found.value.reason == reason, name
        assert sorted(os.listdir(tmp_path)) == before, name


HALF = """
import sys
from pyllm2.formats.writer import atomic_write
with atomic_write(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    print("ready", flush=True)
    sys.stdin.read()
"""


def half_written(path: Path) -> subprocess.Popen[bytes]:
    """A process that has written half a file."""
    command = [sys.executable, "-c", HALF, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def test_a_killed_writer_is_cleaned_up_by_the_next_of_the_same_file(tmp_path: Path) -> None:
    """Its temporary file goes; those of other files, and of a writer that lives, stay."""
    killed, other, alive = (
        half_written(tmp_path / name) for name in ("m.bin", "other.bin", "m.bin")
    )
    for process in (killed, other):
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert len(os.listdir(tmp_path)) == 3
    write(tmp_path / "m.bin", b"new")
    assert len(os.listdir(tmp_path)) == 3  # m.bin, that of other.bin, that of the living
    alive.communicate()
    assert (tmp_path / "m.bin").read_bytes() == b"half"
    write(tmp_path / "other.bin", b"new")
    assert sorted(os.listdir(tmp_path)) == ["m.bin", "other.bin"]


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Threads that write the same file each succeed."""
    failed: list[BaseException] = []

    def many(data: bytes) -> None:
        try:
            for _ in range(30):
                write(tmp_path / "m.bin", data)
        except BaseException as error:
            failed.append(error)

    threads = [Thread(target=many, args=(bytes([i]) * 1000,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert os.listdir(tmp_path) == ["m.bin"]
    assert len(set((tmp_path / "m.bin").read_bytes())) == 1


def test_a_temporary_folder_goes_with_its_files(tmp_path: Path) -> None:
    """Whatever is in it."""
    with temporary_beside(str(tmp_path / "x"), folder=True) as (path, _):
        (Path(path) / "file").write_bytes(b"x")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_leaves_a_file_to_its_owner(tmp_path: Path) -> None:
    """Owner, group and permissions are those of the file that is replaced."""
    path = tmp_path / "m.bin"
    path.write_bytes(b"old")
    path.chmod(0o640)
    os.chown(path, 12345, 23456)
    write(path, b"new")
    found = path.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (12345, 23456, 0o640)
    assert path.read_bytes() == b"new"


def test_the_file_then_its_name_reach_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All bytes are fsynced before the rename, the folder after it."""
    path, done, fsync, replace = tmp_path / "m.bin", list[str](), os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        kind = "folder" if os.path.samestat(status, tmp_path.stat()) else f"{status.st_size} bytes"
        done.append(f"fsync {kind}")
        fsync(descriptor)

    def recorded_replace(old: str, new: str) -> None:
        done.append("replace")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    write(path, b"new")
    assert done == ["fsync 3 bytes", "replace", "fsync folder"]
