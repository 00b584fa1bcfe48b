"""A lens shows what the model computes, as numbers, text, picture and page."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

import pyllm2
from pyllm2.errors import ContextError, UsageError
from pyllm2.inference.sampling import probabilities
from pyllm2.observe.lens import Lens, lens
from pyllm2.observe.lens_html import lens_page, packed
from pyllm2.observe.lens_text import lens_text
from pyllm2.training.plot import can_plot
from tests.observe.models import fixed, language_models
from tests.support.command import in_process
from tests.support.html import check_page, check_script
from tests.support.profiles import few

FAMILIES = ("llama2", "int8", "gpt2")
IDS = [1, 5, 7, 5, 2]


@few(10)
@given(language_models())
def test_the_last_layer_is_the_model(drawn: Any) -> None:
    """Its best tokens and probabilities are those of the logits; attention adds up to 1."""
    model, ids = drawn
    found = lens(model, ids)
    cache = model.model.new_cache(len(ids))
    logits = model.model.forward(np.array(ids), 0, cache)
    p = np.array([probabilities(row, 1.0) for row in logits])
    np.testing.assert_array_equal(found.best[-1, :, 0], p.argmax(axis=-1))
    np.testing.assert_array_equal(found.best_shares[-1, :, 0], p.max(axis=-1))
    np.testing.assert_array_equal(found.shares[-1, :-1], p[range(len(ids) - 1), ids[1:]])
    assert np.isnan(found.shares[:, -1]).all()
    # A sum of at most T rounded quotients of positive numbers.
    T = len(ids)
    np.testing.assert_allclose(found.attention.sum(-1), 1, rtol=(T + 4) * 2.0**-23)
    assert not found.attention[..., ~np.tri(T, dtype=bool)].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_and_ranks(family: str) -> None:
    """A row per layer and one for the embedding; a rank counts more probable tokens."""
    model = fixed(family)
    found = lens(model, IDS, best=3)
    NH = found.attention.shape[1]
    assert found.attention.shape == (2, NH, 5, 5)
    assert found.best.shape == found.best_shares.shape == (3, 5, 3)
    assert found.norms.shape == found.ranks.shape == (3, 5)
    for row, t in np.ndindex(3, 4):
        named = found.best[row, t].tolist()
        following = IDS[t + 1]
        if following in named:
            assert found.ranks[row, t] <= named.index(following)
        else:
            assert found.ranks[row, t] >= 3 or found.shares[row, t] in found.best_shares[row, t]
    assert found.texts == [f"<{i}>" for i in IDS]
    loss = model.loss(np.array([IDS[:-1]]), np.array([IDS[1:]])) if family != "int8" else None
    if loss is not None:
        assert found.loss == pytest.approx(loss, rel=1e-5)  # means of float32 losses
    streams = lens(model, IDS[:1])
    assert np.isnan(streams.loss)


def test_norms_are_those_of_the_stream() -> None:
    model = fixed("llama2")
    t = pyllm2.trace(model, IDS)
    expected = np.linalg.norm(t["layer 1", "residual", "of w2"].output.astype(np.float64), axis=-1)
    np.testing.assert_allclose(lens(model, IDS).norms[2], expected, rtol=1e-12)


def test_new_tokens_are_the_most_probable() -> None:
    """And the context is respected."""
    model = fixed("llama2")
    found = lens(model, IDS, new_tokens=3)
    assert found.tokens[len(IDS) :] == found.best[-1, len(IDS) - 1 : -1, 0].tolist()
    with pytest.raises(ContextError):
        lens(model, IDS, new_tokens=100)


def bundled(**options: Any) -> Lens:
    return lens(pyllm2.load(backend="numpy"), "Once upon a time", **options)


def test_texts_have_their_blanks() -> None:
    assert bundled().texts == ["<1>", "Once", " upon", " a", " time"]


def test_text_for_a_terminal() -> None:
    """Every layer, its best token; no line is too long; maps of one layer on request."""
    found = bundled(new_tokens=6)
    text = lens_text(found, 90)
    tables = text.partition("perplexity")[2]  # before them the text flows
    assert max(map(len, tables.splitlines())) <= 90
    assert text.count("\nlayer 4 ") == 2  # two blocks of tokens
    assert re.search(r"Once\[\d+%\] upon\[", text)
    assert "perplexity" in text
    assert "head 7" in lens_text(found, 90, layer=2)
    maps = lens_text(found, 90, layer=2).partition("layer 2: ")[2]
    assert max(map(len, maps.splitlines())) <= 90
    assert "\x1b" not in text
    assert "\x1b[38;2;" in lens_text(found, 90, coloured=True, layer=0)
    assert "\n" not in lens_text(found, 90).splitlines()[1]


def test_control_characters_are_not_printed() -> None:
    found = bundled()
    found.texts[1] = "\x1b[2J\n"
    assert "\x1b" not in lens_text(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_page_has_the_numbers(family: str, tmp_path: Path) -> None:
    """One file that loads nothing; attention to 1/65535; scripts that an engine can parse."""
    found = lens(fixed(family), IDS)
    text = lens_page(found)
    page = check_page(text)
    check_script("\n".join(page.scripts), tmp_path)
    assert "http:" not in text.replace("http://www.w3.org", "")
    data = json.loads(re.findall('<script id="data"[^>]*>(.*?)</script>', text, re.DOTALL)[0])
    assert data["tokens"] == IDS
    np.testing.assert_allclose(data["norms"], found.norms, rtol=1e-6)
    assert data["shares"][0][-1] is None
    parts = np.frombuffer(base64.b64decode(data["attention"]), "<u2").reshape(2, -1, 15) / 65535
    rows, columns = np.tril_indices(5)
    # Half a step of the rounding, and that of float32.
    np.testing.assert_allclose(parts, found.attention[..., rows, columns], atol=0.51 / 65535)


def test_a_page_of_a_broken_model() -> None:
    """NaN everywhere: the page is still JSON, the text still text."""
    found = bundled()
    for array in (found.norms, found.best_shares, found.shares, found.attention):
        array[...] = np.nan
    check_page(lens_page(found))
    assert "nan" in lens_text(found)
    assert set(base64.b64decode(packed(found.attention))) == {0}


def test_a_picture(tmp_path: Path) -> None:
    if not can_plot():
        pytest.skip("no matplotlib here")
    from pyllm2.observe.lens_png import save_lens

    found = lens(fixed("gpt2"), IDS)
    found.texts[0] = "$\\frac"  # not mathematics
    save_lens(found, tmp_path / "a.png", 0)
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    found.tokens = list(range(100))
    with pytest.raises(UsageError, match="--html"):
        save_lens(found, tmp_path / "b.png")


def test_the_command(tmp_path: Path) -> None:
    out = in_process(["lens", "--layer", "1", "--backend", "numpy"], tmp_path)
    assert (out.code, out.err) == (0, b"")
    assert b"layer 4" in out.out
    assert b"head 3" in out.out
    wrote = in_process(["lens", "--html", "a.html", "--backend", "numpy"], tmp_path)
    assert (wrote.code, wrote.out) == (0, b"")
    check_page((tmp_path / "a.html").read_text())


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["--layer", "5"], 2),
        (["--html", "nosuch/a.html"], 1),
        (["--ids", "99999"], 1),
        (["--new-tokens", "99999"], 1),
        (["nosuch.bin"], 1),
    ],
)
def test_what_is_wrong_is_one_line(argv: list[str], code: int, tmp_path: Path) -> None:
    outcome = in_process(["lens", "--backend", "numpy", *argv], tmp_path)
    assert (outcome.code, outcome.out) == (code, b"")
    assert outcome.err.count(b"\n") == 1
