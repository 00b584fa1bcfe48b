"""The specification as pages, built from the code: formula, three sources, laws, bound, names.

    from pyllm2.observe import spec
    page = spec.pages("rmsnorm")[0]
    page.formula         out = weight * (x / sqrt(mean(x²) + 1e-5))
    page.sources         NumPy, Numba and C, with file and line
    page.laws            names and first lines of the laws that every backend obeys
    print(page)          the whole page

Laws and bounds are those of the property tests and need hypothesis; without it they are left out.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from pyllm2.errors import UsageError
from pyllm2.observe.sources import PACKAGE, Source, source

# Where the ops of each model are, and whose program its names come from.
PACKAGES = {"llama2": "llama2", "gpt2": "gpt2", "adamw": "training"}
ORIGINALS = {"llama2": "llama2.c", "gpt2": "llm.c", "adamw": "llm.c"}


@dataclass(frozen=True)
class Law:
    """A law of the property tests: its name, which a failing test prints, and what it says."""

    name: str
    text: str


@dataclass(frozen=True)
class Bound:
    """How the largest error that a correct implementation can show is derived, and where."""

    derivation: str
    place: str  # file:line


@dataclass(frozen=True)
class Page:
    """All that the repository says about one op."""

    model: str  # llama2, gpt2 or adamw
    op: str
    signature: str
    summary: str
    formula: str
    notes: str  # shapes, and what follows them
    sources: tuple[Source, ...]
    originals: tuple[str, ...]  # what the original program calls it
    laws: tuple[Law, ...] = ()
    bound: Bound | None = None
    related: tuple[str, ...] = ()  # forward or backward of the same op

    @property
    def name(self) -> str:
        """Example: "llama2 rmsnorm" """
        return f"{self.model} {self.op}"

    @property
    def program(self) -> str:
        """The original: llama2.c or llm.c."""
        return ORIGINALS[self.model]

    def __str__(self) -> str:
        from pyllm2.observe.spec_text import page_text

        return page_text(self)

    def _repr_html_(self) -> str:
        from pyllm2.observe.spec_html import page_html

        return page_html(self)


def ops_of(model: str) -> list[str]:
    """Names of the ops of llama2, gpt2 or adamw, in the order of the specification."""
    module = importlib.import_module(f"pyllm2.{PACKAGES[model]}.ops")
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, FunctionType)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    ]


def pages(op: str, model: str | None = None) -> list[Page]:
    """The pages of an op: one, or two if both families have one of that name.

    model: llama2, gpt2 or adamw (None: all)   Raises UsageError with the nearest names.
    """
    models = list(PACKAGES) if model is None else [model]
    found = [page(of, op) for of in models if op in ops_of(of)]
    if not found:
        known = sorted({name for of in models for name in ops_of(of)})
        near = difflib.get_close_matches(op, known, 3, 0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "`pyllm2 spec` lists them"
        raise UsageError(f"no op is called {op!r}: {hint}")
    return found


@functools.cache
def page(model: str, op: str) -> Page:
    """The page of one op of llama2, gpt2 or adamw."""
    function = getattr(importlib.import_module(f"pyllm2.{PACKAGES[model]}.ops"), op)
    summary, formula, notes = _parts(inspect.getdoc(function) or "")
    laws, bound = _laws_and_bound(model, op)
    return Page(
        model,
        op,
        f"{op}({', '.join(inspect.signature(function).parameters)})",
        summary,
        formula,
        notes,
        tuple(map(without_docstring, source(PACKAGES[model], op))),
        original_names(model, op),
        laws,
        bound,
        _related(op, ops_of(model)),
    )


def _parts(text: str) -> tuple[str, str, str]:
    """A docstring as its first paragraph, its indented lines, and the rest."""
    first, _, rest = text.partition("\n\n")
    lines = rest.splitlines()
    formula = [line for line in lines if line.startswith("    ")]
    notes = [line for line in lines if not line.startswith("    ")]
    return (
        " ".join(first.split()),
        inspect.cleandoc("\n".join(formula)),
        re.sub("\n{2,}", "\n\n", "\n".join(notes)).strip(),
    )


def without_docstring(found: Source) -> Source:
    """A source without the docstring, which is shown once beside all of them."""
    if found.language == "C":
        return found
    (function,) = ast.parse(found.text).body
    assert isinstance(function, ast.FunctionDef)
    if ast.get_docstring(function) is None:
        return found
    lines, text = found.text.splitlines(), function.body[0]
    del lines[text.lineno - 1 : text.end_lineno]
    return found._replace(text="\n".join(lines))


def _related(op: str, names: Sequence[str]) -> tuple[str, ...]:
    stem = op.removesuffix("_backward").removesuffix("_forward")
    family = (stem, f"{stem}_forward", f"{stem}_backward")
    return tuple(name for name in family if name in names and name != op)


def _laws_and_bound(model: str, op: str) -> tuple[tuple[Law, ...], Bound | None]:
    try:
        from pyllm2.testing import tables
    except ImportError:  # without hypothesis
        return (), None
    row = tables[model].get(op)
    if row is None:
        return (), None
    laws = tuple(Law(law.__name__, _first_line(law)) for law in row.laws)
    code = row.bound.__code__
    file = f"pyllm2{code.co_filename.removeprefix(str(PACKAGE))}"
    return laws, Bound(inspect.getdoc(row.bound) or "", f"{file}:{code.co_firstlineno}")


def _first_line(function: Any) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0]


# ---- the originals' names ------------------------------------------------------------------------


def original_names(model: str, op: str) -> tuple[str, ...]:
    """What the original program calls an op, by the table in `pyllm2.llama2` or `pyllm2.gpt2`.

    GPT-2's ops have the names of train_gpt2.c; () if an op is part of a larger function there.
    """
    family = "llama2" if model == "llama2" else "gpt2"
    place = f"{PACKAGES[model]}.ops.{op}"
    found = []
    for originals, ours in concordance(family):
        for n, name in enumerate(ours):
            if name == place or name.startswith(f"{place}."):
                one = originals[n : n + 1] if len(originals) == len(ours) else originals
                variable = name.removeprefix(place)[1:]
                found += [f"{word} (the argument {variable})" if variable else word for word in one]
    if not found and model == "gpt2":
        return (op,)
    return tuple(dict.fromkeys(found))


@functools.cache
def concordance(family: str) -> tuple[tuple[list[str], list[str]], ...]:
    """The rows of a family's table: names of the original, names here without `pyllm2.`"""
    text = importlib.import_module(f"pyllm2.{family}").__doc__ or ""
    rows = (re.split(" {2,}", line.strip()) for line in text.splitlines() if line[:4] == "    ")
    return tuple((left.split(", "), right.split(", ")) for left, right in rows)
