"""Allowed imports between the packages of pyllm2, and what `import pyllm2` loads."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from fnmatch import fnmatch
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "pyllm2"

# Modules of pyllm2 (left) and what they may import of pyllm2 (right); the first row that matches
# a module counts. A name without a dot is a package or a top-level module, `@` the module's own
# package, `*` every package from errors to tokenizers (BOTTOM).
RULES = """
    errors parameters                      <-
    formats* memory mersenne stories       <- errors @
    compiling*                             <- errors memory @
    llama2.config                          <- errors llama2.rope_scaling
    gpt2.config llama2.rope_scaling        <- errors
    llama2.ops                             <- formats.gguf_blocks
    gpt2.ops training.ops                  <-
    *.ops_numba *.ops_c                    <- compiling
    fast*                                  <- compiling parameters formats.gguf_blocks @
    backends                               <- errors compiling fast *.ops *.ops_numba *.ops_c
    llama2* gpt2*                          <- errors formats memory mersenne parameters backends @
    tokenizers*                            <- errors formats @
    training*                              <- * @
    inference*                             <- * training @
    bench testing*                         <- * training inference @
    observe* conform*                      <- * training inference testing @
    cli* __main__                          <- * training inference testing observe conform bench cli
"""
# All modules but these may import NumPy; other libraries are allowed per module.
WITHOUT_NUMPY = (
    "errors memory llama2.config llama2.rope_scaling gpt2.config __init__ __main__ backends "
    "stories tokenizers tokenizers.arguments tokenizers.byte_level tokenizers.chat".split()
)
LIBRARIES = {
    "numba llvmlite": "compiling* fast* *.ops_numba",
    "numba": "backends",
    "filelock platformdirs": "compiling*",
    "filelock": "training.folder",
    "mpi4py": "training.mpi",
    "jinja2": "tokenizers.template_worker",
    "sentencepiece": "formats.sentencepiece_model",
    "tiktoken": "tokenizers.byte_level",
    "regex": "tokenizers.word_patterns",
    "matplotlib": "training.plot bench observe.lens_png",
    "hypothesis": "testing* observe.judge observe.spec_measured cli.gradcheck cli.vectors"
    " conform.vectors",
    "huggingface_hub": "inference.hub",
    "textual rich": "observe.step_app observe.step_widgets",
    "tabulate tqdm": "cli*",
    "argcomplete": "cli.completion",
}
BOTTOM = "errors parameters formats memory mersenne stories compiling fast".split()
BOTTOM += "backends llama2 gpt2 tokenizers".split()


def modules() -> dict[str, Path]:
    """Every module by its name inside the package: `errors`, `llama2.ops`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


MODULES = modules()


def imports(path: Path) -> tuple[set[str], set[str]]:
    """Modules of pyllm2 and other libraries that a file imports, inside functions too."""
    ours: set[str] = set()
    others: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            first, _, rest = name.partition(".")
            if first == "pyllm2":
                ours.add(rest if rest in MODULES else rest.rpartition(".")[0] or "__init__")
            elif first not in sys.stdlib_module_names:
                others.add(first)
    return ours, others


def rule_of(module: str) -> list[str]:
    for line in RULES.strip().splitlines():
        patterns, _, allowed = line.partition("<-")
        if any(fnmatch(module, pattern) for pattern in patterns.split()):
            return allowed.split()
    raise AssertionError(f"no row matches {module}")


def may_import(module: str, name: str) -> bool:
    room = name.partition(".")[0]
    for allowed in rule_of(module):
        if allowed == "@" and room == module.partition(".")[0]:
            return True
        if allowed == "*" and room in BOTTOM:
            return True
        if name == allowed or room == allowed or ("." in allowed and fnmatch(name, allowed)):
            return True
    return name == "__init__" and module != "errors"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_it_may(module: str) -> None:
    """The tables above list every allowed import."""
    ours, others = imports(MODULES[module])
    if module == "__init__":  # imports its functions on demand
        assert all(re.match("errors$|inference\\.|observe\\.|tokenizers\\b", name) for name in ours)
        return
    for name in sorted(ours):
        assert may_import(module, name), f"{module} imports {name}: {' '.join(rule_of(module))}"
    for library in sorted(others - {"numpy"}):
        rooms = [r for words, r in LIBRARIES.items() if library in words.split()]
        patterns = " ".join(rooms).split()
        assert any(fnmatch(module, p) for p in patterns), f"{module} imports {library}"
    if any(fnmatch(module, pattern) for pattern in WITHOUT_NUMPY):
        assert "numpy" not in others, f"{module} imports numpy"


def test_model_families_do_not_import_each_other() -> None:
    """No module of llama2 imports gpt2 or the reverse, in `fast` either; `testing` may."""
    for module, path in MODULES.items():
        for family, other in (("llama2", "gpt2"), ("gpt2", "llama2")):
            if family in module.split(".") and not module.startswith("testing"):
                theirs = {name for name in imports(path)[0] if other in name.split(".")}
                assert not theirs, f"{module} imports {theirs}"


def test_only_backends_imports_fast() -> None:
    """Without `fast`, every module but `backends` still works."""
    for module, path in MODULES.items():
        if module != "backends" and not module.startswith("fast"):
            assert not [n for n in imports(path)[0] if n.startswith("fast")], module


def test_imports_have_no_cycle() -> None:
    """Imports inside functions count too; the CycleError names the modules."""
    arrows = {module: imports(path)[0] - {"__init__"} for module, path in MODULES.items()}
    order = list(TopologicalSorter(arrows).static_order())
    assert set(MODULES) >= set(order)


def test_the_top_level_has_few_modules() -> None:
    """New modules belong in a package; the top level has at most 8."""
    assert (
        len(
            [
                module
                for module in MODULES
                if "." not in module and PACKAGE / f"{module}.py" == MODULES[module]
            ]
        )
        <= 8
    )


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(subprocess.check_output([sys.executable, "-c", code], text=True).split())


def test_importing_pyllm2_is_light() -> None:
    """`import pyllm2` loads neither NumPy nor numba, hypothesis or sentencepiece."""
    heavy = {"numpy", "numba", "hypothesis", "sentencepiece", "pyllm2.inference.language_model"}
    assert not heavy & loaded_by("import pyllm2")


def test_loading_a_model_needs_numpy_only() -> None:
    """`pyllm2.load` does not load numba, hypothesis, sentencepiece or subprocess."""
    loaded = loaded_by("import pyllm2; pyllm2.load")
    assert "numpy" in loaded
    assert not {"numba", "hypothesis", "sentencepiece", "subprocess"} & loaded
