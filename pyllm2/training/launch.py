"""Whether this process is one of several that a launcher has started, and which."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pyllm2.errors import BackendError, PyLLM2Error
from pyllm2.training.processes import OneProcess

# What launchers tell each process about the number of processes, by kind of MPI.
SIZE_VARIABLES = "PMI_SIZE OMPI_COMM_WORLD_SIZE MV2_COMM_WORLD_SIZE".split()

# Seconds that a process waits for the others to join. One that ends before it has joined, with an
# exit code and by no signal, is not missed by MPICH's launcher: the others would wait for ever.
JOIN_SECONDS = "PYLLM2_JOIN_SECONDS"
MOST_JOIN_SECONDS = 600


def started(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes a launcher says that it has started; 1 without a launcher."""
    for name in SIZE_VARIABLES:
        value = environment.get(name, "")
        if value.isascii() and value.isdigit():
            return max(1, int(value[:9]))
    # PMIx, which srun uses, tells the rank only; Slurm tells the number of tasks.
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "")
    if "PMIX_RANK" in environment and tasks.isascii() and tasks.isdigit():
        return max(1, int(tasks[:9]))
    return 1


@contextmanager
def of_this_run(use_mpi: bool = True, failed: PyLLM2Error | None = None) -> Iterator[Any]:
    """The processes of this run. Without a launcher, or without `use_mpi`, MPI is not imported.

    failed: what this process has met already; it is raised by all. A process that ended without a
    word would leave the others waiting for it.

    Raises BackendError if there are several and mpi4py is missing or belongs to another MPI.
    """
    size = started()
    if size == 1 or not use_mpi:
        if failed is not None:
            raise failed
        yield OneProcess()
        return
    try:
        with _limited():
            from pyllm2.training import mpi
    except ModuleNotFoundError:
        raise BackendError(
            f"started as one of {size} processes, which needs mpi4py: pip install 'pyllm2[mpi]' "
            "(--no-mpi: each works by itself)"
        ) from None
    except (ImportError, RuntimeError) as error:  # mpi4py finds the library when it is imported
        raise BackendError(
            f"mpi4py cannot load MPI: {str(error).splitlines()[0]}; pip install mpich, or set "
            "MPI4PY_LIBMPI to the libmpi of your mpiexec"
        ) from None
    with mpi.world(size, failed) as world:
        yield world


@contextmanager
def _limited() -> Iterator[None]:
    """End this process by SIGALRM, and so all of them, if the block takes too long.

    MPI waits in it for the other processes, where no handler of Python could run.
    """
    if not hasattr(signal, "alarm"):
        yield
        return
    value = os.environ.get(JOIN_SECONDS, "")
    seconds = int(value[:9]) if value.isascii() and value.isdigit() else MOST_JOIN_SECONDS
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
