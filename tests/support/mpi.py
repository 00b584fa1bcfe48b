"""Start programs of several processes with mpiexec."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.command import COMMAND, TIMEOUT, Outcome, environment, interruptible

BESIDE = Path(sys.executable).parent / "mpiexec"  # of the wheel `mpich`
MPIEXEC = os.environ.get("PYLLM2_MPIEXEC") or (
    str(BESIDE) if BESIDE.exists() else shutil.which("mpiexec")
)


def require_mpi() -> str:
    """The launcher; skips the test, with the reason, where there is none."""
    if importlib.util.find_spec("mpi4py") is None or MPIEXEC is None:
        pytest.skip("needs mpi4py and mpiexec: pip install 'pyllm2[mpi]'")
    return MPIEXEC


def start(size: int, argv: Sequence[str], folder: Path, **changes: str) -> subprocess.Popen[bytes]:
    """Start `size` processes of a command line in a folder; stdout and stderr are pipes."""
    return subprocess.Popen(
        [require_mpi(), "-n", str(size), *argv],
        cwd=folder,
        env=environment({"PYTHONPATH": str(Path(__file__).parents[2]), **changes}),
        preexec_fn=interruptible,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(size: int, argv: Sequence[str], folder: Path, **changes: str) -> Outcome:
    """Run `size` processes to their end."""
    process = start(size, argv, folder, **changes)
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    return Outcome(process.returncode, out, err)


def command(*argv: str) -> list[str]:
    """A command line of pyllm2."""
    return [*COMMAND, *argv]
