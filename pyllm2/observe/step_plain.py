"""`step` in lines: a command per line, as in pdb, for a terminal without TUI or for a script."""

from __future__ import annotations

import cmd
import io
import sys
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from pyllm2.errors import PyLLM2Error, UsageError
from pyllm2.observe import heat, step_text
from pyllm2.observe.files import save_new
from pyllm2.observe.sources import formula, package_of, source
from pyllm2.observe.step_values import named_values
from pyllm2.observe.stepper import Stepper

WIDTH = 100
HEAT_LINES = 12


class PlainStep(cmd.Cmd):
    """Commands for a Stepper. An empty line repeats the last command.

    coloured: heat maps in half blocks   echo: print each command, where nobody types
    """

    prompt = "(step) "

    def __init__(
        self,
        stepper: Stepper,
        stdin: IO[str] | None = None,
        stdout: IO[str] | None = None,
        coloured: bool = False,
        echo: bool = False,
        width: int = WIDTH,
    ) -> None:
        super().__init__(stdin=stdin, stdout=stdout)
        self.use_rawinput = stdin is None
        self.stepper, self.coloured, self.echo, self.width = stepper, coloured, echo, width

    # ---- the loop --------------------------------------------------------------------------------

    def preloop(self) -> None:
        self.say(f"{self.stepper.run.title}; help lists the commands")
        self.show()

    def precmd(self, line: str) -> str:
        if self.echo:
            self.say("" if line == "EOF" else line)
        return line

    def onecmd(self, line: str) -> bool:
        try:
            return bool(super().onecmd(line))
        except PyLLM2Error as error:
            self.say(f"error: {error}")
        except KeyboardInterrupt:
            self.say("interrupted")
        return False

    def default(self, line: str) -> None:
        raise UsageError(f"{line.split()[0]!r} is no command: help lists them; p EXPR evaluates")

    def completenames(self, text: str, *ignored: Any) -> list[str]:
        return [name for name in super().completenames(text, *ignored) if name != "EOF"]

    def say(self, text: str) -> None:
        self.stdout.write(text + "\n")

    def show(self) -> None:
        """Where we are, and the values of the op."""
        s = self.stepper
        if s.stride == "line":
            self._show_line()
            return
        self.say(step_text.heading(s))
        for line in step_text.value_lines(s.record):
            self.say(line)
        if words := step_text.predictions(s):
            self.say(f"    {words}")

    def _show_line(self) -> None:
        s, line = self.stepper, self.stepper.lines[self.stepper.line]
        text = _numbered(s)
        self.say(f"{step_text.heading(s)}, {s.line + 1} of {len(s.lines)}")
        self.say(
            f"  {line.number:>4} {'returned from' if line.returned else ''}{text[line.number]}"
        )
        for name, value in line.variables.items():
            if name not in s.record.inputs:
                shape, numbers = step_text.described(value)
                self.say(f"    {name:<12} {shape:<20} {numbers}".rstrip())

    def _moved(self, moved: bool, otherwise: str = "the end of the run") -> None:
        if not moved:
            error = self.stepper.error
            self.say(f"the run ended: {type(error).__name__}: {error}" if error else otherwise)
        elif self.stepper.interrupted:
            self.say("stopped")
        self.show()

    def _repeat(self, words: str, move: Callable[[], bool], otherwise: str) -> None:
        if words and not (words.isascii() and words.isdigit() and len(words) < 7):
            raise UsageError(f"{words}: expected how many times")
        moved = True
        for _ in range(int(words or 1)):
            moved = moved and move()
        self._moved(moved, otherwise)

    # ---- moving ----------------------------------------------------------------------------------

    def do_next(self, words: str) -> None:
        """next [N]: the next op; by layers, passes or lines after `out` or `into`"""
        self._repeat(words, self.stepper.next, "the end of the run")

    def do_back(self, words: str) -> None:
        """back [N]: the op before; what has run stays"""
        self._repeat(words, self.stepper.back, "the beginning of the run")

    def do_into(self, words: str) -> None:
        """into: smaller strides: passes, layers, ops, lines of NumPy with their variables"""
        self._moved(self.stepper.into(), "these are the smallest strides")

    def do_out(self, words: str) -> None:
        """out: finish the op of these lines, the layer of this op, or the pass of this layer"""
        self._moved(self.stepper.out())

    def do_finish(self, words: str) -> None:
        """finish: to the first op of the next token, or of the next update"""
        self._moved(self.stepper.finish_token())

    def do_run(self, words: str) -> None:
        """run [FIELD=X ...] [CONDITION]: to the next op with these fields of which it is true

        fields: layer op weight call position phase
        examples: run layer=2 op=attention      run not finite      run weight=wq |out| > 10
        alone: to the end
        """
        if not words:
            self.stepper.go(lambda record: False)
            self._moved(True)
            return
        self._moved(self.stepper.run_to(words), f"no op from here to the end has {words}")

    # ---- looking ---------------------------------------------------------------------------------

    def do_where(self, words: str) -> None:
        """where: the ops of this token"""
        for line in step_text.tree_lines(self.stepper):
            self.say(line)

    def do_list(self, words: str) -> None:
        """list [numpy | numba | c]: formula and source of the op"""
        s = self.stepper
        known = {found.language.lower(): found for found in source(s.family, s.record.op)}
        wanted = words.lower() or "numpy"
        if wanted not in known:
            raise UsageError(f"{words}: expected {', '.join(known)}")
        text = formula(package_of(s.family, s.record.op), s.record.op) if not words else ""
        found = known[wanted]
        self.say("\n".join(x for x in (text, f"{found.language}, {found.place}", found.text) if x))

    def do_show(self, words: str) -> None:
        """show [NAME]: the values of the op, or a heat map of one of them"""
        if not words:
            self.show()
            return
        value = named_values(self.stepper.record).get(words)
        value = self.stepper.evaluate(words) if value is None else value
        array = np.asarray(value)
        if array.dtype.kind not in "fiub" or not array.size:
            raise UsageError(f"{words}: expected an array of numbers")
        found = heat.picture(array, self.width, HEAT_LINES * (1 + self.coloured))
        self.say("\n".join(heat.lines_of(found, self.coloured)))
        self.say(
            f"{words} {array.shape}: {step_text.statistics(array)}; {found.legend}".rstrip("; ")
        )

    def do_compare(self, words: str) -> None:
        """compare: the op by every backend on these inputs, against the bound of its error"""
        self.say(str(self.stepper.compare()))

    def do_p(self, words: str) -> None:
        """p EXPR: a Python expression of the op's values, np, and t, the trace so far"""
        if not words:
            raise UsageError("p: expected an expression, such as x.mean()")
        self.say(step_text.shown(self.stepper.evaluate(words)))

    # ---- changing --------------------------------------------------------------------------------

    def do_set(self, words: str) -> None:
        """set NAME[INDEX] = VALUE: change an input, and compute the op again; or a result"""
        self.stepper.assign(words)
        self.show()

    def do_use(self, words: str) -> None:
        """use BACKEND: compute this op and those after it with another backend"""
        self.stepper.use(words)
        self.show()

    def do_save(self, words: str) -> None:
        """save FILE: all ops so far, as `pyllm2 trace --out` writes them (.npz, .safetensors)"""
        if not words:
            raise UsageError("save: expected a file name")
        save_new(self.stepper.trace, words)
        self.say(f"{words}: {len(self.stepper.records)} ops")

    def do_quit(self, words: str) -> bool:
        """quit: leave"""
        return True

    def do_EOF(self, words: str) -> bool:  # noqa: N802 (cmd's name for the end of input)
        return True

    def do_help(self, arg: str) -> None:
        """help [COMMAND]: what the commands do"""
        names = [n for n in COMMANDS if n.startswith(ABBREVIATIONS.get(arg, arg))]
        if not names:
            raise UsageError(f"{arg!r} is no command: help lists them")
        for name in names:
            text = (getattr(self, f"do_{name}").__doc__ or "").rstrip().splitlines()
            for line in text if arg else text[:1]:
                self.say(line.removeprefix("        "))


COMMANDS = "next back into out finish run where list show compare p set use save help quit".split()
ABBREVIATIONS = {name[0]: name for name in "next back into out finish run where list".split()}
ABBREVIATIONS |= {"s": "show", "c": "compare", "u": "use", "h": "help", "q": "quit"}


def _numbered(stepper: Stepper) -> dict[int, str]:
    """Lines of the specification's file by number."""
    found = source(stepper.family, stepper.record.op)[0]
    return dict(enumerate(found.text.splitlines(), found.line))


def _add_abbreviations() -> None:
    for short, name in ABBREVIATIONS.items():
        setattr(PlainStep, f"do_{short}", getattr(PlainStep, f"do_{name}"))


_add_abbreviations()


def play(stepper: Stepper, stdout: IO[str], coloured: bool, width: int = WIDTH) -> None:
    """Read commands from standard input until quit or its end; a closed one has none."""
    stdin = io.StringIO() if sys.stdin is None else sys.stdin
    typed = stdin.isatty()
    PlainStep(
        stepper, None if typed else stdin, stdout, coloured, echo=not typed, width=width
    ).cmdloop()
