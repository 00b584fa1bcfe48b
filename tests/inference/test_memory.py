"""The upper bound of memory: control groups of both versions, as a container has them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyllm2 import memory
from pyllm2.errors import NotEnoughMemoryError
from pyllm2.inference.session import Session

MB = 2**20
UNLIMITED = str(2**63 - 4096)  # what version 1 says
# /proc/self/cgroup, files below /sys/fs/cgroup, and the smallest limit.
HOSTS: dict[str, tuple[str, dict[str, str], int | None]] = {
    "version 2, container": ("0::/\n", {"memory.max": "5000\n"}, 5000),
    "version 2, service": (
        "0::/system.slice/a.service\n",
        {"system.slice/memory.max": "max\n", "system.slice/a.service/memory.max": "7000\n"},
        7000,
    ),
    "version 2, a group above": (
        "0::/a/b/c\n",
        {"a/memory.max": "3000\n", "a/b/memory.max": "max\n", "a/b/c/memory.max": "9000\n"},
        3000,
    ),
    "version 2, unlimited": ("0::/\n", {"memory.max": "max\n"}, None),
    "version 1, container": (
        "4:memory:/docker/abc\n3:cpuset:/\n",
        {"memory/memory.limit_in_bytes": "6000\n"},
        6000,
    ),
    "version 1, service": (
        "5:cpu,memory:/a\n0::/\n",
        {"memory/memory.limit_in_bytes": UNLIMITED, "memory/a/memory.limit_in_bytes": "8000"},
        8000,
    ),
    "version 1, unlimited": (
        "4:memory:/\n",
        {"memory/memory.limit_in_bytes": UNLIMITED},
        2**63 - 4096,
    ),
    "of another controller": ("3:cpu:/a\n", {"cpu/a/memory.limit_in_bytes": "1"}, None),
    "outside the namespace": ("0::/../../x\n", {"memory.max": "4000"}, 4000),
    "odd lines": ("\n::\nx\n0::/a:b\n", {"a:b/memory.max": "4000"}, 4000),
    "damaged": ("0::/\n", {"memory.max": "x"}, None),
}


@pytest.mark.parametrize("name", HOSTS)
def test_limits_of_control_groups(name: str, tmp_path: Path) -> None:
    """The smallest of the group and of those above it."""
    lines, files, expected = HOSTS[name]
    (tmp_path / "cgroup").write_text(lines)
    for path, text in files.items():
        (tmp_path / "sys" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys" / path).write_text(text)
    found = memory._cgroup_limits(str(tmp_path / "cgroup"), str(tmp_path / "sys"))
    assert (min(found) if found else None) == expected


def test_without_control_groups(tmp_path: Path) -> None:
    """On another system there is no such file."""
    assert memory._cgroup_limits(str(tmp_path / "none"), str(tmp_path)) == []


def test_a_limited_group_refuses_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """`require` counts it like physical memory."""
    monkeypatch.setattr(memory, "_cgroup_limits", lambda: [900 * MB, 100 * MB])
    assert memory.limit() == 100 * MB
    memory.require(100 * MB, "a test", "nothing")
    with pytest.raises(NotEnoughMemoryError, match=r"needs 105 MB for a test, .* at most 105 MB"):
        memory.require(100 * MB + 1, "a test", "nothing")


@pytest.mark.skipif(sys.platform != "linux", reason="control groups are of Linux")
def test_the_bound_is_positive_and_at_most_the_physical_memory() -> None:
    """Here too."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < memory.limit() <= physical


def test_a_cache_that_the_system_refuses_is_one_clear_line() -> None:
    """An allocation may fail where the bound let it pass; the message is that of the bound."""

    class Refused:
        config = SimpleNamespace(seq_len=8, vocab_size=3)

        def cache_nbytes(self, positions: int) -> int:
            return 0

        def new_cache(self, positions: int) -> Any:
            raise MemoryError

    model: Any = Refused()
    words = "for the key/value cache of 4 positions, .*: lower the context length"
    with pytest.raises(NotEnoughMemoryError, match=words):
        Session(model, 4, "numpy")
