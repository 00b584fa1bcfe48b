"""`step` on a whole terminal: ops at the left, formula and sources, values with a heat map."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

import numpy as np
from textual import events, on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.css.query import NoMatches
from textual.screen import ModalScreen
from textual.widgets import Footer, Input, OptionList, Static

from pyllm2.errors import PyLLM2Error
from pyllm2.observe import spec, step_text
from pyllm2.observe.files import save_new
from pyllm2.observe.spec_text import page_text
from pyllm2.observe.step_widgets import ALL, LANGUAGES, HeatMap, Ops, Values, source_view
from pyllm2.observe.stepper import Stepper

NARROW = 110  # columns; with fewer, source and values stand above each other
QUITTING = suppress(NoMatches)  # late events find a screen whose widgets have gone
PATIENCE = 0.3  # seconds after which a move says that it is still running
ASKED = {
    "run": "run to (layer=2 op=attention, not finite, |out| > 10; nothing: the end)",
    "p": "p (a NumPy expression of the values, such as x.mean(axis=-1))",
    "set": "set (such as x[0] = 0, out *= 2)",
    "use": "use backend",
    "save": "save the trace to (.npz, .safetensors, .jsonl)",
}
HELP = """\
[b]Moving[/b]
  n, space  next op; after [b]o[/b] the next layer or pass
  i         into: smaller strides: pass, layer, op, lines of NumPy with their variables
  o         out: finish the op of these lines, the layer of this op, the pass of this layer
  b         back: the op before
  f         finish: the first op of the next token, or of the next update
  r         run to FIELD=X ... CONDITION; fields: layer op weight call position phase
            conditions are NumPy: not finite, |out| > 10, x.max() > 3
  enter     on an op at the left: look at it, or run to it
  ctrl+c    stop a run that takes long; else quit

[b]Looking[/b]
  l         another language: NumPy, Numba, C, all side by side
  v         another value; its heat map is below: blue is positive, orange negative
  tab       another pane; arrows or mouse move the cursor in the heat map
  p         evaluate an expression; t is the trace so far: t["layer 0", "attention"]
  x         the page of the op: laws and bound

[b]Changing[/b]
  s         set an input, x[0] = 0: the op is computed again; or a result: it goes on
  u         use another backend for this op and those after it
  w         write the trace so far into a file

  escape closes this page"""


class Page(ModalScreen[None]):
    """Text over the screen."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,x,question_mark,enter", "dismiss_page", "close")
    ]

    def __init__(self, text: str, markup: bool = False) -> None:
        super().__init__()
        self.text, self.markup = text, markup

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="page"):
            yield Static(self.text, markup=self.markup)

    def action_dismiss_page(self) -> None:
        self.dismiss()


