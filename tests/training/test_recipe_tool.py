"""tools/recipe.py: every combination is a row, the best first."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")
TOOL = Path(__file__).parents[2] / "tools" / "recipe.py"


def test_a_table_of_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twenty updates per row; a rate of 0 learns nothing and is last."""
    spec = importlib.util.spec_from_file_location("recipe", TOOL)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    (tmp_path / "text").write_text("The cat saw a dog.\n\nThe dog saw a cat and ran.\n\n" * 40)
    argv = f"recipe.py {tmp_path}/text --tokens 1 --vary learning_rate=0,0.01 --backend numpy"
    fixed = "vocab=280 context=16 total=32 shape=dim=8,layers=1,heads=2".split()
    words = [word for setting in fixed for word in ("--fixed", setting)]
    monkeypatch.setattr("sys.argv", [*argv.split(), "--threads", "1", *words])
    assert tool.main() == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[-1] for row in rows] == ["learning_rate=0.01", "learning_rate=0"]
