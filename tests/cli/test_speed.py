"""The speed line measures generation: kernels are compiled or loaded before the clock starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyllm2 import backends
from pyllm2.cli import speed
from pyllm2.llama2.checkpoint import export
from tests.support.command import in_process
from tests.support.llama2_files import lay_out


@pytest.mark.parametrize(
    "argv",
    [
        ("generate", "m.bin", "--tokenizer", "t.bin", "--prompt", "a cab"),
        ("generate", "q8.bin", "--tokenizer", "t.bin", "--prompt", "a cab"),
        ("chat", "m.bin", "--tokenizer", "t.bin", "--max-new-tokens", "3", "--prompt", ""),
        ("run", "m.bin", "-z", "t.bin", "-i", "a cab"),
    ],
    ids=" ".join,
)
def test_no_kernel_is_loaded_after_the_warm_up(
    argv: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numba is asked for no kernel once `warm_up` has returned."""
    if backends.why_not("numba") is not None:
        pytest.skip("needs numba")
    from numba.core.dispatcher import Dispatcher

    lay_out(tmp_path)
    export(tmp_path / "m.bin", tmp_path / "q8.bin", "v2", 4)
    asked: list[str] = []
    compile, warm_up = Dispatcher.compile, speed.warm_up

    def recorded(self: Any, signature: Any) -> Any:
        asked.append(f"{self.py_func.__qualname__} {signature}")
        return compile(self, signature)

    def forget_after_warm_up(model: Any, *prompt_tokens: int) -> None:
        warm_up(model, *prompt_tokens)
        asked.clear()
        asked_of.append(model.backend)

    asked_of: list[str] = []
    monkeypatch.setattr(Dispatcher, "compile", recorded)
    monkeypatch.setattr(speed, "warm_up", forget_after_warm_up)
    assert in_process((*argv, "--backend", "numba"), tmp_path).code == 0
    assert asked_of == ["numba"]
    assert asked == []


def test_a_long_warm_up_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line before the text; a short one, or NumPy's, which compiles nothing, is not."""
    if backends.why_not("numba-strict") is not None:
        pytest.skip("needs numba")
    lay_out(tmp_path)
    argv = ("generate", "m.bin", "--tokenizer", "t.bin", "--max-new-tokens", "2", "--backend")
    monkeypatch.setattr(speed, "NOTICEABLE", 0)
    line = b"pyllm2: kernels of backend numba-strict compiled or loaded in "
    assert line in in_process((*argv, "numba-strict"), tmp_path).err
    assert b"kernels" not in in_process((*argv, "numpy"), tmp_path).err
    monkeypatch.setattr(speed, "NOTICEABLE", 1e9)
    assert line not in in_process((*argv, "numba-strict"), tmp_path).err
