"""Files that the user names for the results: checked before any work."""

from __future__ import annotations

import os

from pyllm2.errors import UsageError
from pyllm2.formats.writer import require_writable


def check_output(target: str, *inputs: str) -> None:
    """Refuse an output that cannot be written, or that is one of the inputs.

    Raises UsageError for an input, FileError with the operating system's reason.
    """
    for source in inputs:
        if os.path.isfile(source) and os.path.isfile(target) and os.path.samefile(source, target):
            raise UsageError(f"{target}: the output would overwrite the input")
    require_writable(target)
