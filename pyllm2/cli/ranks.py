"""A command that runs on several processes: they share the processors, and rank 0 speaks."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from pyllm2.cli.output import be_silent
from pyllm2.cli.threads import set_threads
from pyllm2.errors import PyLLM2Error, PyLLM2Warning
from pyllm2.training import launch

COMMANDS = ("train", "eval")  # those that join the other processes


def refuse(argv: Sequence[str], error: PyLLM2Error) -> NoReturn:
    """Raise an error that was met before the processes have joined, on all of them."""
    use_mpi = argv[:1] and argv[0] in COMMANDS and "--no-mpi" not in argv
    with launch.of_this_run(bool(use_mpi), error):
        raise error


@contextmanager
def of_this_run(options: argparse.Namespace) -> Iterator[Any]:
    """The processes of the run; `options.threads` is set if there are several.

    Enter it before NumPy is imported: its BLAS reads its number of threads then.
    """
    with launch.of_this_run(not options.no_mpi) as found:
        if found.size > 1:
            if options.threads is None:
                options.threads = found.threads()
                set_threads(options.threads)
            if found.rank > 0:
                be_silent()
                warnings.simplefilter("ignore", PyLLM2Warning)
        yield found
