"""The exercise: its code runs, its stubs fail, and the error it quotes is what is printed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import numpy as np
import pytest

from pyllm2.llama2 import ops as specification
from pyllm2.testing import check_op

TEXT = (files("pyllm2") / "testing" / "exercise.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def stubs(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Functions whose body is `...`."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and ast.unparse(node.body) == "...":
            yield node


def test_its_code_runs_with_the_specification_as_the_solution(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every stub is an op of the specification, with its arguments, and passes its check.

    Except for the arguments that llama2.c does not have, which have defaults.
    """
    namespace: dict[str, Any] = {}
    found = []
    for block in blocks("python"):
        tree = ast.parse(block)
        for stub in stubs(tree):
            solution = getattr(specification, stub.name)
            names = solution.__code__.co_varnames[: solution.__code__.co_argcount]
            given = tuple(argument.arg for argument in stub.args.args)
            defaults = len(solution.__defaults__ or ()) - len(stub.args.defaults)
            assert given == names[: len(names) - defaults]
            tree.body.remove(stub)
            namespace[stub.name] = solution
            found.append(stub.name)
        exec(compile(tree, "exercise.md", "exec"), namespace)
    assert len(found) == 6
    assert capsys.readouterr().out.startswith("llama2: 6 of 22 ops pass, 0 fail\n")


def test_a_stub_fails() -> None:
    """The error says that it returns None."""
    for block in blocks("python"):
        if list(stubs(ast.parse(block))):
            with pytest.raises(AssertionError, match="NoneType, expected a"):
                exec(block, {"check_op": check_op})


def test_the_error_that_it_quotes_is_what_is_printed() -> None:
    """Epsilon outside of the root."""

    def rmsnorm(x: Any, weight: Any) -> Any:
        return weight * (x / (np.sqrt((x * x).mean(-1, keepdims=True)) + np.float32(1e-5)))

    with pytest.raises(AssertionError) as caught:
        check_op("rmsnorm", rmsnorm)
    printed = [f"AssertionError: {caught.value}", *caught.value.__notes__]
    assert blocks("text") == ["\n".join(printed) + "\n"]


def test_the_example_by_hand_is_right() -> None:
    """rmsnorm of 3 and 4."""
    found = specification.rmsnorm(np.array([[3, 4]], np.float32), np.ones(2, np.float32))
    assert f"[{', '.join(f'{number:.3f}' for number in found[0])}]" in TEXT
