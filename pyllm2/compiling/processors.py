"""How many processors this process may use: fewer than the machine has, on many a machine."""

from __future__ import annotations

import os
from contextlib import suppress

from pyllm2.memory import cgroup_folders


def processors() -> int:
    """The processors of `processor_numbers`, or what the quota leaves of them: 1.5 are one."""
    return max(1, min([len(processor_numbers()), *map(int, quotas())]))


def processor_numbers() -> frozenset[int]:
    """The numbers of the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def quotas(*files: str) -> list[float]:
    """Processor time per time that this process's control groups may use, and all groups above.

    Containers have them: `docker run --cpus 1.5`. More threads than that are stopped together, in
    the middle of their work, until the period is over. files: those of `cgroup_folders`
    """
    found = []
    for version, folder in cgroup_folders("cpu", *files):
        with suppress(OSError, ValueError, ZeroDivisionError):  # no limit, or no number: "max"
            if version == 2:
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text()
                period = (folder / "cpu.cfs_period_us").read_text()
            if int(quota) > 0:
                found.append(int(quota) / int(period))
    return found
