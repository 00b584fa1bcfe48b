"""The processes of a training run: one, or the ranks that `mpiexec` has started.

A vector of all parameters is cut into one share per rank, in order of rank. With ZeRO-1
(Rajbhandari et al. 2020) each rank keeps the optimizer's moments of its share only, updates that
share, and receives the others'. `OneProcess` is the run without MPI; `pyllm2.training.mpi` has the
same methods over MPI.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:  # NumPy's BLAS reads its number of threads when it is imported
    from pyllm2.parameters import Array

T = TypeVar("T")

ALIGNMENT = 16  # floats: every share begins on a cache line of the vector
BLOCK = 2**20  # floats that are sent at once
LEAST_PIECE = 2**12  # floats per message: below, latency dominates


def shares(n: int, size: int) -> list[slice]:
    """The share of each rank of a vector of n: contiguous, all but the last of equal length."""
    length = -(-n // size)
    length += -length % ALIGNMENT
    return [slice(min(n, r * length), min(n, (r + 1) * length)) for r in range(size)]


def blocks(share: slice) -> Iterator[slice]:
    """A share in pieces of at most BLOCK."""
    for start in range(share.start, share.stop, BLOCK):
        yield slice(start, min(start + BLOCK, share.stop))


class Processes(Protocol):
    """What a run needs of its processes. Every rank calls the same methods in the same order."""

    rank: int
    size: int

    def neighbours(self) -> int:
        """Number of ranks on this machine."""

    def each(self, value: T) -> list[T]:
        """The values of all ranks, in order of rank, on every rank."""

    def from_first(self, value: T) -> T:
        """The value of rank 0, on every rank."""

    def sum_shares(self, vector: Array) -> None:
        """Reduce-scatter: this rank's share of `vector` becomes its sum over all ranks.

        The sum is taken in float32 in order of rank, whichever arrives first: a run can be repeated
        bit by bit. The other shares are left as they are.
        """

    def gather_shares(self, vector: Array) -> None:
        """All-gather: every rank gets every other rank's share of `vector`."""

    def whole(self, share: Array, n: int) -> Iterator[Array]:
        """On rank 0 the blocks of a vector of n of which each rank has its share; else nothing."""

    def deal(self, vector: Any, n: int, share: Array) -> None:
        """Scatter: each rank gets its `share` of a vector of n.

        vector: on rank 0 anything that gives slices, one block at a time; else not looked at
        """

    def together(self, work: Callable[[], T]) -> T:
        """The result of `work` on every rank, or on every rank an error if one rank has failed."""


class OneProcess:
    """A run of one process; nothing is sent."""

    rank, size = 0, 1

    def neighbours(self) -> int:
        return 1

    def each(self, value: T) -> list[T]:
        return [value]

    def from_first(self, value: T) -> T:
        return value

    def sum_shares(self, vector: Array) -> None: ...

    def gather_shares(self, vector: Array) -> None: ...

    def whole(self, share: Array, n: int) -> Iterator[Array]:
        yield share

    def deal(self, vector: Any, n: int, share: Array) -> None:
        for block in blocks(slice(0, n)):
            share[block] = vector[block]

    def together(self, work: Callable[[], T]) -> T:
        return work()