class StepApp(App[None]):
    """The screen of a Stepper."""

    ENABLE_COMMAND_PALETTE = False
    TITLE = "pyllm2 step"
    CSS = """
    #heading { height: 1; background: $primary 30%; text-style: bold; padding: 0 1; }
    #panes { height: 1fr; }
    .pane { border: round $primary 50%; border-title-color: $text; padding: 0 1; }
    .pane:focus-within, .pane:focus { border: round $accent; }
    OptionList { scrollbar-size-vertical: 1; text-wrap: nowrap; text-overflow: ellipsis; }
    VerticalScroll { scrollbar-size-vertical: 1; }
    Ops { width: 30; height: 1fr; }
    #right { width: 1fr; height: 1fr; }
    #source { width: 1fr; height: 1fr; }
    #looking { width: 1fr; height: 1fr; }
    Values { height: auto; max-height: 40%; border: none; padding: 0; background: transparent; }
    #element { height: auto; max-height: 3; }
    #compared { height: auto; color: $text-muted; }
    #said { height: auto; max-height: 8; padding: 0 1; }
    #ask { display: none; height: 3; }
    #ask.open { display: block; }
    .narrow Ops { width: 25; }
    .narrow #right, .all #right { layout: vertical; }
    .narrow #looking { height: 3fr; }
    .narrow #source { height: 2fr; }
    .all #looking { height: 2fr; }
    .all #source { height: 3fr; }
    Page { align: center middle; }
    #page { width: 90%; max-width: 110; height: auto; max-height: 90%; border: round $accent;
            padding: 1 2; background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n,space", "step('next')", "next", key_display="n"),
        Binding("i", "step('into')", "into"),
        Binding("o", "step('out')", "out"),
        Binding("b", "step('back')", "back"),
        Binding("f", "step('finish_token')", "finish"),
        Binding("r", "ask('run')", "run"),
        Binding("p", "ask('p')", "eval"),
        Binding("s", "ask('set')", "set"),
        Binding("u", "ask('use')", "use"),
        Binding("w", "ask('save')", "save", show=False),
        Binding("l", "language", "language", show=False),
        Binding("v", "value", "value", show=False),
        Binding("x", "spec", "spec", show=False),
        Binding("question_mark", "help", "help", key_display="?"),
        Binding("q", "quit", "quit"),
        Binding("escape", "close", "close", show=False),
        Binding("ctrl+c", "interrupt", "stop", show=False, priority=True),
    ]

    def __init__(self, stepper: Stepper) -> None:
        super().__init__()
        self.stepper, self.language = stepper, LANGUAGES[0]
        self.busy = False
        self.asked = ""
        self.typed: dict[str, str] = {}  # what was typed last, by question

    def compose(self) -> ComposeResult:
        yield Static(id="heading", markup=False)
        with Horizontal(id="panes"):
            yield Ops(id="ops", classes="pane")
            with Horizontal(id="right"):
                with VerticalScroll(id="source", classes="pane"):
                    yield Static(id="code")
                with Vertical(id="looking", classes="pane"):
                    yield Values(id="values")
                    yield HeatMap(id="heat")
                    yield Static(id="element", markup=False)
                    yield Static(id="compared", markup=False)
        yield Static(id="said", markup=False)
        yield Input(id="ask")
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        self.query_one("#ops").border_title = "ops"
        self.query_one("#looking").border_title = "values"
        self.query_one("#source").border_subtitle = "l another language  x laws and bound"
        self.query_one("#ops").focus()
        self.say(f"{self.stepper.run.title}; ? lists the keys")
        self.call_after_refresh(self.show)

    def on_resize(self, event: events.Resize) -> None:
        self.set_class(event.size.width < NARROW, "narrow")
        self.call_after_refresh(self.show)

    # ---- showing ---------------------------------------------------------------------------------

    def show(self) -> None:
        """Everything, from what the stepper looks at."""
        if self.busy:
            return
        s = self.stepper
        with QUITTING, self.batch_update():
            self.query_one("#heading", Static).update(step_text.heading(s))
            self.query_one(Ops).show(step_text.tree(s), s.at)
            self._show_source()
            self.query_one(Values).show(step_text.current_values(s))
            self._show_value()
        self._compare()

    def _show_source(self) -> None:
        pane = self.query_one("#source", VerticalScroll)
        title, code = source_view(self.stepper, self.language, pane.size.width)
        pane.border_title = title
        self.query_one("#code", Static).update(code)

    def _show_value(self) -> None:
        with QUITTING:
            value = self.query_one(Values).chosen
            array = np.asarray(value.value if value is not None else None)
            number = array.dtype.kind in "fiub" and array.size > 0
            self.query_one(HeatMap).show(array if number else None)

    @on(HeatMap.Moved)
    def _show_element(self) -> None:
        with QUITTING:
            value, found = self.query_one(Values).chosen, self.query_one(HeatMap)
            lines = []
            index = found.index
            if value is not None and index is not None and found.found is not None:
                array = np.asarray(found.array)
                where = ", ".join(map(str, index))
                lines = [f"{value.name}[{where}] = {array[index]!s}", found.found.legend]
            words = step_text.predictions(self.stepper) if not self.busy else ""
            text = "\n".join(line for line in [*lines, words] if line)
            self.query_one("#element", Static).update(text)

    def _compare(self) -> None:
        """The op by every backend, in a thread: judging takes a moment, compiling many."""
        stepper, record = self.stepper, self.stepper.record

        def work() -> None:
            try:
                found = stepper.compare_record(record)
                text = found.short if self.has_class("narrow") else str(found)
            except PyLLM2Error as error:
                text = str(error)
            self.call_from_thread(self._compared, record, text)

        self.run_worker(work, thread=True, exclusive=True, group="compare")

    def _compared(self, record: Any, text: str) -> None:
        if not self.busy and record is self.stepper.record:
            with QUITTING:
                self.query_one("#compared", Static).update(text)

    def say(self, text: str) -> None:
        with QUITTING:
            self.query_one("#said", Static).update(text)

    # ---- moving ----------------------------------------------------------------------------------

    def work(self, action: Callable[[], str]) -> None:
        """Do something with the stepper in a thread, and show what it says and where we are."""
        if self.busy:
            return
        self.busy = True
        self.set_timer(PATIENCE, self._say_busy)

        def run() -> None:
            try:
                text = action()
            except PyLLM2Error as error:
                text = f"error: {error}"
            self.call_from_thread(self._worked, text)

        self.run_worker(run, thread=True, group="move")

    def _say_busy(self) -> None:
        if self.busy:
            self.say("running … (ctrl+c stops)")

    def _worked(self, text: str) -> None:
        self.busy = False
        self.say(text)
        self.show()

    def action_step(self, name: str) -> None:
        ends = {"back": "the beginning of the run", "into": "these are the smallest strides"}
        self.work(lambda: self._moved(getattr(self.stepper, name)(), ends.get(name)))

    def _moved(self, moved: bool, otherwise: str | None = None) -> str:
        error = self.stepper.error
        if not moved and error is not None:
            return f"the run ended: {type(error).__name__}: {error}"
        return "" if moved else otherwise or "the end of the run"

    def action_interrupt(self) -> None:
        if self.busy:
            self.stepper.interrupt()
        else:
            self.exit()

    @on(OptionList.OptionSelected, "#ops")
    def _op_selected(self, event: OptionList.OptionSelected) -> None:
        """Look at an op that has run, or run to it."""
        s, node = self.stepper, self.query_one(Ops).nodes[event.option_index]

        def go() -> str:
            if node.index is not None:
                s.look_at(node.index)
                return ""
            call = s.record.call
            return self._moved(s.go(lambda r: r.call == call and node.is_of(r)))

        self.work(go)

    @on(OptionList.OptionHighlighted, "#values")
    def _value_highlighted(self) -> None:
        self._show_value()

    # ---- asking ----------------------------------------------------------------------------------

    def action_ask(self, what: str) -> None:
        """Open the line at the bottom for what the user types."""
        if self.busy:
            return
        self.asked = what
        line = self.query_one("#ask", Input)
        line.placeholder = ASKED[what]
        line.border_title = what
        line.value = self.typed.get(what, "")
        line.add_class("open")
        line.focus()

    @on(Input.Submitted)
    def _typed(self, event: Input.Submitted) -> None:
        text, what = event.value.strip(), self.asked
        self.typed[what] = text
        self.action_close()
        answers: dict[str, Callable[[str], str]] = {
            "run": self._run_to,
            "p": lambda words: step_text.shown(self.stepper.evaluate(words)),
            "set": lambda words: f"{self.stepper.assign(words)} is set",
            "use": self._use,
            "save": self._save,
        }
        if text or what == "run":
            self.work(lambda: answers[what](text))

    def _run_to(self, words: str) -> str:
        if not words:
            self.stepper.go(lambda record: False)
            return "the end of the run"
        return self._moved(self.stepper.run_to(words), f"no op from here to the end has {words}")

    def _use(self, words: str) -> str:
        self.stepper.use(words)
        return f"{words} from here on"

    def _save(self, words: str) -> str:
        save_new(self.stepper.trace, words)
        return f"{words}: {len(self.stepper.records)} ops"

    def action_close(self) -> None:
        line = self.query_one("#ask", Input)
        if line.has_class("open"):
            line.remove_class("open")
            self.query_one("#ops").focus()

    # ---- looking ---------------------------------------------------------------------------------

    def action_language(self) -> None:
        """The next language; for all of them the source gets the whole width."""
        self.language = LANGUAGES[(LANGUAGES.index(self.language) + 1) % len(LANGUAGES)]
        self.set_class(self.language == ALL, "all")
        self.call_after_refresh(self._show_source)

    def action_value(self) -> None:
        found = self.query_one(Values)
        found.highlighted = ((found.highlighted or 0) + 1) % len(found.found)

    def action_spec(self) -> None:
        record = self.stepper.record
        model = "adamw" if record.phase == "update" else self.stepper.family
        self.push_screen(Page(page_text(spec.page(model, record.op), 100)))

    def action_help(self) -> None:
        self.push_screen(Page(HELP, markup=True))
