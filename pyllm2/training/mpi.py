"""The ranks of a training run over MPI, by mpi4py; see `pyllm2.training.processes`.

Only this module imports mpi4py, and NumPy not before it is needed: how many threads its BLAS may
have is known once MPI has said how many ranks share a machine.

Sums are not left to MPI, whose order is its own: pieces are exchanged (all-to-all, the same bytes
as a reduce-scatter) and added here in order of rank.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import mpi4py

from pyllm2.compiling.processors import processor_numbers, processors
from pyllm2.errors import BackendError, NotFiniteError, PyLLM2Error, printable
from pyllm2.training.processes import BLOCK, LEAST_PIECE, blocks, shares

if TYPE_CHECKING:
    from pyllm2.parameters import Array

mpi4py.rc.thread_level = "funneled"  # kernels have threads; only the main one calls MPI
from mpi4py import MPI  # noqa: E402

T = TypeVar("T")

MOST_NAMED = 16  # ranks in a line
BUG = 70  # exit code
FORWARDED = 0.5  # seconds: MPICH's launcher drops what it has not read when a rank aborts

log = logging.getLogger("pyllm2")


class RankError(PyLLM2Error):
    """An error of one rank, as all ranks raise it."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class Ranks:
    """The ranks of a communicator. Every method is collective: all ranks must call it."""

    def __init__(self, communicator: Any) -> None:
        self.communicator = communicator
        self.rank, self.size = communicator.Get_rank(), communicator.Get_size()
        self.exchange_seconds = 0.0  # spent in `sum_shares` and `gather_shares`
        self.exchanged_bytes = 0  # sent by this rank in them

    # ---- this machine ------------------------------------------------------------------------

    def threads(self) -> int:
        """Threads for this rank: the processors are shared out among the ranks of this machine.

        Ranks that the launcher has bound to different processors keep theirs.
        """
        here = self.communicator.Split_type(MPI.COMM_TYPE_SHARED)
        mine = processor_numbers()
        sharers = sum(other == mine for other in here.allgather(mine))
        here.Free()
        return max(1, processors() // sharers)

    def neighbours(self) -> int:
        here = self.communicator.Split_type(MPI.COMM_TYPE_SHARED)
        count: int = here.Get_size()
        here.Free()
        return count

    def description(self) -> str:
        """Which process each rank is."""
        found = self.each((MPI.Get_processor_name(), os.getpid()))
        named = [f"{rank}: {pid} on {host}" for rank, (host, pid) in enumerate(found)]
        more = ["…"] if len(named) > MOST_NAMED else []
        return f"ranks, by process: {', '.join(named[:MOST_NAMED] + more)}"

    # ---- small values ------------------------------------------------------------------------

    def each(self, value: T) -> list[T]:
        found: list[T] = self.communicator.allgather(value)
        return found

    def from_first(self, value: T) -> T:
        found: T = self.communicator.bcast(value)
        return found

    # ---- vectors of all parameters ---------------------------------------------------------------

    def sum_shares(self, vector: Array) -> None:
        """In pieces: while one is added up, the next is on its way. See `Processes.sum_shares`."""
        import numpy as np

        began = MPI.Wtime()
        cut, own = shares(len(vector), self.size), shares(len(vector), self.size)[self.rank]
        piece = max(LEAST_PIECE, BLOCK // self.size)
        longest = cut[0].stop
        buffers = np.empty((2, self.size, piece), np.float32)
        starts = list(range(0, longest, piece))
        pending: Any = self._exchange(vector, cut, 0, piece, buffers[0]) if starts else None
        for i, start in enumerate(starts):
            pending.Wait()
            if i + 1 < len(starts):
                room = buffers[(i + 1) % 2]
                pending = self._exchange(vector, cut, starts[i + 1], piece, room)
            count = max(0, min(piece, own.stop - own.start - start))
            total = vector[own.start + start : own.start + start + count]
            total[...] = buffers[i % 2, 0, :count]
            for rank in range(1, self.size):
                total += buffers[i % 2, rank, :count]
        self._count(vector, own, began)

    def _exchange(
        self, vector: Array, cut: list[slice], start: int, piece: int, received: Array
    ) -> Any:
        """Begin to send each rank its piece at `start` of its share. received: (size, piece)"""
        lengths = [max(0, min(piece, s.stop - s.start - start)) for s in cut]
        places = [s.start + start if length else 0 for s, length in zip(cut, lengths, strict=True)]
        own = [lengths[self.rank]] * self.size
        return self.communicator.Ialltoallv(
            [vector, lengths, places, MPI.FLOAT],
            [received, own, [piece * r for r in range(self.size)], MPI.FLOAT],
        )

    def gather_shares(self, vector: Array) -> None:
        began = MPI.Wtime()
        cut = shares(len(vector), self.size)
        counts, places = [s.stop - s.start for s in cut], [s.start for s in cut]
        self.communicator.Allgatherv(MPI.IN_PLACE, [vector, counts, places, MPI.FLOAT])
        self._count(vector, cut[self.rank], began)

    def _count(self, vector: Array, own: slice, began: float) -> None:
        """Both collectives send (size - 1) / size of the vector from each rank."""
        self.exchanged_bytes += 4 * (len(vector) - (own.stop - own.start))
        self.exchange_seconds += MPI.Wtime() - began

    # ---- checkpoints: rank 0 has the file, and never more than a block of another's share --------

    def whole(self, share: Array, n: int) -> Iterator[Array]:
        import numpy as np

        for rank, cut in enumerate(shares(n, self.size)):
            for block in blocks(cut):
                own = share[block.start - cut.start : block.stop - cut.start]
                if rank == 0 == self.rank:
                    yield own
                elif self.rank == 0:
                    received = np.empty(block.stop - block.start, np.float32)
                    self.communicator.Recv(received, source=rank)
                    yield received
                elif self.rank == rank:
                    self.communicator.Send(own, dest=0)

    def deal(self, vector: Any, n: int, share: Array) -> None:
        import numpy as np

        for rank, cut in enumerate(shares(n, self.size)):
            for block in blocks(cut):
                own = slice(block.start - cut.start, block.stop - cut.start)
                if rank == 0 == self.rank:
                    share[own] = vector[block]
                elif self.rank == 0:
                    self.communicator.Send(np.ascontiguousarray(vector[block]), dest=rank)
                elif self.rank == rank:
                    self.communicator.Recv(share[own], source=0)

    # ---- errors ------------------------------------------------------------------------------

    def together(self, work: Callable[[], T]) -> T:
        """Every rank fails if one does: rank 0 raises RankError, the others SystemExit."""
        failed, result = None, None
        try:
            result = work()
        except (PyLLM2Error, MemoryError) as error:
            failed = _described(error)
        found = self.each(failed)
        bad = [(rank, *error) for rank, error in enumerate(found) if error is not None]
        if not bad:
            return result  # type: ignore[return-value]
        rank, text, code = bad[0]
        everywhere = len(bad) == self.size and len({error[1] for error in bad}) == 1
        where = "" if everywhere else f"rank {rank} of {self.size}: "
        if self.rank == 0:
            raise RankError(where + text, code)
        raise SystemExit(code)

    @contextmanager
    def ended_together(self) -> Iterator[None]:
        """An exception on one rank ends all ranks at once, after one line that names it."""
        try:
            yield
        except (RankError, SystemExit):
            raise  # all ranks have raised it
        except NotFiniteError:
            if self.rank == 0:
                raise  # computed from the numbers of all ranks, and raised by all of them
            raise SystemExit(NotFiniteError.exit_code) from None
        except BaseException as error:
            text, code = _described(error)
            if code == BUG:
                traceback.print_exception(error)
            sys.stderr.write(
                f"pyllm2: error: rank {self.rank} of {self.size}: {printable(text)}; "
                "all ranks are stopped\n"
            )
            sys.stderr.flush()
            time.sleep(FORWARDED)
            self.communicator.Abort(code)
            os._exit(code)  # where Abort returns before the launcher has ended this rank


def _described(error: BaseException) -> tuple[str, int]:
    """An error in words, and the exit code that `pyllm2.cli` has for it."""
    if isinstance(error, PyLLM2Error):
        return str(error), error.exit_code
    if isinstance(error, MemoryError):
        return "not enough memory", 1
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    return f"{error!r} is a bug in pyllm2", BUG


@contextmanager
def world(expected: int, failed: PyLLM2Error | None = None) -> Iterator[Ranks]:
    """All ranks. Raises BackendError if MPI knows another number than the launcher.

    failed: why this rank cannot work: no rank does
    """
    ranks = Ranks(MPI.COMM_WORLD)
    if ranks.size != expected:
        library = MPI.Get_library_version().splitlines()[0]
        raise BackendError(
            f"the launcher has started {expected} processes, mpi4py's MPI knows {ranks.size}: "
            f"they belong to different MPIs (mpi4py's is {library})"
        )

    def begin() -> None:
        if failed is not None:
            raise failed

    with ranks.ended_together():
        ranks.together(begin)
        description = ranks.description()
        if ranks.rank == 0:
            log.info("%s", description)
        yield ranks
