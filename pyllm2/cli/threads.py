"""The number of threads of the libraries below NumPy, Numba and the C engine."""

from __future__ import annotations

import os
import sys


def set_threads(threads: int | None) -> None:
    """Set the number of threads of the libraries. NumPy's BLAS reads it when it is imported."""
    # BLAS and OpenMP have separate threads, which spin for a while after their work and then
    # compete for the processors. Both are set to sleep early.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if threads is not None:
        # Numba reads its variable at every compilation, and fails if it has changed.
        numba = [] if "numba" in sys.modules else ["NUMBA"]
        for library in ["OPENBLAS", "MKL", "OMP", *numba]:
            os.environ[f"{library}_NUM_THREADS"] = str(threads)
