"""Both model families have the same files, with the same public names."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "pyllm2"
FAMILIES = {"llama2": "Llama2", "gpt2": "GPT2"}
FILES = "__init__ checkpoint config family gguf huggingface imported initial model".split()
FILES += "ops ops_c ops_numba training".split()
OWN_FILES: dict[str, list[str]] = {
    "llama2": ["meta", "rope_scaling", "rope_settings", "rotary_order"],
    "gpt2": [],
}
ROLES = "checkpoint config family gguf huggingface imported initial model training".split()
# Public names of one family only: Llama-2 has grouped heads, int8, three file versions, an optional
# classifier, a rule for its feed-forward width, and what later models have.
ONLY = {
    "llama2": (
        "config.Config.kv_dim config.Config.query_dim config.Config.window "
        "config.Config.beyond_run_c model.Model.head_norm model.KVCache.prepare checkpoint.export "
        "checkpoint.load_float32 imported.rotated_heads initial.hidden_dim initial.random_weights "
        "model.Weights model.Model.operand model.Model.product model.Model.embed "
        "model.Model.unpacked"
    ).split(),
    # The first two are fields of Llama2Config.
    "gpt2": "config.Config.seq_len config.Config.head_size imported.filled".split(),
}
WHOLE_PASSES = "forward losses add_gradient".split()  # in ops_c, besides the ops
NUMBA_ONLY = ["jacobian"]  # argument that selects the strict build's order of additions


def tree(family: str, file: str) -> ast.Module:
    return ast.parse((PACKAGE / family / f"{file}.py").read_text())


def functions(body: list[ast.stmt]) -> list[ast.FunctionDef]:
    found = [node for node in body if isinstance(node, ast.FunctionDef)]
    return [f for f in found if not f.name.startswith("_")]


def public_names(family: str, file: str) -> set[str]:
    """Functions, classes and methods; the family's name is removed from names of classes."""
    body = tree(family, file).body
    names = {f.name for f in functions(body)}
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            name = node.name.replace(FAMILIES[family], "") or "Model"
            names |= {name, *(f"{name}.{method.name}" for method in functions(node.body))}
    return {f"{file}.{name}" for name in names}


def ops(family: str, file: str) -> list[tuple[str, list[str]]]:
    """Name and arguments of every op in file order: functions, or methods of the class Ops."""
    body = tree(family, file).body
    if file == "ops_c":
        (of_class,) = (n for n in body if isinstance(n, ast.ClassDef) and n.name == "Ops")
        body = of_class.body
    return [
        (f.name, [a.arg for a in f.args.args if a.arg not in ("self", *NUMBA_ONLY)])
        for f in functions(body)
        if f.name not in WHOLE_PASSES
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_these_files_and_no_other(family: str) -> None:
    """A family has the files of the skeleton, and no subfolder."""
    found = sorted(path.stem for path in (PACKAGE / family).glob("*.py"))
    assert found == sorted(FILES + OWN_FILES[family])
    assert [path.name for path in (PACKAGE / family).iterdir() if path.is_dir()] in (
        [],
        ["__pycache__"],
    )


@pytest.mark.parametrize("file", ROLES)
def test_both_families_have_the_same_public_names(file: str) -> None:
    """Public names are equal except for ONLY, whose names must exist."""
    names = {family: public_names(family, file) for family in FAMILIES}
    only = {family: {n for n in ONLY[family] if n.startswith(f"{file}.")} for family in FAMILIES}
    for family in FAMILIES:
        assert only[family] <= names[family]
    assert names["llama2"] - only["llama2"] == names["gpt2"] - only["gpt2"]


@pytest.mark.parametrize("file", ["ops_numba", "ops_c"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rivals_have_the_ops_of_the_specification_in_order(family: str, file: str) -> None:
    """Names, arguments and order of the ops are equal in ops, ops_numba and ops_c."""
    specification = ops(family, "ops")
    assert len(specification) >= 15
    assert ops(family, file) == specification
