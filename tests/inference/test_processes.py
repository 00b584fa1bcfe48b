"""A loaded model in other processes: forks, pools, and processes started anew."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyllm2 import backends
from tests.support.children import WAYS
from tests.support.tested import BACKENDS

REPOSITORY = Path(__file__).parents[2]


# OpenBLAS ends its threads before a fork, and waits for ever for one that another thread's product
# has just started again. It has none for the way of which that may happen; our locks stay.
BUSY = "fork_while_busy"


@functools.cache
def differences(busy: bool) -> dict[str, list[str]]:
    """What children say otherwise than their parent, by the way in which they were made."""
    names = [name for name in BACKENDS if backends.why_not(name) is None]
    ways = ",".join(way for way in WAYS if (way == BUSY) == busy)
    command = [sys.executable, "-m", "tests.support.children", ways, *names]
    env = os.environ | ({"OPENBLAS_NUM_THREADS": "1"} if busy else {})
    found = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=env)
    assert found.returncode == 0, found.stderr
    return dict(map(json.loads, found.stdout.splitlines()))


@pytest.mark.parametrize("way", WAYS)
def test_a_child_says_what_its_parent_says(way: str) -> None:
    """Whatever made the child, and whatever its parent's threads were doing at the time."""
    assert differences(way == BUSY)[way] == []
