"""The planted bugs of `tools/mutants` still fit the sources, so that the list cannot rot."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]


def _load() -> Any:
    """tools/ is no package: the module is loaded from its file."""
    spec = importlib.util.spec_from_file_location("mutate", REPOSITORY / "tools" / "mutate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutate"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


mutate = _load()
AREAS = {area.name: area for area in mutate.read_areas()}


@pytest.mark.parametrize("area", AREAS)
def test_every_bug_can_be_planted(area: str) -> None:
    """Its old text is in its file as often as it says, and the file is then another."""
    for bug in AREAS[area].mutants:
        source = (REPOSITORY / bug.file).read_text(encoding="utf-8")
        assert bug.apply(source) != source, bug.name


@pytest.mark.parametrize("area", AREAS)
def test_a_bug_in_python_is_more_than_a_comment(area: str) -> None:
    """The changed file parses, into another program."""
    for bug in AREAS[area].mutants:
        if bug.file.endswith(".py"):
            source = (REPOSITORY / bug.file).read_text(encoding="utf-8")
            before, after = ast.parse(source), ast.parse(bug.apply(source))
            assert ast.dump(before) != ast.dump(after), bug.name


@pytest.mark.parametrize("area", AREAS)
def test_names_and_bugs_are_unique_and_their_tests_exist(area: str) -> None:
    """A name says which bug survived; the same change twice would count twice."""
    bugs = AREAS[area].mutants
    assert len({bug.name for bug in bugs}) == len(bugs)
    assert len({(bug.file, bug.old, bug.new, bug.nth) for bug in bugs}) == len(bugs)
    for bug in bugs:
        assert bug.tests, bug.name
        for test in (*bug.tests, *bug.golden):
            assert (REPOSITORY / test.split("::")[0]).exists(), f"{bug.name}: {test}"


def test_there_are_bugs_enough_to_say_something() -> None:
    """The share of a handful would mean little."""
    assert sum(len(area.mutants) for area in AREAS.values()) >= 60


def bug(**changes: Any) -> Any:
    fields = {"area": "a", "name": "n", "file": "f", "old": "x", "new": "y", "tests": ()}
    return mutate.Mutant(**{**fields, "golden": (), "smoke": "", **changes})


def test_a_text_that_is_not_there_as_often_as_said_is_refused() -> None:
    """Rather than planting nothing, or too much."""
    for text in ("", "x x"):
        with pytest.raises(ValueError, match="a: n: f has its old text"):
            bug().apply(text)


def test_one_of_several_places_can_be_meant() -> None:
    """`count` says how many there are, `nth` which; without it, all."""
    assert bug(count=3).apply("x-x-x") == "y-y-y"
    assert [bug(count=3, nth=n).apply("x-x-x") for n in (1, 2, 3)] == ["y-x-x", "x-y-x", "x-x-y"]
