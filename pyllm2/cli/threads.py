"""The number of threads of the libraries below NumPy, Numba and the C engine."""

from __future__ import annotations

import os
import sys

from pyllm2.compiling.processors import processor_numbers, processors


def set_threads(threads: int | None) -> None:
    """Set the number of threads of the libraries. NumPy's BLAS reads it when it is imported.

    None: what the libraries choose, which is one per processor, or what a quota leaves of them.
    """
    # BLAS and OpenMP have separate threads, which spin for a while after their work and then
    # compete for the processors. Both are set to sleep early.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # Numba reads its variable at every compilation, and fails if it has changed.
    numba = [] if "numba" in sys.modules else ["NUMBA"]
    for variable in [f"{library}_NUM_THREADS" for library in ("OPENBLAS", "MKL", "OMP", *numba)]:
        if threads is not None:
            os.environ[variable] = str(threads)
        elif processors() < len(processor_numbers()):  # the libraries do not read the quota
            os.environ.setdefault(variable, str(processors()))
