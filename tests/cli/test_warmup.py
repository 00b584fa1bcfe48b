"""`pyllm2 warmup`."""

from __future__ import annotations

import subprocess
import sys

from pyllm2 import backends


def test_warmup_makes_every_backend_ready_and_the_second_time_compiles_nothing() -> None:
    """One line a backend; the note about compiling can only come the first time."""
    command = [sys.executable, "-m", "pyllm2", "warmup"]
    subprocess.run(command, check=True, capture_output=True)
    second = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = second.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == list(backends.NAMES)
    for name, line in zip(backends.NAMES, lines, strict=True):
        assert line.startswith(f"{name}: ready") == (backends.why_not(name) is None)
    assert "compiling" not in second.stderr
