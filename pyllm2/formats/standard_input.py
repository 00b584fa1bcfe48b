"""Standard input as bytes, also where `sys.stdin` has none: a notebook, or an io.StringIO."""

from __future__ import annotations

import sys
from typing import Any

from pyllm2.errors import FileError, os_errors

NAME = "standard input"


def read(n: int) -> bytes:
    """Up to n bytes; fewer only at the end. Raises FileError."""
    return _call("read", n)


def read_line(n: int) -> bytes:
    """The next line, up to n bytes of it; empty at the end. Raises FileError."""
    return _call("readline", n)


def _call(method: str, n: int) -> bytes:
    if sys.stdin is None:  # the process was started with `<&-`
        return b""
    try:
        with os_errors(NAME):
            found: Any = getattr(getattr(sys.stdin, "buffer", sys.stdin), method)(n)
    except ValueError:
        raise FileError(NAME, "is closed") from None
    return found if isinstance(found, bytes) else found.encode("utf-8", "surrogateescape")
