"""The screen of `pyllm2 step`, driven by keys and mouse."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyllm2.observe.files import load_trace
from pyllm2.observe.step_runs import PromptRun, training_run
from pyllm2.observe.stepper import Stepper
from tests.observe.models import fixed

pytest.importorskip("textual", reason="the panes need textual")
from textual.widgets import Footer, Input, Static

from pyllm2.observe.step_app import Page, StepApp
from pyllm2.observe.step_widgets import HeatMap, Ops, Values

IDS = [1, 5, 7, 5]
Look = Callable[["Screen"], Coroutine[Any, Any, None]]


class Screen:
    """An app in a test: presses keys and waits until all that they begin is done."""

    def __init__(self, app: StepApp, pilot: Any) -> None:
        self.app, self.pilot, self.stepper = app, pilot, app.stepper

    async def press(self, *keys: str) -> None:
        for key in keys:
            await self.pilot.press(key)
            await self.rest()

    async def rest(self) -> None:
        await self.pilot.pause()
        while any(not worker.is_finished for worker in self.app.workers):  # some are cancelled
            await asyncio.sleep(0.005)
        await self.pilot.pause()

    async def type(self, key: str, text: str) -> None:
        """Open a question by its key, and answer it."""
        await self.press(key)
        self.app.query_one("#ask", Input).value = text
        await self.press("enter")

    def text(self, name: str) -> str:
        return str(self.app.query_one(name, Static).render())

    @property
    def drawn(self) -> str:
        """All characters on the screen."""
        lines = self.app.screen._compositor.render_strips()
        return "\n".join("".join(segment.text for segment in line) for line in lines)


def on_screen(look: Look, run: Any = None, size: tuple[int, int] = (110, 26)) -> None:
    async def main(stepper: Stepper) -> None:
        app = StepApp(stepper)
        async with app.run_test(size=size) as pilot:
            screen = Screen(app, pilot)
            await screen.rest()
            await look(screen)

    run = run or PromptRun(fixed("llama2"), IDS, new_tokens=1)
    with Stepper(run, compare_with=["numpy"]) as stepper:
        asyncio.run(main(stepper))


def test_the_three_panes() -> None:
    """Ops, formula and source, values with a heat map, backends, help line."""

    async def look(screen: Screen) -> None:
        await screen.press("n", "n")
        drawn = screen.drawn
        for words in (
            "op 2 of 33 · token 1 of 4 1 · layer 0 wq matmul · numpy",
            "attention_norm rmsnorm",
            "layer 1",
            "out[t, i] = Σ_j",
            "return x @ w.T",
            "pyllm2/llama2/ops.py",
            "x (1, 16)",
            "from op 1",
            "▀",
            "out[0, 0] = ",
            "backend             ulp  of bound",
            "n next",
            "? help",
        ):
            assert words in drawn, words

    on_screen(look, size=(150, 32))


@pytest.mark.parametrize("size", [(80, 24), (160, 42), (40, 12)])
def test_any_size_fits(size: tuple[int, int]) -> None:
    """No line is wider than the screen; at 80 columns the whole help line can be read."""

    async def look(screen: Screen) -> None:
        await screen.press("n", "n", "n")
        lines = screen.drawn.splitlines()
        assert len(lines) == size[1]
        assert {len(line) for line in lines} == {size[0]}
        if size[0] >= 80:
            assert "q quit" in lines[-1]
            assert "op 3 of 33" in lines[0]
            assert "matmul" in screen.drawn
            assert "▀" in screen.drawn

    on_screen(look, size=size)


def test_resizing_moves_the_panes() -> None:
    """Values stand beside the source where there is room, and below it where there is not."""

    async def look(screen: Screen) -> None:
        source, looking = (screen.app.query_one(name) for name in ("#source", "#looking"))
        assert looking.region.x > source.region.x
        await screen.pilot.resize_terminal(80, 24)
        await screen.rest()
        assert looking.region.x == source.region.x
        assert looking.region.y > source.region.y
        await screen.pilot.resize_terminal(120, 24)
        await screen.rest()
        assert looking.region.x > source.region.x

    on_screen(look)


def test_keys_move() -> None:
    async def look(screen: Screen) -> None:
        s = screen.stepper
        await screen.press("n", "n", "b", "space")
        assert s.at == 2
        await screen.press("o")
        assert (s.record.layer, s.stride) == (1, "layer")
        await screen.press("i", "i")
        assert s.stride == "line"
        assert "mean_square =" in screen.drawn
        await screen.press("n")
        assert "mean_square (1, 1)" in screen.drawn
        await screen.press("o", "f")
        assert "token 2 of 4" in screen.text("#heading")
        await screen.press("b", "f")
        assert screen.text("#said") == ""
        await screen.press(*"ffff")
        assert s.at_end
        assert screen.text("#said") == "the end of the run"

    on_screen(look)


def test_questions() -> None:
    """run to, evaluate, set, use, save: an answer, or an error in one line; escape leaves."""

    async def look(screen: Screen) -> None:
        s = screen.stepper
        await screen.type("r", "layer=1 op=attention")
        assert s.record.name == "layer 1 attention"
        await screen.type("p", "q.shape")
        assert screen.text("#said") == "(1, 4, 4)"
        await screen.type("p", "nosuch")
        assert screen.text("#said").startswith("error: nosuch: NameError")
        await screen.type("s", "q[0] = 0")
        assert (s.record.inputs["q"] == 0).all()
        assert "changed" in screen.text("#heading")
        await screen.type("u", "fortran")
        assert "choose from" in screen.text("#said")
        await screen.type("u", "numpy")
        assert screen.text("#said") == "numpy from here on"
        await screen.type("r", "colour=1")
        assert "error: colour=1: expected one of" in screen.text("#said")
        await screen.press("p")
        assert screen.app.query_one("#ask", Input).has_class("open")
        await screen.press("n", "escape", "n")  # the first n is typed, the second moves
        assert not screen.app.query_one("#ask", Input).has_class("open")
        assert s.record.name == "layer 1 wo matmul"
        await screen.type("r", "")
        assert s.at_end

    on_screen(look)


def test_saving(tmp_path: Path) -> None:
    async def look(screen: Screen) -> None:
        await screen.press("n", "n")
        await screen.type("w", str(tmp_path / "t.npz"))
        assert screen.text("#said").endswith("t.npz: 3 ops")
        await screen.type("w", str(tmp_path / "t.png"))
        assert "ends in .npz" in screen.text("#said")

    on_screen(look)
    assert len(load_trace(tmp_path / "t.npz")) == 3


def test_the_tree_leads_anywhere() -> None:
    """Enter or a click: back to an op that has run, on to one that has not, into a layer."""

    async def look(screen: Screen) -> None:
        s, ops = screen.stepper, screen.app.query_one(Ops)
        await screen.press("n", "n", "n", "up", "up", "enter")
        assert s.record.name == "layer 0 attention_norm rmsnorm"
        assert len(s.records) == 4
        (line,) = [n for n, node in enumerate(ops.nodes) if node.label == "swiglu of w3"]
        await screen.pilot.click(Ops, offset=(6, line + 1))
        await screen.rest()
        assert s.record.name == "layer 0 swiglu of w3"
        (line,) = [n for n, node in enumerate(ops.nodes) if node.label == "layer 1"]
        await screen.pilot.click(Ops, offset=(6, line + 1))
        await screen.rest()
        assert s.record.name == "layer 1 attention_norm rmsnorm"
        await screen.press("end", "enter")
        assert s.record.name == "token_embedding matmul"
        assert "next: " in screen.text("#element")

    on_screen(look)


def test_a_cursor_reads_the_array() -> None:
    """Arrow keys and mouse; the value is that of the element."""

    async def look(screen: Screen) -> None:
        await screen.press("n")
        heat, out = screen.app.query_one(HeatMap), screen.stepper.record.output
        await screen.press("tab", "tab", "tab", "right", "right")
        assert heat.has_focus
        assert heat.index == (0, 2)
        assert screen.text("#element").startswith(f"out[0, 2] = {out[0, 2]!s}")
        await screen.press("end")
        assert heat.index is not None
        await screen.pilot.hover(HeatMap, offset=(heat.zoom, 0))
        await screen.rest()
        assert heat.index == (0, 1)
        await screen.press("v")
        chosen = screen.app.query_one(Values).chosen
        assert chosen is not None
        assert chosen.name == "x"
        assert screen.text("#element").startswith("x[0, ")

    on_screen(look)


def test_languages() -> None:
    """One after another, then side by side; a wide screen shows all at once."""

    async def look(screen: Screen) -> None:
        await screen.press("n", "l")
        assert "ops_numba.py" in screen.drawn
        await screen.press("l")
        assert "llama2_rmsnorm(" in screen.drawn
        await screen.press("l")
        assert "NumPy | Numba | C" in screen.drawn
        await screen.press("l")
        assert "rmsnorm · NumPy" in screen.drawn

    async def wide(screen: Screen) -> None:
        await screen.press("n")
        assert "NumPy | Numba | C" in screen.drawn

    on_screen(look)
    on_screen(wide, size=(400, 50))


def test_pages_over_the_screen() -> None:
    """? has every key; x the laws and the bound of the op; escape closes."""

    async def look(screen: Screen) -> None:
        await screen.press("question_mark")
        assert isinstance(screen.app.screen, Page)
        for words in ("finish: the first op of the next token", "not finite"):
            assert words in screen.drawn
        await screen.press("escape", "n", "x")
        assert isinstance(screen.app.screen, Page)
        assert "rows_are_independent" in screen.app.screen.text
        await screen.press("escape")
        assert not isinstance(screen.app.screen, Page)

    on_screen(look)


def test_training_is_stepped_through() -> None:
    async def look(screen: Screen) -> None:
        await screen.type("r", "phase=backward layer=0")
        assert "update 1 of 1, backward" in screen.text("#heading")
        assert "layer 0, backward" in screen.drawn
        await screen.type("r", "op=adamw_update")
        assert "w_new" in screen.drawn
        await screen.press("x")
        assert "adamw" in screen.app.screen.text  # type: ignore[attr-defined]

    on_screen(look, training_run(fixed("gpt2"), IDS))


def test_without_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """With NO_COLOR every colour on the screen is a grey."""
    monkeypatch.setitem(os.environ, "NO_COLOR", "1")

    async def look(screen: Screen) -> None:
        await screen.press("n")
        svg = screen.app.export_screenshot()
        lines = screen.app.screen._compositor.render_strips()
        filtered = [
            line.apply_filter(f, screen.app.screen.styles.background)
            for line in lines
            for f in screen.app._filters
            if type(f).__name__ == "Monochrome"
        ]
        assert filtered
        for line in filtered:
            for segment in line:
                for colour in (segment.style.color, segment.style.bgcolor) if segment.style else ():
                    if colour is not None and colour.triplet is not None:
                        assert len(set(colour.triplet)) == 1
        assert svg

    on_screen(look)


def test_a_value_that_is_no_array_has_no_picture() -> None:
    """The norm of a gradient, a number of heads."""

    async def look(screen: Screen) -> None:
        await screen.type("r", "op=attention_forward")
        values = screen.app.query_one(Values)
        values.highlighted = [v.name for v in values.found].index("NH")
        await screen.rest()
        assert screen.app.query_one(HeatMap).index is not None  # one cell
        await screen.type("r", "op=global_norm")
        assert np.isfinite(screen.stepper.record.output)

    on_screen(look, training_run(fixed("gpt2"), IDS))


def test_leaving() -> None:
    """q, and ctrl+c where nothing runs."""
    for key in ("q", "ctrl+c"):

        async def look(screen: Screen, key: str = key) -> None:
            assert screen.app.query_one(Footer)
            await screen.pilot.press(key)
            await screen.pilot.pause()
            assert screen.app._exit

        on_screen(look)
