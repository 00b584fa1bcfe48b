"""How many processors a process may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyllm2.cli import threads
from pyllm2.compiling import processors

# What /proc/self/cgroup says, files below /sys/fs/cgroup, processors' time per time.
HOSTS: dict[str, tuple[str, dict[str, str], list[float]]] = {
    "version 2": (
        "0::/a/b\n",
        {"a/cpu.max": "150000 100000\n", "a/b/cpu.max": "max 100000"},
        [1.5],
    ),
    "version 2, container": ("0::/\n", {"cpu.max": "50000 100000\n"}, [0.5]),
    "version 2, unlimited": ("0::/\n", {"cpu.max": "max 100000\n"}, []),
    "version 1": (
        "4:cpu,cpuacct:/a\n",
        {"cpu/a/cpu.cfs_quota_us": "300000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
        [3.0],
    ),
    "version 1, unlimited": (
        "4:cpu:/\n",
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
        [],
    ),
    "both": (
        "4:cpu:/\n0::/\n",
        {
            "cpu/cpu.cfs_quota_us": "200000",
            "cpu/cpu.cfs_period_us": "100000",
            "cpu.max": "25000 50000",
        },
        [2.0, 0.5],
    ),
    "damaged": ("0::/a/b\n", {"cpu.max": "1", "a/cpu.max": "1 0", "a/b/cpu.max": "x y z"}, []),
}


@pytest.mark.parametrize("name", HOSTS)
def test_quotas_of_control_groups(name: str, tmp_path: Path) -> None:
    """Of the group and of those above it."""
    lines, files, expected = HOSTS[name]
    (tmp_path / "cgroup").write_text(lines)
    for path, text in files.items():
        (tmp_path / "sys" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys" / path).write_text(text)
    assert processors.quotas(str(tmp_path / "cgroup"), str(tmp_path / "sys")) == expected


@pytest.mark.parametrize(
    ("numbers", "quotas", "expected"),
    [(8, [], 8), (8, [9.0], 8), (8, [4.0, 2.5], 2), (8, [1.5], 1), (8, [0.25], 1), (1, [2.0], 1)],
)
def test_a_quota_leaves_whole_processors(
    numbers: int, quotas: list[float], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest counts, rounded down, and one is always left."""
    monkeypatch.setattr(processors, "processor_numbers", lambda: frozenset(range(numbers)))
    monkeypatch.setattr(processors, "quotas", lambda: quotas)
    assert processors.processors() == expected


def test_a_quota_sets_the_threads_of_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would take one per processor. What the user has set stays."""
    monkeypatch.setattr(threads, "processor_numbers", lambda: frozenset(range(8)))
    monkeypatch.setattr(threads, "processors", lambda: 3)
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    threads.set_threads(None)
    assert (os.environ["OPENBLAS_NUM_THREADS"], os.environ["OMP_NUM_THREADS"]) == ("3", "5")
    threads.set_threads(2)
    assert (os.environ["OPENBLAS_NUM_THREADS"], os.environ["OMP_NUM_THREADS"]) == ("2", "2")


def test_without_a_quota_the_libraries_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable is set that was not."""
    monkeypatch.setattr(threads, "processors", lambda: len(threads.processor_numbers()))
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    threads.set_threads(None)
    assert "OPENBLAS_NUM_THREADS" not in os.environ
