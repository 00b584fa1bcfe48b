"""Concordance: every pyllm2 name in the tables of the originals' names exists."""

from __future__ import annotations

import importlib
import re
from typing import Any

import pytest

FAMILIES = ("llama2", "gpt2")


def rows(family: str) -> list[tuple[str, list[str]]]:
    """(original name, pyllm2 names) per row of the table in a family's docstring."""
    text = importlib.import_module(f"pyllm2.{family}").__doc__ or ""
    lines = [line for line in text.splitlines() if line.startswith("    ")]
    pairs = [re.split(r" {2,}", line.strip()) for line in lines]
    return [(original, names.split(", ")) for original, names in pairs]


def member(owner: Any, name: str) -> Any:
    """The attribute `name` of `owner`; None for a dataclass field or a function's variable."""
    if hasattr(owner, name):
        return getattr(owner, name)
    code = getattr(owner, "__code__", None)
    assert name in getattr(owner, "__annotations__", ()) or name in (
        code.co_varnames if code else ()
    ), f"{owner} has no {name}"
    return None


NAMES = [name for family in FAMILIES for _, names in rows(family) for name in names]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_exists(name: str) -> None:
    """Each dotted name is a module followed by attributes."""
    words = name.split(".")
    owner: Any = importlib.import_module("pyllm2")
    for n, word in enumerate(words):
        try:
            owner = importlib.import_module(".".join(["pyllm2", *words[: n + 1]]))
        except ModuleNotFoundError:
            owner = member(owner, word)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_table_has_25_to_40_different_rows(family: str) -> None:
    """No row is lost by a change of layout, and no original name occurs twice."""
    originals = [name for name, _ in rows(family)]
    assert 25 <= len(originals) == len(set(originals)) <= 40
