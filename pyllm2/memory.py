"""Ask before a large allocation, so that the answer is a sentence and not a kill."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from pyllm2.errors import NotEnoughMemoryError


def limit() -> int:
    """Bytes that this process could ever hold: physical memory, or its address-space limit."""
    bound = sys.maxsize
    with suppress(AttributeError, OSError, ValueError):  # not every system tells
        bound = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            bound = min(bound, soft)
    except ImportError:
        pass
    return bound


def require(nbytes: int, purpose: str, remedy: str) -> None:
    """Refuse now if `nbytes` cannot fit.

    Raises NotEnoughMemoryError: `needs N MB for PURPOSE, this process may use M: REMEDY`.
    """
    bound = limit()
    if nbytes > bound:
        raise NotEnoughMemoryError(
            f"needs {nbytes / 1e6:,.0f} MB for {purpose}, but this process can have at most "
            f"{bound / 1e6:,.0f} MB: {remedy}"
        )
