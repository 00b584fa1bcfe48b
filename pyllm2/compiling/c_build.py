"""Compile csrc into the user's cache folder, once, and load it.

A library is named by a hash of all that determines it: sources, flags, compiler version, CPU. A
lock lets one process compile while others wait. The result is renamed into place, with its checksum
beside it, which is compared before loading: a truncated or foreign file is rebuilt, never loaded.
A folder that others can write, or that cannot be used, is replaced by a temporary one.

There are two builds. `strict` is the reference: no reordering, no contraction, one thread. `fast`
is for users. Neither is linked with -ffast-math or -Ofast: GCC then adds a start-up object that
switches the whole process to flush-to-zero. The single flags below do not.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyllm2.compiling import private
from pyllm2.compiling.c_header import Interface, read_interface, with_includes
from pyllm2.errors import BackendError

# Library -> the file of csrc that includes all its code. Its header, if it has one, declares the
# functions that Python calls.
SOURCES = {
    "llama2": "llama2/training.c",
    "gpt2": "gpt2/training.c",
    "adamw": "common/adamw.c",
    "limits": "limits.c",
}
BUILDS = ("fast", "strict")

_BASE = "-std=c99 -shared -fPIC -D_POSIX_C_SOURCE=200809L".split()
_VECTORS = "-O3 -march=native -ffp-contract=fast -fassociative-math -fno-signed-zeros"
_FLAGS = {
    "strict": ["-O2 -ffp-contract=off".split()],
    "fast": [
        f"{_VECTORS} -fno-trapping-math -fno-math-errno -fopenmp -DVECTOR_EXP".split(),
        "-O3 -ffp-contract=fast".split(),  # for compilers without OpenMP or -march=native
    ],
}
_COMPILERS = ("cc", "gcc", "clang")
_COMPILE_TIMEOUT = 300  # seconds
_PATIENCE = 60  # seconds to wait for another process that compiles the same

log = logging.getLogger("pyllm2")


def why_not() -> str | None:
    """Why C cannot be compiled here, in one line; None if it can."""
    if _sources_folder() is None:
        return "needs the C sources, which this installation lacks"
    if not _compiler():
        named = os.environ.get("CC")
        return f"needs a C compiler: {f'$CC = {named}' if named else 'cc, gcc or clang'} not found"
    return None


def interface(name: str) -> Interface:
    """The structs and functions of a library. Raises BackendError if it cannot be compiled."""
    source = _source(name)
    header = source.with_suffix(".h")
    return read_interface(header if header.exists() else source)


@functools.cache
def compiled_library(name: str, build: str) -> ctypes.CDLL:
    """A library of SOURCES, compiled if need be.

    Raises BackendError: no compiler, or the first line of the compiler's complaint.
    """
    source, abi = _source(name), interface(name).abi
    problem = ""
    for flags in _FLAGS[build]:
        flags = [*flags, f"-DPYLLM2_ABI={abi}"]
        file = f"{name}-{build}-{_fingerprint(source, flags)}.so"
        try:
            loaded = _load(file, name, source, flags)
        except BackendError as error:
            problem = problem or str(error)
            continue
        answer = getattr(loaded, f"{name}_abi")
        answer.restype = ctypes.c_int64
        if answer() != abi:
            raise BackendError(f"{file}: was not built from the headers of this installation")
        return loaded
    raise BackendError(problem)


def _source(name: str) -> Path:
    reason, folder = why_not(), _sources_folder()
    if reason is not None or folder is None:
        raise BackendError(f"backend 'c' {reason}")
    return folder / SOURCES[name]


def _load(file: str, name: str, source: Path, flags: list[str]) -> ctypes.CDLL:
    """Load a library from the cache, or from a temporary folder if the cache cannot be used."""
    path = _cache_folder() / file
    try:
        _ensure(path, name, source, flags)
        return ctypes.CDLL(str(path))
    except OSError as error:  # full, or mounted so that nothing in it can be run
        log.info("%s: a temporary folder is used instead", error)
    try:
        path = _temporary_folder() / file
        _ensure(path, name, source, flags)
        return ctypes.CDLL(str(path))
    except OSError as error:
        remedy = "set CC to a compiler for this machine, PYLLM2_CACHE to a folder for programs"
        raise BackendError(f"backend 'c': {error}: {remedy}") from None


def _ensure(path: Path, name: str, source: Path, flags: list[str]) -> None:
    """Compile a library to `path`, under a lock, unless one with the right checksum is there."""
    if _intact(path):
        return
    with _locked(Path(f"{path}.lock")):
        if _intact(path):
            return  # another process compiled it meanwhile
        log.info("compiling the C library %s (first run only)", name)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            made = Path(scratch) / "library.so"
            command = [*_compiler(), *_BASE, *flags, str(source), "-o", str(made), "-lm"]
            result = _run(command, _COMPILE_TIMEOUT)
            if result.returncode != 0 or not made.exists():
                complaint = (result.stderr.strip().splitlines() or ["no library was made"])[0]
                raise BackendError(f"backend 'c': {command[0]} failed: {complaint}")
            made.chmod(0o700)
            digest = Path(scratch) / "digest"
            digest.write_text(hashlib.sha256(made.read_bytes()).hexdigest())
            digest.chmod(0o600)
            for new, old in ((made, path), (digest, _digest_file(path))):
                if old.is_dir() and not old.is_symlink():
                    os.replace(old, Path(scratch) / f"{new.name}.old")
                os.replace(new, old)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process compile at a time, if the file system has locks.

    Two that compile at once do no harm, because the result is renamed into place.
    """
    descriptor = None
    try:
        import fcntl

        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
    except (ImportError, OSError):  # ENOLCK, ENOSYS: no locks here
        pass
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _intact(path: Path) -> bool:
    try:
        digest = hashlib.sha256(private.read(path)).hexdigest()
        return digest.encode() == private.read(_digest_file(path))
    except OSError:
        return False


