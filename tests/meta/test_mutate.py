"""tools/mutate.py: operators, handwritten bugs, sampling, verdicts and the runner."""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]


def _load() -> Any:
    """Import tools/mutate.py from its path: tools/ is not a package."""
    spec = importlib.util.spec_from_file_location("mutate", REPOSITORY / "tools" / "mutate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutate"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


mutate = _load()
operators = mutate.operators

PYTHON = '''
def area(x, n):
    """A docstring - with + signs."""
    total = 0.5
    for i in range(n):
        total += 3 * x[i]
    return -total
'''

C = """
/* x - y */
float area(const float *x, int n)
{
    float total = 0.5f;
    for (int i = 0; i < n; i++) {
        total += (float)3 * x[i];
    }
    return -total;
}
"""


def made(file: str, source: str) -> dict[str, str]:
    """Name and changed line of every mutant of a source."""
    return {m.name.split(":", 1)[1]: m.lines(source)[1] for m in operators.mutants(file, source)}


def test_the_operators_on_a_function_in_python() -> None:
    """Every operator applies at every place once, and never inside the docstring."""
    assert made("f.py", PYTHON) == {
        "area:constant:1": "total = 1.0",
        "area:range-begin:1": "for i in range(1, n):",
        "area:range-end:1": "for i in range(n - 1):",
        "area:drop-statement:1": "pass",
        "area:plus-minus:1": "total -= 3 * x[i]",
        "area:constant:2": "total += 6 * x[i]",
        "area:drop-factor:1": "total += 3",
        "area:drop-factor:2": "total += x[i]",
        "area:index-zero:1": "total += 3 * x[0]",
        "area:drop-sign:1": "return total",
    }


def test_the_operators_on_a_function_in_c() -> None:
    """Casts are not operands, and the star of a pointer is not a product."""
    assert made("f.c", C) == {
        "area:constant:1": "float total = 1.0f;",
        "area:range-begin:1": "for (int i = 1; i < n; i++) {",
        "area:range-end:1": "for (int i = 0; i < n - 1; i++) {",
        "area:drop-statement:1": ";",
        "area:plus-minus:1": "total -= (float)3 * x[i];",
        "area:constant:2": "total += (float)6 * x[i];",
        "area:drop-factor:1": "total += (float)3 ;",
        "area:index-zero:1": "total += (float)3 * x[0];",
        "area:drop-sign:1": "return total;",
    }


def test_a_sample_prefers_different_operators_and_depends_on_the_function_only() -> None:
    """Another function in the file does not change the sample of this one."""
    found = operators.mutants("f.py", PYTHON)
    chosen = operators.sample(found, 3, seed=0)
    assert len({m.operator for m in chosen}) == len(chosen) == 3
    longer = operators.mutants("f.py", "def other(x):\n    return 2 * x\n" + PYTHON)
    again = [m.name for m in operators.sample(longer, 3, seed=0) if m.function == "area"]
    assert again == [m.name for m in chosen]


def test_an_anchor_is_found_whatever_its_layout() -> None:
    """Comments, spaces and line ends are ignored; the new lines get the old indentation."""
    source = "def f(x):\n    return (x +  # so\n            1)\n\ndef g(x):\n    return (x + 1)\n"
    bug = operators.planted("f.py", source, "f", "return (x + 1)", "y = x\nreturn y")
    assert bug.apply(source).startswith("def f(x):\n    y = x\n    return y\n\ndef g")


@pytest.mark.parametrize("old", ["x - 1", "x"])
def test_an_anchor_must_occur_exactly_once(old: str) -> None:
    """A missing or repeated anchor is an error that names file and function."""
    with pytest.raises(ValueError, match=r"f\.py:f has .* expected once"):
        operators.planted("f.py", "def f(x):\n    return x + x\n", "f", old, "y")


@functools.cache
def bugs() -> Any:
    """All bugs of seed 0."""
    return mutate.bugs(seed=0)


def test_every_handwritten_bug_fits_its_file() -> None:
    """Each anchor occurs once in its function; all names of bugs differ."""
    found, stale = mutate.written()
    assert found
    assert not stale
    assert len({bug.name for bug in bugs()}) == len(bugs())


def test_every_listed_equivalent_is_still_a_possible_mutant() -> None:
    """An entry whose source line has changed is stale."""
    possible = set()
    files = {key[0] for key in mutate.equivalents()}
    for file in files:
        source = mutate.source_of(file)
        for m in operators.mutants(file, source):
            possible.add(mutate._key(file, m.function, *m.lines(source)))
    stale = [key for key in mutate.equivalents() if key not in possible]
    assert not stale


def test_every_area_has_bugs_and_mutants_in_python_parse() -> None:
    """Every eighth bug is parsed: enough to detect an operator that breaks the syntax."""
    counts = {area.name: sum(bug.area is area for bug in bugs()) for area in mutate.AREAS}
    assert all(counts.values())
    assert len(bugs()) > 600
    for bug in bugs()[::8]:
        source = mutate.source_of(bug.mutant.file)
        assert bug.mutant.apply(source) != source
        if bug.mutant.file.endswith(".py"):
            ast.parse(bug.mutant.apply(source))


def test_every_bug_has_tests() -> None:
    """Each area's pattern finds test files; without tests every bug would survive."""
    for area in mutate.AREAS:
        bug = next(bug for bug in bugs() if bug.area is area)
        assert mutate.test_files(bug, REPOSITORY), area.name


def test_shares_contain_every_bug_once() -> None:
    """Shares 1/3, 2/3 and 3/3 together have each bug exactly once."""
    parts = [mutate.part_of(bugs(), f"{i}/3") for i in (1, 2, 3)]
    assert sorted(bug.name for part in parts for bug in part) == sorted(bug.name for bug in bugs())
    with pytest.raises(ValueError, match="expected i/n"):
        mutate.part_of(bugs(), "4/3")


def test_verdicts_add_up() -> None:
    """The last verdict on a bug counts; equivalents do not count in the killed percentage."""

    def verdict(name: str, state: str) -> dict[str, Any]:
        empty = dict.fromkeys(("by", "before", "after"), "")
        return {"name": name, "area": "numpy", "state": state, "seconds": 1.0, **empty}

    first = [verdict("a", "killed"), verdict("b", "survived"), verdict("c", "equivalent")]
    row = mutate.report([*first, verdict("b", "killed")]).splitlines()[2]
    assert row.replace("|", " ").split() == "numpy 3 2 0 1 0 100.0 % 1.00".split()
    assert mutate.passed(first) == 1


def test_the_runner_kills_a_bug_and_passes_the_unchanged_tree(tmp_path: Path) -> None:
    """An op that writes into its input fails its property; the unchanged op does not."""
    pytest.importorskip("numba", reason="needs numba")
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    name = "llama2/ops.py:residual: it writes into its input"
    code = f"""
import sys, pathlib
sys.path.insert(0, {str(REPOSITORY / "tools")!r})
import hypothesis.extra.numpy, mutate
bug = next(b for b in mutate.bugs(0) if b.name == {name!r})
space = mutate.Workspace(pathlib.Path({str(tmp_path / "copy")!r}))
stage, *_ = mutate.stages_of(bug, mutate.op_tables())
print(*space.run(stage))
with space.planted(bug.mutant):
    print(*space.run(stage))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    found = ran.stdout.splitlines()
    assert found == ["survived ", "killed property of llama2 residual"], ran.stderr


def test_every_intrinsic_can_be_interpreted() -> None:
    """A function that emits IR has a NumPy twin of its name, so that its callers run as Python."""
    twins = vars(sys.modules["mutate_interpret"])
    for path in (REPOSITORY / "pyllm2" / "fast").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"^ *@emits\(.*\)\n *def (\w+)", text, re.MULTILINE):
            assert name in twins, f"{path.name}: {name}"


def test_the_tests_of_the_changed_file_come_first() -> None:
    """Those that import it, then those named like it; then the others."""
    from mutate_run import remoteness

    def far(test: str, file: str) -> int:
        return remoteness(f"{REPOSITORY}/tests/{test}", f"pyllm2/{file}")

    assert far("formats/test_gguf_blocks.py", "formats/gguf_blocks.py") == 0
    assert far("formats/test_gguf.py", "formats/gguf_blocks.py") == 2
    assert far("formats/test_writer.py", "formats/writer.py") == 0
    assert far("hostile/test_training.py", "gpt2/training.py") == 2
    assert far("formats/test_gguf_writer.py", "formats/gguf_blocks.py") == 1
    assert far("llama2/test_config.py", "llama2/rope_scaling.py") == 1
    assert far("gpt2/test_imported.py", "gpt2/huggingface.py") == 1
    assert far("formats/test_writer.py", "formats/gguf_blocks.py") == 3
