"""The exceptions. The text of each is one line, ready to be printed.

PyLLM2Error                 exit code 1
├── FileError               a file that cannot be read or written, or is of the wrong kind
│   └── FormatError         a file that violates its format
├── ChatTemplateError       a chat template that is wrong, or refuses a conversation
├── ConfigError             hyperparameters that cannot be combined
├── TokenizerError          text that the vocabulary cannot encode, ids outside of it
├── ContextError            more tokens than the model has positions
├── NotFiniteError          NaN or infinity in logits, losses or weights
├── NotEnoughMemoryError    an allocation that cannot succeed, checked before it is made
├── BackendError            a backend or optional package that is missing, and why
└── UsageError              a flag or argument out of range: exit code 2

PyLLM2Warning               something unusual that does not stop the command
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


class PyLLM2Error(Exception):
    """Base class of all exceptions of pyllm2. `str(error)` is one line."""

    exit_code = 1


class FileError(PyLLM2Error):
    """A file cannot be used: `path: reason`."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        self.path = os.fspath(path)
        self.reason = reason
        super().__init__(f"{printable(self.path)}: {reason}")


@contextmanager
def os_errors(path: str | os.PathLike[str], doing: str = "") -> Iterator[None]:
    """Turn an OSError of the block into a FileError: `path: DOING the system's reason`."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise FileError(path, f"{doing} {reason}".lstrip()) from None
    except ValueError as error:  # of open and stat
        if "null " not in str(error):
            raise
        raise FileError(path, "not a path: it contains a zero byte") from None


class FormatError(FileError):
    """A file violates its format."""

    @classmethod
    def field(
        cls, path: str | os.PathLike[str], name: str, found: object, byte: int, expected: str
    ) -> FormatError:
        """`FILE: FIELD = FOUND (byte N): EXPECTED`."""
        return cls(path, f"{name} = {found} (byte {byte}): {expected}")


class ChatTemplateError(PyLLM2Error):
    """`path: chat template: message`. `message` is what the template or jinja2 said, unchanged."""

    def __init__(self, path: str | os.PathLike[str], message: str) -> None:
        self.path, self.message = os.fspath(path), message
        shown_message = " ".join(message.split("\n"))[:500]
        super().__init__(f"{printable(self.path)}: chat template: {printable(shown_message)}")


class ConfigError(PyLLM2Error):
    """A hyperparameter that is out of range, alone or together with the others."""

    def __init__(self, name: str, found: object, expected: str) -> None:
        self.name, self.found, self.expected = name, found, expected
        super().__init__(f"{name} = {found}: {expected}")


class TokenizerError(PyLLM2Error):
    """Text that the vocabulary cannot encode, or an id outside of it."""


class ContextError(PyLLM2Error):
    """More tokens than the model has positions."""


class NotFiniteError(PyLLM2Error):
    """NaN or infinity in logits, losses or weights."""


class NotEnoughMemoryError(PyLLM2Error):
    """An allocation that cannot succeed on this machine."""


class BackendError(PyLLM2Error):
    """A backend or optional package that does not exist or cannot be used here."""


class UsageError(PyLLM2Error):
    """A flag or an argument that is out of its range."""

    exit_code = 2


class PyLLM2Warning(UserWarning):
    """Something unusual that does not stop the command."""


def printable(text: str) -> str:
    """`text` with control characters escaped, so that it is one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: object) -> str:
    """A value of any type as at most 80 characters on one line."""
    return " ".join(repr(value).split())[:80]
