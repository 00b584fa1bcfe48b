"""Parts of the screen of `step`: the list of ops, the source, the heat map."""

from __future__ import annotations

import functools
from typing import Any

from rich.console import Group, RenderableType
from rich.segment import Segment
from rich.style import Style
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text
from textual import events
from textual.binding import Binding
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from pyllm2.observe import heat
from pyllm2.observe.sources import documentation, package_of, source
from pyllm2.observe.spec import without_docstring
from pyllm2.observe.spec_text import NARROWEST
from pyllm2.observe.step_text import Node, Value
from pyllm2.observe.stepper import Stepper

CURSOR = (255, 240, 0)
ALL = "all"
LANGUAGES = ("NumPy", "Numba", "C", ALL)
LARGEST_CELL = 4  # characters that an element of a small array is wide
SYNTAX = {"NumPy": "python", "Numba": "python", "C": "c"}


class Ops(OptionList):
    """The ops of the pass; the one that we are at is highlighted."""

    nodes: list[Node]

    def show(self, nodes: list[Node], at: int) -> None:
        self.nodes = nodes
        options, here = [], 0
        for n, node in enumerate(nodes):
            later = node.index is None or node.index > at
            style = "bold" if node.here else "dim" if later else ""
            mark = "▶ " if node.here else "  "
            if node.depth == 0 and node.layer is not None:
                mark = "▾ " if node.here else "▸ "
            label = Text(f"{' ' * node.depth}{mark}{node.label}", style)
            label.no_wrap, label.overflow = True, "ellipsis"
            options.append(Option(label))
            here = n if node.here else here
        self.set_options(options)
        self.highlighted = here


class Values(OptionList):
    """The inputs and results of the op, a line or two each."""

    found: tuple[Value, ...] = ()

    def show(self, found: list[Value]) -> None:
        """The value of the same name stays chosen; else the first result is."""
        chosen, names = self.highlighted, [v.name for v in self.found]
        self.found = tuple(found)
        name = names[chosen] if chosen is not None and chosen < len(names) else ""
        options = []
        for value in found:
            label = Text(f"{value.name} ", "bold")
            label.append(f"{value.shape}  ", "")
            label.append(value.numbers, "")
            label.append(f"  {value.source}", "dim")
            label.no_wrap, label.overflow = True, "ellipsis"
            options.append(Option(label))
        self.set_options(options)
        now = [v.name for v in found]
        results = [n for n, v in enumerate(found) if v.source in ("result", "variable")]
        self.highlighted = now.index(name) if name in now else results[0] if results else 0

    @property
    def chosen(self) -> Value | None:
        return self.found[min(self.highlighted or 0, len(self.found) - 1)] if self.found else None


def source_view(stepper: Stepper, language: str, width: int) -> tuple[str, RenderableType]:
    """Title, and formula and source of the op: in one language, or side by side in all.

    language: ALL, or one of LANGUAGES; if there is room for all of them, all
    """
    record = stepper.record
    package = package_of(stepper.family, record.op)
    found = tuple(map(without_docstring, source(stepper.family, record.op)))
    if stepper.stride == "line":
        language = "NumPy"
    elif width >= len(found) * NARROWEST:
        language = ALL
    chosen = [s for s in found if language in (ALL, s.language)] or list(found[:1])
    text = documentation(package, record.op)
    here = stepper.lines[stepper.line].number if stepper.stride == "line" else 0
    codes = [_code(s, here) for s in chosen]
    heads = [Text(f"{s.language}, {s.place}", "dim") for s in chosen]
    columns = Table.grid(padding=(0, 2), expand=True)
    for _ in chosen:
        columns.add_column(ratio=1)
    columns.add_row(*heads)
    columns.add_row(*codes)
    names = " | ".join(s.language for s in chosen)
    return f"{record.op} · {names}", Group(Text(text), Text(), columns)


def _code(found: Any, here: int) -> Syntax:
    lines = {here} if here else set()
    return Syntax(
        found.text,
        SYNTAX[found.language],
        theme="ansi_dark",
        background_color="default",
        start_line=found.line,
        line_numbers=bool(here),
        highlight_lines=lines,
        word_wrap=True,
    )


