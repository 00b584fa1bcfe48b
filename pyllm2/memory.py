"""Check that a large allocation can succeed: failure is an error message, not the OOM killer."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from pyllm2.errors import NotEnoughMemoryError

CGROUPS = "/sys/fs/cgroup"


def limit() -> int:
    """Upper bound of this process's memory in bytes.

    The smallest of physical memory, the limits of its control groups (as a container has them) and
    the limit of its address space.
    """
    bound = sys.maxsize
    with suppress(AttributeError, OSError, ValueError):  # unknown on some systems
        bound = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    bound = min([bound, *_cgroup_limits()])
    try:
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            bound = min(bound, soft)
    except ImportError:
        pass
    return bound


def _cgroup_limits(cgroups: str = "/proc/self/cgroup", root: str = CGROUPS) -> list[int]:
    """Limits in bytes of this process's control groups and all groups above them, versions 1 and 2.

    A line of `cgroups` is `number:controllers:path`; version 2 has number 0 and no controllers. In
    a container the path may be that of the host: the folders of it that exist are read.
    """
    try:
        with open(cgroups, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:  # not Linux
        return []
    limits = []
    for number, controllers, path in (line.split(":", 2) for line in lines if line.count(":") > 1):
        if "memory" in controllers.split(","):
            folder, name = os.path.join(root, "memory"), "memory.limit_in_bytes"
        elif number == "0":
            folder, name = root, "memory.max"
        else:
            continue
        for part in ["", *path.split("/")]:
            folder = os.path.join(folder, part) if part != ".." else folder
            # ValueError: "max"
            with suppress(OSError, ValueError), open(os.path.join(folder, name)) as file:
                limits.append(int(file.read()))
    return limits


def require(nbytes: int, purpose: str, remedy: str) -> None:
    """Raise NotEnoughMemoryError if `nbytes` cannot be allocated.

    Its message: `needs N MB for PURPOSE, but this process can have at most M MB: REMEDY`.
    """
    bound = limit()
    if nbytes > bound:
        raise NotEnoughMemoryError(
            f"needs {nbytes / 1e6:,.0f} MB for {purpose}, but this process can have at most "
            f"{bound / 1e6:,.0f} MB: {remedy}"
        )
