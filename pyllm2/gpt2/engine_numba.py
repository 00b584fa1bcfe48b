"""The Numba backend as a user meets it."""

from __future__ import annotations

from pyllm2.gpt2 import ops_numba


class FastOps(ops_numba.Ops):
    """The fast build of `ops_numba`."""

    def __init__(self, threads: int | None = None) -> None:
        super().__init__("fast", threads)
