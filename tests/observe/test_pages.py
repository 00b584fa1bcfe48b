"""The pages in a real browser: clicks, keys, pointer, phone, dark, no complaint, no network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyllm2.observe.lens import lens
from pyllm2.observe.lens_html import lens_page
from pyllm2.observe.playback import playback_page
from pyllm2.observe.trace import trace
from tests.observe.models import fixed
from tests.support.chromium import PROGRAM, Browser, browser

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here")
IDS = [1, 5, 7, 5]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium")) as found:
        yield found


def narrow_enough(page: Browser) -> bool:
    """Whether nothing makes the page wider than the screen."""
    return bool(page.value("document.documentElement.scrollWidth <= innerWidth"))


def test_the_lens(page: Browser, tmp_path: Path) -> None:
    found = lens(fixed("llama2"), IDS)
    file = tmp_path / "lens.html"
    file.write_text(lens_page(found))
    page.open(file)
    assert page.text("#place") == "token 4 of 4"
    page.key("ArrowLeft", "ArrowLeft", "ArrowDown")
    assert page.text("#place") == "token 2 of 4"
    assert page.value("document.getElementById('layer').value") == "0"
    assert "<5>" in page.text("#detail")
    assert "What came is" in page.text("#detail")
    page.click("#text button:first-child")
    assert page.text("#place") == "token 1 of 4"
    page.key("End", "]", "]")
    assert "layer 0, head 2" in page.text("#which")
    page.click("#heads figure:nth-child(2)")
    assert "head 1" in page.text("#which")
    page.move("#large", 0.1, 0.9)
    weight = found.attention[0, 1, 3, 0]
    words = page.text("#weight").partition(": ")[2]
    assert float(words) == pytest.approx(weight, abs=0.51 / 65535 + 1e-5)  # 5 digits are shown
    page.move("#large", 0.9, 0.1)
    assert "the future" in page.text("#weight")
    page.click("#lens tr:nth-child(2) td:nth-child(3)")
    assert page.text("#place") == "token 2 of 4"
    page.click("#attended")
    page.click("#following")
    assert page.text("#place") == "token 3 of 4"
    page.open(file, 360, 700, dark=True)
    assert narrow_enough(page)
    assert page.value("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 27)"
    assert page.complaints == []


def test_the_playback(page: Browser, tmp_path: Path) -> None:
    found = trace(fixed("llama2"), IDS, new_tokens=1)
    file = tmp_path / "step.html"
    file.write_text(playback_page(found))
    page.open(file)
    assert "op 1 of" in page.text("#heading")
    page.key("n", "ArrowRight")
    assert "layer 0 wq matmul" in page.text("#heading")
    assert "x @ w.T" in page.text("#code")
    page.key("l", "l")
    assert "llama2_matmul" in page.text("#code")
    page.move("#map", 0.001, 0.001)
    assert float(page.text("#said").partition("= ")[2]) == pytest.approx(
        float(found[2].output[0, 0]), rel=1e-4
    )
    page.key("v")
    assert "x" in page.text("#values [aria-selected=true] th")
    page.key("b")
    assert "rmsnorm" in page.text("#heading")
    page.key("f")
    assert "token 5" in page.text("#heading")
    page.key("[", "End")
    assert f"op {len(found)} of {len(found)}" in page.text("#heading")
    page.key("Home")
    page.click("#following")
    assert "op 2 of" in page.text("#heading")
    page.click("#ops details[open] [data-op='5']")
    assert found[5].name in page.text("#heading")
    page.click("#values tr:nth-child(2)")
    assert page.text("#values [aria-selected=true] th") == "cos"
    page.open(file, 360, 700, dark=True)
    assert narrow_enough(page)
    assert page.complaints == []
