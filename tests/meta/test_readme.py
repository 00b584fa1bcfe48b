"""The examples and commands of README.md work."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

from pyllm2.cli import main

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_example_of_an_own_kernel_passes() -> None:
    """The README's rmsnorm passes `check_op`."""
    (code,) = [block for block in blocks("python") if "check_op" in block]
    namespace: dict[str, object] = {}
    exec(code, namespace)
    namespace["test_my_rmsnorm"]()  # type: ignore[operator]


def test_the_same_example_fails_for_a_wrong_kernel() -> None:
    """Without the epsilon, `check_op` fails."""
    (code,) = [block for block in blocks("python") if "check_op" in block]
    wrong = code.replace(" + np.float32(1e-5)", "")
    assert wrong != code
    namespace: dict[str, object] = {}
    exec(wrong, namespace)
    with pytest.raises(BaseException), contextlib.redirect_stderr(io.StringIO()):  # noqa: B017, PT011
        namespace["test_my_rmsnorm"]()  # type: ignore[operator]


def test_the_python_example_runs(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example runs in a folder with the files that it names."""
    (code,) = [block for block in blocks("python") if "pyllm2.load" in block]
    monkeypatch.chdir(golden)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(code, {})
    assert output.getvalue().count("\n") > 10


def test_the_first_two_commands_generate_text_and_run_the_tests() -> None:
    """Both commands create their own environment, so each can be pasted alone."""
    first, second = blocks("sh")[:2]
    for command in (first, second):
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install")
    assert "pyllm2 generate" in first
    assert "pytest" in second


@pytest.mark.parametrize("command", ["run", "generate", "chat", "tokenize", "train"])
def test_every_command_is_in_the_readme(command: str) -> None:
    """Every command is named in the README and exists."""
    assert f"`pyllm2 {command}" in README
    if command != "run":
        with contextlib.redirect_stdout(io.StringIO()):
            assert main([command, "--help"]) == 0
