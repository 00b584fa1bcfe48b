"""Where an op is written: its formula, and file and line in NumPy, Numba and C."""

from __future__ import annotations

import functools
import inspect
import re
from pathlib import Path
from typing import Any, NamedTuple

from pyllm2 import backends

PACKAGE = Path(__file__).parents[1]


class Source(NamedTuple):
    """A function's text, and where it is."""

    language: str  # NumPy, Numba or C
    file: str  # Example: "pyllm2/llama2/ops.py"
    line: int
    text: str

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


def package_of(family: str, op: str) -> str:
    """Where an op is: `llama2`, `gpt2`, or `training` (the optimizer)."""
    return "training" if op in ("adamw_update", "global_norm") else family


@functools.cache
def source(family: str, op: str) -> tuple[Source, ...]:
    """The op in NumPy, Numba and C, where it is found."""
    package = package_of(family, op)
    found = [
        _in_python("NumPy", f"{package}/ops.py", op),
        _in_python("Numba", f"{package}/ops_numba.py", op),
        _in_c(package, op),
    ]
    return tuple(s for s in found if s is not None)


def _in_python(language: str, file: str, op: str) -> Source | None:
    """A function of a module by its text: the module need not be importable here."""
    import ast

    text = (PACKAGE / file).read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.name == op:
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            lines = text.splitlines()[first - 1 : node.end_lineno]
            margin = min((len(x) - len(x.lstrip()) for x in lines if x.strip()), default=0)
            body = "\n".join(x[margin:] for x in lines)
            return Source(language, f"pyllm2/{file}", first, body)
    return None


def csrc() -> Path | None:
    """The folder of the C sources: beside the package, or inside it where it was installed."""
    for folder in (PACKAGE.parent / "csrc", PACKAGE / "csrc"):
        if folder.is_dir():
            return folder
    return None


def _in_c(package: str, op: str) -> Source | None:
    """`llama2_rmsnorm`, `gpt2_gelu_forward`, `adamw_update`, with the comment above it."""
    folder = csrc()
    if folder is None:
        return None
    names = [f"{package}_{op}", f"adamw_{op}", op]
    files = [*sorted((folder / package).glob("*.c")), *sorted((folder / "common").glob("*.c"))]
    for name in names:
        for path in files:
            text = path.read_text(encoding="utf-8")
            match = re.search(rf"^[a-z][\w \*]*\b{name}\([^;{{]*\)\s*\{{", text, re.MULTILINE)
            if match:
                start, end = _with_comment(text, match.start()), _end(text, match.end())
                line = text.count("\n", 0, match.start()) + 1
                return Source("C", f"csrc/{path.parent.name}/{path.name}", line, text[start:end])
    return None


def _with_comment(text: str, start: int) -> int:
    """Where the comment right above a function begins; the function's start if there is none."""
    before = text[:start].rstrip("\n")
    if text[len(before) : start].count("\n") > 1 or not before.endswith("*/"):
        return start
    opened = before.rfind("/*")
    return start if before[opened:].startswith("/* ----") else opened


def _end(text: str, at: int) -> int:
    """After the brace that closes the one before `at`."""
    depth = 1
    while depth and at < len(text):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        at += 1
    return at


def documentation(family: str, op: str) -> str:
    """The docstring of the specification, without indentation; "" if there is none."""
    module: Any = backends.ops("numpy", package=package_of(family, op))
    return inspect.getdoc(getattr(module, op, None)) or ""


def formula(family: str, op: str) -> str:
    """The indented lines of the docstring: the formula."""
    lines = documentation(family, op).splitlines()
    return "\n".join(line.strip() for line in lines if line.startswith("    "))


def sources_of(family: str, op: str) -> list[str]:
    """Lines for a report: the formula, then a line per language."""
    lines = [line for line in formula(family, op).splitlines() if line]
    lines = lines or documentation(family, op).splitlines()[:1]
    return [*lines, *(f"{s.language:<6} {s.place}" for s in source(family, op))]


# Where whole passes are written.
_WHOLE = {
    ("llama2", "numba", "inference"): [
        "pyllm2/fast/llama2/decode.py",
        "pyllm2/fast/products.py",
        "pyllm2/fast/vectors.py",
    ],
    ("llama2", "numba", "training"): ["pyllm2/fast/llama2/training.py", "pyllm2/fast/gemm.py"],
    ("gpt2", "numba", "training"): ["pyllm2/fast/gpt2/training.py", "pyllm2/fast/gemm.py"],
    ("llama2", "c", "inference"): ["csrc/llama2/model.c", "csrc/llama2/ops.c"],
    ("llama2", "c", "training"): ["csrc/llama2/training.c", "csrc/llama2/ops.c"],
    ("gpt2", "c", "training"): ["csrc/gpt2/training.c", "csrc/gpt2/ops.c"],
}


def whole_sources(family: str, backend: str, run: str) -> list[str]:
    """The files of a whole pass."""
    return _WHOLE.get((family, backend.removesuffix("-strict"), run), [])
