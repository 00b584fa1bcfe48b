"""What can go wrong, as a tree. The text of every error is one line, ready to be printed.

PyLLM2Error                 refused or failed: exit code 1
├── FileError               the operating system, or the file's kind, stands in the way
│   └── FormatError         the bytes are not what the format says
├── ConfigError             hyperparameters that contradict each other
├── TokenizerError          text that the vocabulary cannot express, ids outside it
├── ContextError            more tokens than the model has positions
├── NotFiniteError          NaN or infinity where there must be numbers
├── NotEnoughMemoryError    an allocation that cannot succeed, refused before it is tried
├── BackendError            a backend that cannot run here, and why
└── UsageError              a flag or argument out of range: exit code 2

PyLLM2Warning               worth a line on stderr, not worth stopping
"""

from __future__ import annotations

import os


class PyLLM2Error(Exception):
    """Base of everything that pyllm2 raises on purpose. `str(error)` is one line."""

    exit_code = 1


class FileError(PyLLM2Error):
    """A file cannot be used: `path: reason`."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        self.path = os.fspath(path)
        self.reason = reason
        super().__init__(f"{printable(self.path)}: {reason}")


class FormatError(FileError):
    """The bytes of a file are not what its format says they are."""

    @classmethod
    def field(
        cls, path: str | os.PathLike[str], name: str, found: object, byte: int, expected: str
    ) -> FormatError:
        """`FILE: FIELD = FOUND (byte N): EXPECTED`."""
        return cls(path, f"{name} = {found} (byte {byte}): {expected}")


class ConfigError(PyLLM2Error):
    """A hyperparameter that is impossible, alone or beside the others."""

    def __init__(self, name: str, found: int, expected: str) -> None:
        self.name, self.found, self.expected = name, found, expected
        super().__init__(f"{name} = {found}: {expected}")


class TokenizerError(PyLLM2Error):
    """Text that the vocabulary cannot express, or an id that it does not have."""


class ContextError(PyLLM2Error):
    """More tokens than the model has positions."""


class NotFiniteError(PyLLM2Error):
    """NaN or infinity where there must be numbers."""


class NotEnoughMemoryError(PyLLM2Error):
    """An allocation that this machine cannot satisfy."""


class BackendError(PyLLM2Error):
    """A backend that does not exist or cannot run here."""


class UsageError(PyLLM2Error):
    """A flag or an argument that is out of its range."""

    exit_code = 2


class PyLLM2Warning(UserWarning):
    """Something odd that does not stop the run."""


def printable(text: str) -> str:
    """`text` on one line, whatever bytes a file name is made of: control characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
