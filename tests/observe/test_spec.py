"""Every op has a page with formula, three sources, laws, bound and the original's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyllm2 import backends
from pyllm2.errors import UsageError
from pyllm2.observe import spec, spec_text
from pyllm2.observe.spec_measured import measured_shares
from pyllm2.testing import tables
from tests.support.command import in_process
from tests.support.html import check_page

OPS = [(model, op) for model in spec.PACKAGES for op in spec.ops_of(model)]


@pytest.mark.parametrize(("model", "op"), OPS)
def test_an_op_has_a_whole_page(model: str, op: str) -> None:
    """All sources are found and begin with the function; an op of the tables has laws and bound."""
    page = spec.page(model, op)
    assert [s.language for s in page.sources] == ["NumPy", "Numba", "C"]
    assert all(f"{op}(" in s.text for s in page.sources)
    assert page.summary
    assert '"""' not in page.sources[0].text
    if op in tables[model]:
        assert len(page.laws) == len(tables[model][op].laws) > 0
        assert page.bound is not None
        assert page.bound.derivation
    for s in page.sources:
        lines = (spec.PACKAGE.parent / s.file).read_text().splitlines()
        assert f"{op}(" in "".join(lines[s.line - 1 : s.line + 3])


def test_the_tables_have_no_op_without_a_page() -> None:
    assert {(model, op) for model, table in tables.items() for op in table} <= set(OPS)


def test_originals_are_those_of_the_concordance() -> None:
    """A row, a row with several names, a variable, GPT-2's rule, none."""
    assert spec.original_names("llama2", "rmsnorm") == ("rmsnorm",)
    assert spec.original_names("llama2", "softmax") == ("softmax",)
    assert "apply_rotary_emb" in spec.original_names("llama2", "rope")
    assert "fcr (the argument cos)" in spec.original_names("llama2", "rope")
    assert spec.original_names("gpt2", "gelu_backward") == ("gelu_backward",)
    assert spec.original_names("adamw", "adamw_update") == ("gpt2_update",)
    assert spec.original_names("llama2", "swiglu") == ()


def test_an_unknown_op_names_its_neighbours() -> None:
    with pytest.raises(UsageError, match="'rmsnrm': did you mean rmsnorm"):
        spec.pages("rmsnrm")
    with pytest.raises(UsageError, match="`pyllm2 spec` lists them"):
        spec.pages("zzz")


def test_sources_stand_side_by_side_where_there_is_room() -> None:
    """At 200 columns a line has parts of all three; at 100 they follow each other."""
    page = spec.page("llama2", "matmul")
    wide, narrow = (spec_text.page_text(page, width) for width in (200, 100))
    assert any(line.count(" │ ") == 2 and "C, csrc" in line for line in wide.splitlines())
    assert " │ " not in narrow
    assert max(map(len, wide.splitlines())) <= 200


def test_no_line_of_code_is_lost_when_folded() -> None:
    line = "    return " + " + ".join(f"a{i}" for i in range(40))
    parts = spec_text.fold(line, 30)
    assert max(map(len, parts)) <= 30
    assert "".join(p.strip() for p in parts).replace(" ", "") == line.replace(" ", "")


def test_measured_shares_are_inside_and_not_zero() -> None:
    """The backends that run here; a wrong op is far outside."""
    shares = measured_shares("llama2", "rmsnorm", ["numpy"], 20)
    assert 0 < shares["numpy"].share <= 1
    assert measured_shares("llama2", "quantize", ["numpy"]) == {}


def test_the_site_links_every_page(tmp_path: Path) -> None:
    """Each file is well-formed, every relative link leads to a file, the bound is on the page."""
    outcome = in_process(["spec", "--html", str(tmp_path)], tmp_path)
    assert outcome.code == 0, outcome.err
    files = sorted(tmp_path.rglob("*.html"))
    assert len(files) == len(OPS) + 1
    for file in files:
        page = check_page(file.read_text())
        for link in page.links:
            assert link.startswith("data:") or (file.parent / link).is_file(), (file, link)
    text = check_page((tmp_path / "llama2" / "rmsnorm.html").read_text()).words
    for expected in ("sqrt(mean(x²) + eps)", "void llama2_rmsnorm", "rows_are_independent"):
        assert expected in text


def test_the_command(tmp_path: Path) -> None:
    """The list, an op of two models, one of them, errors."""
    assert b"matmul_q8" in in_process(["spec"], tmp_path).out
    both = in_process(["spec", "matmul_backward"], tmp_path).out.decode()
    assert "llama2 matmul_backward" in both
    assert "gpt2 matmul_backward" in both
    one = in_process(["spec", "matmul_backward", "--model", "gpt2"], tmp_path).out.decode()
    assert "llama2 matmul_backward" not in one
    assert in_process(["spec", "rmsnorm", "--model", "gpt2"], tmp_path).code == 2
    assert in_process(["spec", "--html", "x", "rmsnorm"], tmp_path).code == 2
    measured = in_process(["spec", "residual", "--measure"], tmp_path).out.decode()
    assert "numpy 0" in measured
    assert backends.default() in measured
