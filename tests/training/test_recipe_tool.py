"""tools/recipe.py: every combination is a row, the best first; runs are equally long."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from pyllm2.llama2 import family
from pyllm2.llama2.config import Llama2Config

pytest.importorskip("sentencepiece")
TOOL = Path(__file__).parents[2] / "tools" / "recipe.py"
TEXT = "The cat saw a dog.\n\nThe dog saw a cat and ran.\n\n" * 40
ALWAYS = "--backend numpy --threads 1 --fixed context=16 --fixed total=32"


@pytest.fixture
def tool() -> Any:
    spec = importlib.util.spec_from_file_location("recipe", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(
    tool: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *words: str,
) -> tuple[list[list[str]], str]:
    """The cells of the table's rows, and stderr."""
    monkeypatch.setattr("sys.argv", ["recipe.py", *words, *ALWAYS.split()])
    assert tool.main() == 0
    out, err = capsys.readouterr()
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in out.splitlines()], err


def test_a_table_of_recipes(
    tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two texts, two seeds; a rate of 0 learns nothing and is last; a row is the mean of seeds."""
    texts = [tmp_path / "one.txt", tmp_path / "two.txt"]
    for text in texts:
        text.write_text(TEXT)
    words = "--updates 20 --vary learning_rate=0,0.01 --vary seed=1,2 --fixed vocab=280".split()
    shape = ["--fixed", "shape=dim=8,layers=1,heads=2"]
    rows, err = run(tool, monkeypatch, capsys, *map(str, texts), *words, *shape)
    assert rows[0] == ["learning_rate", "one.txt", "two.txt"]
    assert [row[0] for row in rows[2:]] == ["0.01", "0"]
    single = [float(line.split()[1]) for line in err.splitlines() if line.startswith("one.txt")]
    assert len(single) == 4
    assert float(rows[3][1]) == pytest.approx((single[0] + single[1]) / 2, abs=1e-4)
    assert err.count(" 640 tokens,") == 8


def test_a_trained_model_goes_on(
    tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--init keeps the model's shape and tokenizer, and takes a context beyond its own."""
    (tmp_path / "text").write_text(TEXT)
    config = Llama2Config(8, 24, 1, 2, 2, 257, 8)
    family.save_parameters(tmp_path / "m.bin", config, family.initial_parameters(config, 1))
    words = f"--tokens 640 --init {tmp_path}/m.bin --tokenizer bytes --vary learning_rate=0,0.01"
    rows, err = run(tool, monkeypatch, capsys, f"{tmp_path}/text", *words.split())
    assert [row[0] for row in rows[2:]] == ["0.01", "0"]
    assert err.count(" 640 tokens,") == 2
