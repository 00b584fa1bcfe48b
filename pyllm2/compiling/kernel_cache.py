"""Compiled kernels on disk: Numba's cache, which trusts what it finds, made safe.

An entry is a pickle with machine code in it, and unpickling runs code. So an entry is read only if
nobody else can have written it, and only if its checksum is right: one that was cut short by a full
disk or a power cut is compiled anew. Where no folder can be used, kernels are compiled in every
process, and one note says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pickle
import shutil
import types
import uuid
from pathlib import Path
from typing import Any, ClassVar

import numba
from numba.core import caching, serialize
from numba.core.runtime import rtsys

from pyllm2.compiling import private

log = logging.getLogger("pyllm2")
_noted: set[str] = set()


def enable(dispatcher: Any, function: types.FunctionType) -> None:
    """Keep on disk what a Numba dispatcher compiles of a function, if there is a place for it."""
    try:
        dispatcher._cache = _Cache(function)
    except RuntimeError:  # "cannot cache function": no locator has found a folder
        _note("no folder can be written")


def _note(reason: str) -> None:
    """Say once per process why kernels are compiled again in the next one."""
    if not _noted:
        log.info("compiled kernels are not kept: %s", reason)
    _noted.add(reason)


class _Cache(caching.FunctionCache):
    """Numba's cache of one function, with entries of our own."""

    def __init__(self, function: types.FunctionType) -> None:
        super().__init__(function)
        stamp = self._impl.locator.get_source_stamp()
        entries: Any = Entries(self.cache_path, self._impl.filename_base, stamp)
        self._cache_file = entries

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled function, or None, whatever is the matter with its entry."""
        # Numba's `load_overload` imports all that compiling may need first, which takes most of the
        # time: `refresh`, as before it compiles. A kernel that is loaded needs its allocator.
        try:
            rtsys.initialize(target_context)
            return self._load_overload(sig, target_context)
        except Exception as error:
            log.debug("%s: %r: compiled anew", self.cache_path, error)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            self.disable()
            _note(f"{self.cache_path} cannot be written: {error.strerror or error}")


class Entries:
    """The compiled versions of one function: a file each, checksum first, then a pickle."""

    def __init__(self, folder: str, name: str, stamp: Any) -> None:
        self._folder, self._name, self._stamp = Path(folder), name, stamp

    def load(self, key: Any) -> Any:
        """What `save` has kept under a key; None if there is nothing, or it is not intact."""
        try:
            content = private.read(self.path(key))
        except OSError:
            return None
        checksum, pickled = content[:_CHECKSUM], content[_CHECKSUM:]
        if hashlib.sha256(pickled).digest() != checksum:
            return None
        kept, data = pickle.loads(pickled)
        return data if kept == key else None

    def save(self, key: Any, data: Any) -> None:
        """Write an entry beside, then rename it. Raises OSError."""
        path, pickled = self.path(key), serialize.dumps((key, data))
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        beside = f"{path}.tmp.{uuid.uuid4().hex[:16]}"
        try:
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, private.MODE)
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(pickled).digest() + pickled)
            os.replace(beside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise

    def flush(self) -> None:
        """Numba asks for this before it recompiles a function: `save` overwrites anyway."""

    def path(self, key: Any) -> Path:
        """The file of an entry: its name depends on Numba, the source, the types and the CPU."""
        digest = hashlib.sha256(repr((numba.__version__, self._stamp, key)).encode()).hexdigest()
        return self._folder / f"{self._name}.{digest[:16]}.nbc"


_CHECKSUM = hashlib.sha256().digest_size


# ---- folders ----------------------------------------------------------------------------------


class _Private:
    """A place that is used only if nobody else can put entries there."""

    def ensure_cache_path(self) -> None:
        """Make the folder. Raises OSError if it cannot be written, or others can write it."""
        folder = Path(self.get_cache_path())
        private.make(folder)
        # Whoever can write the sources needs no cache to have code run.
        in_tree = isinstance(self, caching.InTreeCacheLocator)
        if not (in_tree and private.no_wider_than(folder, folder.parent)):
            reason = private.why_not_private(folder)
            if reason is not None:
                _note(f"{folder} {reason}")
                raise PermissionError(reason)
        super().ensure_cache_path()  # type: ignore[misc]


class _Places(caching.CompileResultCacheImpl):
    """Numba's usual places, each private or not used."""

    _locator_classes: ClassVar[list[Any]] = [  # type: ignore[misc]
        type(f"Private{locator.__name__}", (_Private, locator), {})
        for locator in caching.CompileResultCacheImpl._locator_classes
    ]


_Cache._impl_class = _Places
