"""Compile csrc once into the user's cache folder, and load it.

A library is named by a hash of everything that made it: sources, flags, compiler version, CPU. A
lock lets one process compile while others wait; the result is renamed into place; its checksum,
stored beside it, is compared before it is loaded, so that a stale, foreign or truncated file is
rebuilt and never run.

Two builds. `strict` is the oracle: no reordering, no contraction, one thread. `fast` is what a
user would run. Neither is linked with -ffast-math or -Ofast: GCC then adds a start-up object that
switches the whole process to flush-to-zero; the single flags do no such thing.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from pyllm2.errors import BackendError

# What csrc/NAME.c must answer to NAME_abi().
ABI = {"llama2": 2, "llama2_training": 1, "gpt2": 1, "adamw": 1, "limits": 2}
BUILDS = ("fast", "strict")

_BASE = ["-std=c99", "-shared", "-fPIC", "-D_POSIX_C_SOURCE=200809L"]
_FLAGS = {
    "strict": [["-O2", "-ffp-contract=off"]],
    "fast": [
        [
            "-O3", "-march=native", "-ffp-contract=fast", "-fassociative-math",
            "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno", "-fopenmp",
        ],
        ["-O3", "-ffp-contract=fast"],  # for compilers without OpenMP or -march=native
    ],
}  # fmt: skip
_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
_COMPILERS = ("cc", "gcc", "clang")
_SECONDS_TO_COMPILE = 300

log = logging.getLogger("pyllm2")


def why_not() -> str | None:
    """One line that says why C cannot be compiled here; None if it can."""
    if _sources_folder() is None:
        return "needs the C sources, which this installation lacks"
    if _compiler() is None:
        named = os.environ.get("CC")
        return f"needs a C compiler: {f'$CC = {named}' if named else 'cc, gcc or clang'} not found"
    return None


@functools.cache
def compiled_library(name: str, build: str) -> ctypes.CDLL:
    """The shared library of csrc/NAME.c, compiled if need be.

    Raises BackendError: no compiler, or what it complained of.
    """
    reason = why_not()
    if reason is not None:
        raise BackendError(f"backend 'c' {reason}")
    source = _sources_folder() / f"{name}.c"  # type: ignore[operator]
    folder = _cache_folder()
    problem = ""
    for flags in _FLAGS[build]:
        path = folder / f"{name}-{build}-{_fingerprint(source, flags)}.so"
        try:
            _ensure(path, source, flags)
        except BackendError as error:
            problem = problem or str(error)
            continue
        loaded = ctypes.CDLL(str(path))
        abi = getattr(loaded, f"{name}_abi")()
        if abi != ABI[name]:
            raise BackendError(
                f"{path}: ABI {abi}, expected {ABI[name]}: sources and package differ"
            )
        return loaded
    raise BackendError(problem)


def _ensure(path: Path, source: Path, flags: list[str]) -> None:
    """Have a library at `path` whose checksum is right; else compile it, under a lock."""
    from filelock import FileLock

    if _intact(path):
        return
    with FileLock(f"{path}.lock", timeout=2 * _SECONDS_TO_COMPILE):
        if _intact(path):
            return  # somebody else has, while we waited
        log.info("compiling %s (first run only)", source.name)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            made = Path(scratch) / "library.so"
            command = [str(_compiler()), *_BASE, *flags, str(source), "-o", str(made), "-lm"]
            try:
                result = subprocess.run(
                    command, capture_output=True, text=True, timeout=_SECONDS_TO_COMPILE
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise BackendError(f"backend 'c': {command[0]}: {error}") from None
            if result.returncode != 0 or not made.exists():
                complaint = (result.stderr.strip().splitlines() or ["no library was made"])[0]
                raise BackendError(f"backend 'c': {command[0]} failed: {complaint}")
            digest = hashlib.sha256(made.read_bytes()).hexdigest()
            os.replace(made, path)
            (Path(scratch) / "digest").write_text(digest)
            os.replace(Path(scratch) / "digest", _digest_file(path))


def _intact(path: Path) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == _digest_file(path).read_text()
    except OSError:
        return False


def _digest_file(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _sources_folder() -> Path | None:
    """csrc inside the installed package, or beside it in a checkout."""
    here = Path(__file__).parent
    return next((d for d in (here / "csrc", here.parent / "csrc") if d.is_dir()), None)


def _compiler() -> str | None:
    named = os.environ.get("CC")
    candidates = [named] if named else _COMPILERS
    return next((found for c in candidates if (found := shutil.which(c))), None)


def _fingerprint(source: Path, flags: list[str]) -> str:
    """Everything that a library depends on, as 16 hex digits."""
    digest = hashlib.sha256()
    for file in _with_includes(source):
        digest.update(file.read_bytes())
    for text in (*_BASE, *flags, _compiler_version(), platform.machine(), _cpu()):
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]


def _with_includes(source: Path) -> list[Path]:
    """A C file and all that it includes from its folder, and what that includes, each once."""
    found = [source]
    for file in found:  # grows as we go
        for name in _INCLUDE.findall(file.read_text(encoding="utf-8")):
            included = source.parent / name
            if included not in found and included.exists():  # of one that does not, cc complains
                found.append(included)
    return found


@functools.cache
def _compiler_version() -> str:
    compiler = str(_compiler())
    try:
        result = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendError(f"backend 'c': {compiler}: {error}") from None
    return compiler + result.stdout


def _cpu() -> str:
    """The processor's features: -march=native means another thing on another machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


@functools.cache
def _cache_folder() -> Path:
    """$PYLLM2_CACHE or the user's cache folder, private; a temporary one if it is read-only."""
    from platformdirs import user_cache_path

    folder = Path(os.environ.get("PYLLM2_CACHE") or user_cache_path("pyllm2")) / "native"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):
        temporary = tempfile.TemporaryDirectory(prefix="pyllm2-")
        _kept_until_exit.append(temporary)
        log.info("%s cannot be written: the C library is compiled anew each time", folder)
        return Path(temporary.name)


_kept_until_exit: list[tempfile.TemporaryDirectory[str]] = []
