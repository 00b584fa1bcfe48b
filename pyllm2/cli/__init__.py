"""The command `pyllm2`: flags to calls, one module a subcommand.

The only place that prints errors and picks exit codes: 0 done, 1 refused or failed, 2 usage,
70 a bug of ours, 130 and 143 signals, 141 a closed pipe. Text goes to stdout, the rest to stderr.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence

from pyllm2.cli.arguments import Parser, parser_of
from pyllm2.cli.output import tell
from pyllm2.errors import PyLLM2Error, PyLLM2Warning, printable

EXIT_BUG = 70
EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    return _finish(_run(list(sys.argv[1:] if arguments is None else arguments)))


def _run(argv: list[str]) -> int:
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    warnings.simplefilter("always", PyLLM2Warning)
    _show_notes()
    try:
        return _dispatch(argv)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_CLOSED_PIPE
    except PyLLM2Error as error:
        tell(f"pyllm2: error: {printable(str(error))}")  # one line, whatever an argument holds
        return error.exit_code
    except MemoryError:
        tell("pyllm2: error: not enough memory")
        return 1
    except SystemExit as stop:  # argparse: --help, --version, usage
        return stop.code if isinstance(stop.code, int) else 1
    except Exception:
        traceback.print_exc()
        tell("pyllm2: this is a bug in pyllm2; please report it with the lines above")
        return EXIT_BUG


def _dispatch(argv: list[str]) -> int:
    if argv[:1] == ["run"]:
        # A drop-in for another program: its arguments are not ours to parse.
        _set_threads(None)
        from pyllm2.cli import run

        return run.main(argv[1:])
    parser = parser_of()
    options = parser.parse_args(argv)
    if options.command is None:
        parser.print_help()
        return 0
    _set_threads(getattr(options, "threads", None))
    from importlib import import_module

    return int(import_module(f"pyllm2.cli.{options.command}").main(options))


def _show_notes() -> None:
    """Notes of the package ("compiling …") become lines on stderr."""
    import logging

    class ToStderr(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tell(f"pyllm2: {record.getMessage()}")

    logger = logging.getLogger("pyllm2")
    if not any(type(handler).__name__ == "ToStderr" for handler in logger.handlers):
        logger.addHandler(ToStderr())
    logger.setLevel(logging.INFO)


def _set_threads(threads: int | None) -> None:
    """Before NumPy is imported: afterwards its BLAS no longer listens."""
    # BLAS and OpenMP keep separate threads, and each spins after its work: together they would
    # take the processors from one another. Both are told to sleep soon.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if threads is not None:
        # Numba reads its variable again at every compilation, and refuses one that has changed.
        numba = [] if "numba" in sys.modules else ["NUMBA"]
        for library in ["OPENBLAS", "MKL", "OMP", *numba]:
            os.environ[f"{library}_NUM_THREADS"] = str(threads)


def _show_warning(message: Warning | str, *_: object) -> None:
    tell(f"pyllm2: warning: {printable(str(message))}")


def _finish(code: int) -> int:
    """Write what is still buffered, and let go of streams that cannot be written.

    Otherwise the interpreter would complain about them on its way out, with exit code 120.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
            if code == 0 and stream is sys.stdout:
                code = EXIT_CLOSED_PIPE
                if not isinstance(error, BrokenPipeError):
                    tell(f"pyllm2: error: standard output: {(error.strerror or '').lower()}")
                    code = 1
    return code


__all__ = ["Parser", "main"]