class HeatMap(Widget, can_focus=True):
    """An array in half blocks; the arrow keys or the mouse move a cursor over its elements."""

    DEFAULT_CSS = "HeatMap { height: 1fr; }"
    BINDINGS = [  # noqa: RUF012 (textual reads it from the class)
        Binding("up", "move(-1, 0)", "move", show=False),
        Binding("down", "move(1, 0)", "move", show=False),
        Binding("left", "move(0, -1)", "move", show=False),
        Binding("right", "move(0, 1)", "move", show=False),
        Binding("home", "move(0, -9999)", "move", show=False),
        Binding("end", "move(0, 9999)", "move", show=False),
    ]

    class Moved(Message):
        """The cursor is on another element."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.array: Any = None
        self.found: heat.Picture | None = None
        self.zoom = 1  # characters, and half lines, per cell
        self.cursor = (0, 0)

    def show(self, array: Any) -> None:
        """An array of numbers, or None."""
        self.array = array
        self._draw()

    def on_resize(self) -> None:
        self._draw()

    def _draw(self) -> None:
        columns, rows = self.size.width, 2 * self.size.height
        shown = self.array is not None and columns > 0 and rows > 0
        self.found = None
        for zoom in range(LARGEST_CELL, 0, -1):
            if shown and columns >= zoom and rows >= zoom:
                self.zoom = zoom
                self.found = heat.picture(self.array, columns // zoom, rows // zoom)
                if self.found.elements == (1, 1):
                    break
        self._keep_inside()
        self.refresh()
        self.post_message(self.Moved())

    def _keep_inside(self) -> None:
        if self.found is None:
            return
        R, K = self.found.values.shape
        row, column = self.cursor
        row, column = min(max(row, 0), R - 1), min(max(column, 0), K - 1)
        while column > 0 and self.found.index(row, column) is None:
            column -= 1
        self.cursor = row, column

    @property
    def index(self) -> tuple[int, ...] | None:
        """Of the element under the cursor."""
        return self.found.index(*self.cursor) if self.found is not None else None

    def action_move(self, rows: int, columns: int) -> None:
        self._go(self.cursor[0] + rows, self.cursor[1] + columns)

    def _go(self, row: int, column: int) -> None:
        self.cursor = row, column
        self._keep_inside()
        self.refresh()
        self.post_message(self.Moved())

    def on_mouse_move(self, event: events.MouseMove) -> None:
        self._at(event.x, event.y, event)

    def on_click(self, event: events.Click) -> None:
        self._at(event.x, event.y, event)

    def _at(self, x: int, y: int, event: events.MouseEvent) -> None:
        """The upper cell of a character with a plain pointer, the lower one with shift."""
        self._go((2 * y + event.shift) // self.zoom, x // self.zoom)

    def render_line(self, y: int) -> Strip:
        if self.found is None:
            return Strip.blank(self.size.width, self.rich_style)
        zoom, columns = self.zoom, self.found.values.shape[1]
        cells = []
        for k in range(columns):
            pair = [self._colour(row // zoom, k) for row in (2 * y, 2 * y + 1)]
            text, style = _cell(pair[0], pair[1])
            # Where nothing is drawn, and behind half a cell, the ground is that of the pane.
            cells.append(Segment(text * zoom, self.rich_style + style))
        return Strip(cells, columns * zoom).adjust_cell_length(self.size.width, self.rich_style)

    def _colour(self, row: int, column: int) -> heat.Colour | None:
        assert self.found is not None
        if row >= len(self.found.values):
            return None
        if self.has_focus and self.cursor == (row, column):
            return CURSOR
        return self.found.colour(row, column)


@functools.lru_cache(4096)
def _cell(top: heat.Colour | None, below: heat.Colour | None) -> tuple[str, Style]:
    words = [None if c is None else f"rgb({c[0]},{c[1]},{c[2]})" for c in (top, below)]
    if top is None:
        return ("▄", Style(color=words[1])) if below is not None else (" ", Style())
    return "▀", Style(color=words[0], bgcolor=words[1])
