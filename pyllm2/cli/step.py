"""`pyllm2 step`: a debugger of the computation, in the terminal."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from typing import IO, TYPE_CHECKING, cast

from pyllm2 import backends
from pyllm2.cli import flags, numbers
from pyllm2.cli.output import TextOutput, is_terminal, say
from pyllm2.cli.outputs import add_force, check_output, output
from pyllm2.cli.trace import add_model_and_prompt, amount, open_with_prompt
from pyllm2.errors import UsageError

if TYPE_CHECKING:
    from pyllm2.observe.record import Trace

SUMMARY = "step through a run op by op: formula, sources, values, every backend"
EXAMPLE = """\
examples:
  pyllm2 step --prompt 'One day'              q leaves, ? lists the keys
  pyllm2 step --train                         forward, backward, AdamW
  echo 'run layer=2 op=attention' | pyllm2 step"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLE
    add_model_and_prompt(parser)
    parser.add_argument(
        "--backend",
        choices=backends.NAMES,
        metavar="NAME",
        default="numpy",
        help=f"{flags.one_of(backends.NAMES)}; can be changed at any op",
    )
    flags.add_threads(parser)
    parser.add_argument(
        "--compare",
        type=flags.names_of(backends.NAMES),
        metavar="A,B",
        help="backends to compare at each op (default: all that can run here)",
    )
    parser.add_argument(
        "--new-tokens",
        type=numbers.count,
        default=4,
        metavar="N",
        help="continue the prompt by the N most probable tokens",
    )
    parser.add_argument(
        "--at-once", action="store_true", help="feed the prompt in one pass, not token by token"
    )
    parser.add_argument(
        "--train",
        action="store_true",
        help="step through training on the prompt: forward, backward, AdamW",
    )
    parser.add_argument(
        "--updates", type=numbers.positive, default=1, metavar="N", help="updates of --train"
    )
    parser.add_argument(
        "--plain", action="store_true", help="a command per line instead of panes, as in pdb"
    )
    parser.add_argument(
        "--html",
        type=output,
        metavar="FILE",
        help="run to the end, and write a page that plays it back",
    )
    parser.add_argument(
        "--trace", metavar="FILE", help="with --html: play back this trace of `pyllm2 trace`"
    )
    add_force(parser)


def main(options: argparse.Namespace) -> int:
    from pyllm2.observe import step_plain
    from pyllm2.observe.step_runs import PromptRun, training_run
    from pyllm2.observe.stepper import Run, Stepper

    if options.trace is not None:
        return _play_back_trace(options)
    if options.html is not None:
        check_output(options.html, options.model, force=options.force)
    named = options.compare
    for name in named or ():
        backends.require(name)
    model, prompt = open_with_prompt(options, backend=options.backend)
    run: Run
    if options.train:
        run = training_run(model, prompt, options.updates)
    else:
        run = PromptRun(model, prompt, options.new_tokens, options.at_once)
    with Stepper(run, options.backend, named) as stepper:
        if options.html is not None:
            stepper.go(lambda record: False)
            _write(options.html, stepper.trace)
            return 0
        terminal = is_terminal(sys.stdout)
        if not options.plain and is_terminal(sys.stdin) and terminal:
            try:
                from pyllm2.observe.step_app import StepApp
            except ImportError:
                say("panes need textual: pip install 'pyllm2[step]'; these are the plain lines")
            else:
                StepApp(stepper).run()
                return 0
        width = shutil.get_terminal_size((100, 24)).columns
        coloured = terminal and not os.environ.get("NO_COLOR")
        lines = cast(IO[str], TextOutput())
        step_plain.play(stepper, lines, coloured, width)
    return 0


def _play_back_trace(options: argparse.Namespace) -> int:
    from pyllm2.observe.files import load_trace

    if options.html is None:
        raise UsageError("--trace: expected --html too: a trace cannot be continued")
    if options.model is not None:
        raise UsageError("--trace: leave out MODEL: all values come from the trace")
    check_output(options.html, options.trace, force=options.force)
    _write(options.html, load_trace(options.trace))
    return 0


def _write(path: str, found: Trace) -> None:
    from pyllm2.formats.writer import atomic_write
    from pyllm2.observe.playback import playback_page

    page = playback_page(found).encode()
    with atomic_write(path) as file:
        file.write(page)
    say(f"{path}: {len(found)} ops, {amount(len(page))}")
