"""Check that a large allocation can succeed: failure is an error message, not the OOM killer."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

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


def _cgroup_limits(*files: str) -> list[int]:
    """Limits in bytes of this process's control groups and all groups above them."""
    limits = []
    for version, folder in cgroup_folders("memory", *files):
        name = "memory.max" if version == 2 else "memory.limit_in_bytes"
        with suppress(OSError, ValueError):  # ValueError: "max"
            limits.append(int((folder / name).read_text()))
    return limits


def cgroup_folders(
    controller: str, cgroups: str = "/proc/self/cgroup", root: str = CGROUPS
) -> Iterator[tuple[int, Path]]:
    """Version and folder of this process's control groups and of all groups above them.

    A line of `cgroups` is `number:controllers:path`; version 2 has number 0 and no controllers. In
    a container the path may be that of the host: not all folders exist.
    """
    try:
        lines = Path(cgroups).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # not Linux
        return
    for number, controllers, path in (line.split(":", 2) for line in lines if line.count(":") > 1):
        if controller in controllers.split(","):
            version, folder = 1, Path(root) / controller
        elif number == "0":
            version, folder = 2, Path(root)
        else:
            continue
        yield version, folder
        for part in path.split("/"):
            if part not in ("", ".."):
                folder /= part
                yield version, folder


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
