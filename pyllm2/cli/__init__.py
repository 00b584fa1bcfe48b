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
from pyllm2.errors import PyLLM2Error, PyLLM2Warning, printable

EXIT_BUG = 70
EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    warnings.simplefilter("always", PyLLM2Warning)
    try:
        code = _dispatch(argv)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _forget_stdout()
        return EXIT_CLOSED_PIPE
    except PyLLM2Error as error:
        _say(f"pyllm2: error: {printable(str(error))}")  # one line, whatever an argument holds
        return error.exit_code
    except MemoryError:
        _say("pyllm2: error: not enough memory")
        return 1
    except SystemExit as stop:  # argparse: --help, --version, usage
        return stop.code if isinstance(stop.code, int) else 1
    except Exception:
        traceback.print_exc()
        _say("pyllm2: this is a bug in pyllm2; please report it with the lines above")
        return EXIT_BUG


def _dispatch(argv: list[str]) -> int:
    if argv[:1] == ["run"]:
        # A drop-in for another program: its arguments are not ours to parse.
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


def _set_threads(threads: int | None) -> None:
    """Before NumPy is imported: afterwards its BLAS no longer listens."""
    if threads is not None:
        for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
            os.environ[name] = str(threads)


def _show_warning(message: Warning | str, *_: object) -> None:
    _say(f"pyllm2: warning: {message}")


def _say(line: str) -> None:
    if sys.stderr is not None:
        print(line, file=sys.stderr, flush=True)


def _forget_stdout() -> None:
    """Keep the interpreter from complaining, on its way out, about the pipe that is gone."""
    if sys.stdout is not None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


__all__ = ["Parser", "main"]
