"""Who may import whom, and how quickly the package comes up."""

from __future__ import annotations

import ast
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "pyllm2"
STDLIB = sys.stdlib_module_names

PARAMETERS = "pyllm2.training.parameters"
LIBRARY = "safetensors"
LOG, OUTLIER = "pyllm2.training.log", "pyllm2.training.outlier"
GPT2_CONFIG = "pyllm2.gpt2.config"
NUMBA = ["numpy*", "numba*", "pyllm2.numba_build"]
PRODUCTS = ["pyllm2.gemm_numba", "pyllm2.tile_numba"]

# module pattern -> what it may import besides the standard library. The first match counts.
RULES = [
    ("pyllm2.testing*", ["pyllm2*", "numpy*", "hypothesis*"]),
    ("pyllm2.errors", []),
    ("pyllm2.rng", []),
    ("pyllm2.memory", ["pyllm2.errors"]),
    ("pyllm2.formats.safetensors_file", ["pyllm2.errors", "pyllm2.formats*", "numpy*", LIBRARY]),
    ("pyllm2.formats*", ["pyllm2.errors", "pyllm2.formats*", "numpy*", "sentencepiece"]),
    ("pyllm2.*.config", ["pyllm2.errors"]),
    ("pyllm2.*.ops", ["numpy*"]),
    ("pyllm2.*.ops_backward", ["numpy*"]),
    ("pyllm2.training.schedule", ["numpy*", "pyllm2.errors"]),
    ("pyllm2.training.outlier", ["numpy*"]),
    ("pyllm2.training.log", ["pyllm2.errors"]),
    ("pyllm2.training.report", []),
    ("pyllm2.training.signals", []),
    ("pyllm2.training.recipe", ["pyllm2.errors", "pyllm2.training.schedule"]),
    ("pyllm2.training.plot", ["matplotlib*", "pyllm2.errors", "pyllm2.formats.writer", LOG]),
    ("pyllm2.training.sample", ["pyllm2.generate", "pyllm2.sampling", "pyllm2.session"]),
    ("pyllm2.training.checkpoint", ["numpy*", "pyllm2.errors", "pyllm2.formats*", OUTLIER]),
    ("pyllm2.training.folder", ["filelock", "pyllm2.errors", "pyllm2.training*"]),
    ("pyllm2.training.trainer", ["numpy*", "pyllm2.errors", "pyllm2.training*"]),
    ("pyllm2.gpt2.activations", [GPT2_CONFIG]),
    ("pyllm2.training.parameters", ["numpy*"]),
    ("pyllm2.mersenne", ["numpy*", "pyllm2.errors"]),
    (
        "pyllm2.gpt2.files",
        ["pyllm2.errors", "pyllm2.memory", "pyllm2.formats*", GPT2_CONFIG, PARAMETERS],
    ),
    ("pyllm2.training.prepare", ["numpy*", "pyllm2.errors", "pyllm2.formats*"]),
    ("pyllm2.training.evaluation", ["numpy*", "pyllm2.errors", "pyllm2.formats*"]),
    ("pyllm2.training.loader", ["numpy*", "pyllm2.errors", "pyllm2.formats*", "pyllm2.mersenne"]),
    ("pyllm2.numba_build", ["numpy*", "numba*"]),
    ("pyllm2.*.engine_numba", [*NUMBA, "pyllm2.*.*_numba", "pyllm2.*.quantized"]),
    ("pyllm2.llama2.ops_numba", [*NUMBA, "pyllm2.llama2.ops_backward_numba"]),
    ("pyllm2.*.ops_numba", NUMBA),
    ("pyllm2.*.step_numba", ["numpy*", "numba*", "llvmlite*", "pyllm2.*.vectors*_numba"]),
    ("pyllm2.*.vectors_q8_numba", ["numpy*", "numba*", "llvmlite*", "pyllm2.*.vectors_numba"]),
    ("pyllm2.tile_numba", ["numpy*", "numba*", "llvmlite*"]),
    ("pyllm2.gemm_numba", ["numpy*", "numba*", "pyllm2.tile_numba"]),
    (
        "pyllm2.gpt2.attention_numba",
        ["numpy*", "numba*", *PRODUCTS, "pyllm2.gpt2.kernels_numba"],
    ),
    (
        "pyllm2.gpt2.room_numba",
        ["numpy*", "pyllm2.gemm_numba", "pyllm2.gpt2.attention_numba"],
    ),
    ("pyllm2.llama2.ops_backward_numba", ["numpy*", "numba*"]),
    (
        "pyllm2.llama2.attention_training_numba",
        ["numpy*", "numba*", *PRODUCTS, "pyllm2.gpt2.kernels_numba"],
    ),
    (
        "pyllm2.llama2.kernels_training_numba",
        ["numpy*", "numba*", "pyllm2.tile_numba", "pyllm2.gpt2.kernels_numba"],
    ),
    (
        "pyllm2.llama2.room_numba",
        ["numpy*", "pyllm2.gemm_numba", "pyllm2.llama2.attention_training_numba"],
    ),
    (
        "pyllm2.llama2.training_numba",
        ["numpy*", "pyllm2.llama2.kernels_training_numba", "pyllm2.llama2.room_numba"],
    ),
    ("pyllm2.training.whole_step_numba", NUMBA),
    ("pyllm2.*.*_numba", ["numpy*", "numba*", "llvmlite*"]),
    ("pyllm2.llama2.ops_c", ["numpy*", "pyllm2.c_library", "pyllm2.llama2.ops_backward_c"]),
    ("pyllm2.*.ops_*c", ["numpy*", "pyllm2.c_library"]),
    ("pyllm2.c_library", ["numpy*", "pyllm2.native"]),
    ("pyllm2.native", ["numpy*", "pyllm2.errors", "filelock", "platformdirs"]),
    ("pyllm2.*.model", ["numpy*", "pyllm2.*.config", "pyllm2.*.quantized", PARAMETERS]),
    ("pyllm2.*.random_model", ["numpy*", "pyllm2.*.config", "pyllm2.*.model"]),
    ("pyllm2.llama2.chat", []),
    ("pyllm2.gpt2.tokenizer", ["pyllm2.errors", "pyllm2.formats*", "tiktoken"]),
    (
        "pyllm2.gpt2.initial",
        ["numpy*", "pyllm2.errors", "pyllm2.memory", "pyllm2.mersenne", GPT2_CONFIG, PARAMETERS],
    ),
    (
        "pyllm2.llama2.initial",
        ["pyllm2.errors", "pyllm2.memory", "pyllm2.mersenne", "pyllm2.llama2.*", PARAMETERS],
    ),
    ("pyllm2.*.training", ["numpy*", "pyllm2.*.config", PARAMETERS]),
    ("pyllm2.llama2.tokenizer", ["pyllm2.errors", "pyllm2.formats*"]),
    ("pyllm2.backends", ["pyllm2*", "numba"]),
    ("pyllm2.bench", ["pyllm2*", "numpy*", "matplotlib*"]),
    ("pyllm2.cli.gradcheck", ["pyllm2*", "hypothesis"]),
    ("pyllm2.cli*", ["pyllm2*", "numpy*", "tabulate", "tqdm"]),
    ("pyllm2*", ["pyllm2*", "numpy*"]),
]
ONLY_IMPORTED_BY = {
    "pyllm2.cli*": ["pyllm2.cli*", "pyllm2.__main__"],
    "pyllm2.testing*": ["pyllm2.testing*", "pyllm2.cli.gradcheck"],
}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ["pyllm2", *path.relative_to(PACKAGE).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> set[str]:
    """Every module that a file imports, inside functions too; `from p import m` counts as p.m."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            known = modules()
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.add(full if full in known else str(node.module))
    return {n for n in names if n.split(".")[0] not in STDLIB}


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_what_it_may(module: str) -> None:
    """The rules of the house: formats know no model, ops know only arrays, rivals no ops."""
    allowed = next(rule for pattern, rule in RULES if fnmatch(module, pattern))
    for name in imports(modules()[module]):
        assert any(fnmatch(name, pattern) for pattern in allowed), f"{module} imports {name}"


@pytest.mark.parametrize("module", modules())
def test_nobody_imports_the_command_line_or_the_test_tools(module: str) -> None:
    """They stand on top."""
    for name in imports(modules()[module]):
        for pattern, importers in ONLY_IMPORTED_BY.items():
            if fnmatch(name, pattern):
                assert any(fnmatch(module, by) for by in importers), f"{module} imports {name}"


def test_every_rule_is_about_something() -> None:
    """A pattern that matches no module would guard nothing (rivals come and go, the rest stays)."""
    optional = ("_numba", "ops_c", "ops_*c", "c_library", "native")
    for pattern, _ in RULES:
        if not any(word in pattern for word in optional):
            assert any(fnmatch(module, pattern) for module in modules()), pattern


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(subprocess.check_output([sys.executable, "-c", code], text=True).split())


def test_importing_pyllm2_is_light() -> None:
    """Not even NumPy is loaded, let alone numba, hypothesis or a compiler."""
    heavy = {"numpy", "numba", "hypothesis", "sentencepiece", "pyllm2.language_model"}
    assert not heavy & loaded_by("import pyllm2")


def test_loading_a_model_needs_numpy_only() -> None:
    """Numba, hypothesis and sentencepiece are imported by those who use them."""
    loaded = loaded_by("import pyllm2; pyllm2.load")
    assert "numpy" in loaded
    assert not {"numba", "hypothesis", "sentencepiece", "subprocess"} & loaded
