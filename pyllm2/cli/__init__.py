"""The command `pyllm2`: one module per subcommand, each with its flags and its `main`.

Only this module prints errors and chooses exit codes: 0 done, 1 refused or failed, 2 usage, 70 a
bug in pyllm2, 129, 130 and 143 signals, 141 a closed pipe. Text goes to stdout, the rest to stderr.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress

from pyllm2.cli import completion, run, signals
from pyllm2.cli.output import say, tell
from pyllm2.cli.parser import parse, parser_of
from pyllm2.cli.threads import set_threads
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
        with signals.handled():
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
    except SystemExit as stop:  # --help, --version, a signal
        return stop.code if isinstance(stop.code, int) else 1
    except Exception as error:
        if type(error).__module__ == "bdb":  # `q` in a debugger
            return EXIT_INTERRUPTED
        traceback.print_exc()
        tell("pyllm2: this is a bug in pyllm2; please report it with the lines above")
        return EXIT_BUG


def _dispatch(argv: list[str]) -> int:
    if argv[:1] == ["run"]:
        set_threads(None)
        return run.main(argv[1:])
    parser = parser_of()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks, with the Tab key
        completion.complete(parser)
    try:
        options = parse(parser, argv)
    except PyLLM2Error as error:
        from pyllm2.cli import ranks

        ranks.refuse(argv, error)
    if options.command is None:
        parser.print_help()
        return 0
    set_threads(getattr(options, "threads", None))
    return int(options.main(options))


def _show_notes() -> None:
    """Print the log messages of the package ("compiling ...") on stderr."""
    import logging

    class ToStderr(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(record.getMessage())

    logger = logging.getLogger("pyllm2")
    if not any(type(handler).__name__ == "ToStderr" for handler in logger.handlers):
        logger.addHandler(ToStderr())
    logger.setLevel(logging.INFO)


def _show_warning(message: Warning | str, *_: object) -> None:
    tell(f"pyllm2: warning: {printable(str(message))}")


def _finish(code: int) -> int:
    """Flush the streams, and redirect to /dev/null those that cannot be written.

    Otherwise the interpreter reports them when it exits, with exit code 120.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            if hasattr(stream, "flush"):
                stream.flush()
        except ValueError:
            continue  # it is closed
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            with suppress(OSError):  # no file of the system
                os.dup2(null, stream.fileno())
            os.close(null)
            if code == 0 and stream is sys.stdout:
                code = EXIT_CLOSED_PIPE
                if not isinstance(error, BrokenPipeError):
                    tell(f"pyllm2: error: standard output: {(error.strerror or '').lower()}")
                    code = 1
    return code


__all__ = ["main"]
