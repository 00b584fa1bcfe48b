"""Bugs that a machine can think of, for Python by its syntax tree and for C by its tokens.

    mutants("llama2/ops.py", source)      every place where an operator applies
    sample(found, 3, seed=0)              at most 3 per function, of different operators if possible

A mutant replaces one piece of text; the rest of the file stays as it is. Its name is stable while
its function is: `llama2/ops.py:rmsnorm:drop-term:1` is the first term of rmsnorm left out.

    drop-term         a + b, a - b       ->  a     (Python also: b)
    drop-factor       a * b, a / b       ->  a     (Python also: b)
    plus-minus        a + b              ->  a - b, and the reverse; += and -=
    swap-operands     a - b, a / b, a @ b -> b - a ...                        (Python)
    swap-arguments    f(a, b), return a, b -> f(b, a); C: arguments of one type
    drop-sign         -a, not a          ->  a
    drop-transpose    a.T                ->  a                                (Python)
    constant          a number doubled, 0 made 1, True made False
    twin              max -> min, cos -> sin, exp -> exp2 ...
    drop-keyword      axis=, dtype=, keepdims= left out                       (Python)
    range-begin       the first of a loop or slice left out
    range-end         the last of a loop or slice left out
    index-zero        a[i]               ->  a[0], i being a loop variable
    wrong-variable    a[i]               ->  a[j], both being loop variables  (Python)
    compare           <, > and <=, >= exchanged; == and !=
    negate            if a               ->  if not a
    and-or            a and b            ->  a or b, and the reverse
    drop-statement    a call, an assignment to an element, an update left out
    jump              continue -> break; break -> nothing; C: either -> nothing
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from mutant import Mutant, tokens_of
from operators_c import C, functions
from operators_python import Python


def mutants(file: str, source: str) -> list[Mutant]:
    """Every mutant of a file, in the order of the text, numbered, no two alike."""
    find = Python if file.endswith(".py") else C
    found, seen, counted = [], set(), defaultdict[tuple[str, str], int](int)
    proposals = find(file, source).proposals()
    for m in sorted(proposals, key=lambda m: (m.start, m.end, m.operator, m.text)):
        change = m.start, m.end, m.text
        if source[m.start : m.end] == m.text or change in seen:
            continue
        seen.add(change)
        counted[m.function, m.operator] += 1
        found.append(replace(m, nth=counted[m.function, m.operator]))
    return found


def rank(m: Mutant, seed: int) -> str:
    """A number by which to choose."""
    return hashlib.sha256(f"{seed}:{m.name}".encode()).hexdigest()


def sample(found: Sequence[Mutant], per_function: int, seed: int) -> list[Mutant]:
    """At most so many per function, fewer for a short one: other operators before a second use.

    Chosen by a hash of their names, so that a change elsewhere in the file changes nothing.
    """

    by_function = defaultdict[str, list[Mutant]](list)
    for m in found:
        by_function[m.function].append(m)
    chosen = set[Mutant]()
    for candidates in by_function.values():
        used = defaultdict[str, int](int)
        ordered = []
        for m in sorted(candidates, key=lambda m: rank(m, seed)):
            used[m.operator] += 1
            ordered.append((used[m.operator], rank(m, seed), m))
        most = min(per_function, -(-len(candidates) // 4))
        chosen |= {m for *_, m in sorted(ordered, key=lambda o: o[:2])[:most]}
    return [m for m in found if m in chosen]


def spans_of(file: str, source: str, function: str) -> list[tuple[int, int]]:
    """Where a function's text is; the whole file for ""."""
    if not function:
        return [(0, len(source))]
    if not file.endswith(".py"):
        tokens = tokens_of(file, source)
        return [
            (tokens[first - 1].start, tokens[last].end)
            for name, first, last in functions(tokens)
            if name == function
        ]
    python = Python(file, source)
    found = []

    def walk(node: ast.AST, outer: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = outer
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                inner = f"{outer}.{child.name}" if outer else child.name
                if inner == function:
                    found.append(python.span(child))
            walk(child, inner)

    walk(ast.parse(source), "")
    return found


def planted(file: str, source: str, function: str, old: str, new: str) -> Mutant:
    """The mutant that puts `new` for the tokens of `old` in a function, however they are laid out.

    Raises ValueError if they are not there exactly once.
    """
    wanted = [t.text for t in tokens_of(file, old)]
    places = []
    for start, end in spans_of(file, source, function):
        tokens = [t for t in tokens_of(file, source) if start <= t.start and t.end <= end]
        texts = [t.text for t in tokens]
        for i in range(len(texts) - len(wanted) + 1):
            if texts[i : i + len(wanted)] == wanted:
                places.append((tokens[i].start, tokens[i + len(wanted) - 1].end))
    if len(places) != 1:
        where = f"{file}:{function}" if function else file
        raise ValueError(f"{where} has {old!r} {len(places)} times, expected once")
    start, end = places[0]
    indent = re.match(r"[ \t]*", source[source.rfind("\n", 0, start) + 1 :])[0]  # type: ignore[index]
    lines = new.strip("\n").splitlines()
    margin = len(lines[0]) - len(lines[0].lstrip()) if lines else 0
    text = "\n".join((indent if n else "") + line[margin:] for n, line in enumerate(lines))
    return Mutant(file, function, "written", start, end, text)