def _digest_file(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _sources_folder() -> Path | None:
    """csrc in the installed package, or beside it in a checkout."""
    here = Path(__file__).parents[1]
    return next((d for d in (here / "csrc", here.parent / "csrc") if d.is_dir()), None)


def _compiler() -> list[str]:
    """The words that start the compiler; none if there is no compiler.

    Example: CC = "ccache gcc -m64" -> ["/usr/bin/ccache", "gcc", "-m64"]
    """
    named = os.environ.get("CC")
    if not named:
        return next(([found] for c in _COMPILERS if (found := shutil.which(c))), [])
    try:
        candidates = [[named], shlex.split(named)]  # a path may have spaces in it
    except ValueError:  # a quotation mark without its partner
        candidates = [[named]]
    for words in candidates:
        if words and (found := shutil.which(words[0])):
            return [found, *words[1:]]
    return []


def _run(command: list[str], timeout: float) -> subprocess.CompletedProcess[str]:
    """Run a compiler; whatever bytes it prints become text. Raises BackendError."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendError(f"backend 'c': {command[0]}: {error}") from None


def _fingerprint(source: Path, flags: list[str]) -> str:
    """A hash of everything that a library depends on, as 16 hex digits."""
    digest = hashlib.sha256()
    for file in with_includes(source):
        digest.update(file.read_bytes())
    for text in (*_BASE, *flags, _compiler_version(), platform.machine(), _cpu()):
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]


@functools.cache
def _compiler_version() -> str:
    command = _compiler()
    return " ".join(command) + _run([*command, "--version"], timeout=60).stdout


def _cpu() -> str:
    """The processor's model and features, on which the code of -march=native depends."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


@functools.cache
def _cache_folder() -> Path:
    """$PYLLM2_CACHE or the user's cache folder, private; a temporary one if that is impossible."""
    from platformdirs import user_cache_path

    folder = Path(os.environ.get("PYLLM2_CACHE") or user_cache_path("pyllm2")) / "native"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        reason = private.why_not_private(folder)
        if reason is None:
            folder.chmod(0o700)
            with tempfile.TemporaryFile(dir=folder):
                return folder
    except (OSError, RuntimeError):
        reason = "cannot be written"
    log.info("%s %s: the C library is compiled in every process", folder, reason)
    return _temporary_folder()


@functools.cache
def _temporary_folder() -> Path:
    """A private folder, removed when the process ends."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="pyllm2-")
    except OSError as error:
        raise BackendError(f"backend 'c': no folder can be written: {error}") from None
    _kept_until_exit.append(folder)
    return Path(folder.name)


_kept_until_exit: list[tempfile.TemporaryDirectory[str]] = []
