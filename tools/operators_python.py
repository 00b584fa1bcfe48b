"""The operators of `operators.py` over the syntax tree of a Python file."""

from __future__ import annotations

import ast
from itertools import pairwise
from typing import Any

from mutant import COMPARE, TWINS, Mutant

_COMPARE: dict[type[ast.cmpop], str] = dict(
    zip(
        (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq),
        ("<", "<=", ">", ">=", "==", "!="),
        strict=True,
    )
)
_COMPARE |= {ast.Is: "is", ast.IsNot: "is not", ast.In: "in", ast.NotIn: "not in"}
_OPPOSITE = COMPARE | {"is": "is not", "is not": "is", "in": "not in", "not in": "in"}
_SYMMETRIC = set("max min maximum minimum fmax fmin swapaxes isinstance".split())
_SKIPPED = (ast.JoinedStr, ast.Raise, ast.Assert, ast.Import, ast.ImportFrom)
_ATOMS = (ast.Name, ast.Constant, ast.Call, ast.Subscript, ast.Attribute)


class Python:
    """The proposals for a Python file."""

    def __init__(self, file: str, source: str) -> None:
        self.file, self.source = file, source
        self.lines = source.splitlines(keepends=True)
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line))
        self.found: list[Mutant] = []
        self.function = ""
        self.loops: list[str] = []  # loop variables in sight
        self.counted: set[ast.AST] = set()  # the 1 of each -1

    def proposals(self) -> list[Mutant]:
        self.visit(ast.parse(self.source))
        return self.found

    def offset(self, line: int, column: int) -> int:
        """`column` counts bytes of UTF-8, as the syntax tree does."""
        text = self.lines[line - 1].encode()[:column].decode()
        return self.starts[line - 1] + len(text)

    def span(self, node: Any) -> tuple[int, int]:
        return (
            self.offset(node.lineno, node.col_offset),
            self.offset(node.end_lineno, node.end_col_offset),
        )

    def text(self, node: Any) -> str:
        """A node's text, in brackets unless it needs none anywhere."""
        start, end = self.span(node)
        text = self.source[start:end]
        return text if isinstance(node, _ATOMS) else f"({text})"

    def propose(self, operator: str, node: Any, text: str) -> None:
        self.found.append(Mutant(self.file, self.function, operator, *self.span(node), text))

    def between(self, operator: str, left: Any, right: Any, old: str, new: str) -> None:
        """`new` for the `old` that stands between two nodes."""
        start, end = self.span(left)[1], self.span(right)[0]
        at = self.source.find(old, start, end)
        if at >= 0:
            self.found.append(Mutant(self.file, self.function, operator, at, at + len(old), new))

    # Walking: which function are we in, which loops are around.

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, _SKIPPED):
            return
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            outer, loops = self.function, self.loops
            self.function = f"{outer}.{node.name}" if outer else node.name
            if not isinstance(node, ast.ClassDef):
                self.loops = _loop_variables(node)
            for child in node.body:
                self.visit(child)
            self.function, self.loops = outer, loops
            return
        operators = getattr(self, f"of_{type(node).__name__}", None)
        if operators is not None:
            operators(node)
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "ctx", "op", "ops"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    self.visit(child)

    # What each kind of node is good for.

    def of_BinOp(self, node: ast.BinOp) -> None:  # noqa: N802  (named after the syntax tree)
        kept = [self.text(node.left), self.text(node.right)]
        if isinstance(node.op, ast.Add | ast.Sub):
            for operand in kept:
                self.propose("drop-term", node, operand)
            signs = ("+", "-") if isinstance(node.op, ast.Add) else ("-", "+")
            self.between("plus-minus", node.left, node.right, *signs)
        if isinstance(node.op, ast.Mult | ast.Div | ast.FloorDiv | ast.Mod):
            for operand in kept:
                self.propose("drop-factor", node, operand)
        sign = {ast.Sub: "-", ast.Div: "/", ast.FloorDiv: "//", ast.MatMult: "@"}.get(type(node.op))
        if sign is not None:
            self.propose("swap-operands", node, f"({kept[1]} {sign} {kept[0]})")

    def of_UnaryOp(self, node: ast.UnaryOp) -> None:  # noqa: N802
        if isinstance(node.operand, ast.Constant) and isinstance(node.operand.value, int):
            self.counted.add(node.operand)  # from the end: an axis, or a shape to be found
        elif isinstance(node.op, ast.USub | ast.Not):
            self.propose("drop-sign", node, self.text(node.operand))

    def of_Compare(self, node: ast.Compare) -> None:  # noqa: N802
        operands = [node.left, *node.comparators]
        for op, (left, right) in zip(node.ops, pairwise(operands), strict=True):
            sign = _COMPARE[type(op)]
            self.between("compare", left, right, sign, _OPPOSITE[sign])

    def of_BoolOp(self, node: ast.BoolOp) -> None:  # noqa: N802
        words = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        texts = [self.text(value) for value in node.values]
        self.propose("and-or", node, f"({f' {words[1]} '.join(texts)})")

    def of_Constant(self, node: ast.Constant) -> None:  # noqa: N802
        if isinstance(node.value, bool):
            self.propose("constant", node, str(not node.value))
        elif isinstance(node.value, int | float) and node not in self.counted:
            self.propose("constant", node, repr(2 * node.value) if node.value else "1")

    def of_Attribute(self, node: ast.Attribute) -> None:  # noqa: N802
        if node.attr == "T":
            self.propose("drop-transpose", node, self.text(node.value))

    def of_Call(self, node: ast.Call) -> None:  # noqa: N802
        name = getattr(node.func, "attr", None) or getattr(node.func, "id", "")
        if name in TWINS:
            _, end = self.span(node.func)
            twin = Mutant(self.file, self.function, "twin", end - len(name), end, TWINS[name])
            self.found.append(twin)
        if name in ("range", "prange") and node.args:
            first, last = node.args[0], node.args[min(1, len(node.args) - 1)]
            if first is not last:
                self.propose("range-begin", first, f"{self.text(first)} + 1")
            elif len(node.args) == 1:
                self.propose("range-begin", first, f"1, {self.text(first)}")
            self.propose("range-end", last, f"{self.text(last)} - 1")
        elif name not in _SYMMETRIC:
            self.swap("swap-arguments", node.args)
        for keyword in node.keywords:
            if keyword.arg in ("axis", "dtype", "keepdims"):
                start, end = self.span(keyword)
                start = self.source.rfind(",", 0, start) if node.args else start
                if self.source[start] == ",":
                    found = Mutant(self.file, self.function, "drop-keyword", start, end, "")
                    self.found.append(found)

    def of_Subscript(self, node: ast.Subscript) -> None:  # noqa: N802
        index = node.slice
        for part in index.elts if isinstance(index, ast.Tuple) else [index]:
            if isinstance(part, ast.UnaryOp) and isinstance(part.op, ast.USub):
                self.propose("drop-sign", part, self.text(part.operand))
            if isinstance(part, ast.Name) and part.id in self.loops:
                self.propose("index-zero", part, "0")
                for other in self.loops:
                    if other != part.id:
                        self.propose("wrong-variable", part, other)
                        break
            if isinstance(part, ast.Slice) and part.step is None:
                if part.upper is not None:
                    self.propose("range-end", part.upper, f"{self.text(part.upper)} - 1")
                if part.lower is not None:
                    self.propose("range-begin", part.lower, f"{self.text(part.lower)} + 1")

    def of_Return(self, node: ast.Return) -> None:  # noqa: N802
        if isinstance(node.value, ast.Tuple):
            self.swap("swap-arguments", node.value.elts)

    def swap(self, operator: str, parts: list[ast.expr]) -> None:
        """Neighbours change places."""
        for a, b in pairwise(parts):
            if isinstance(a, ast.Starred) or isinstance(b, ast.Starred):
                continue
            (start, a_end), (b_start, end) = self.span(a), self.span(b)
            between = self.source[a_end:b_start]
            text = self.source[b_start:end] + between + self.source[start:a_end]
            self.found.append(Mutant(self.file, self.function, operator, start, end, text))

    def of_If(self, node: ast.If | ast.While | ast.IfExp) -> None:  # noqa: N802
        self.propose("negate", node.test, f"(not {self.text(node.test)})")

    of_While = of_IfExp = of_If  # noqa: N815

    def of_Expr(self, node: ast.Expr) -> None:  # noqa: N802
        if isinstance(node.value, ast.Call):
            self.propose("drop-statement", node, "pass")

    def of_AugAssign(self, node: ast.AugAssign) -> None:  # noqa: N802
        self.propose("drop-statement", node, "pass")
        if isinstance(node.op, ast.Add | ast.Sub):
            signs = ("+=", "-=") if isinstance(node.op, ast.Add) else ("-=", "+=")
            self.between("plus-minus", node.target, node.value, *signs)

    def of_Assign(self, node: ast.Assign) -> None:  # noqa: N802
        names = {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)}
        (target, *_) = node.targets
        again = isinstance(target, ast.Name) and target.id in names
        if self.function and (again or isinstance(target, ast.Subscript)):
            self.propose("drop-statement", node, "pass")

    def of_Continue(self, node: ast.Continue) -> None:  # noqa: N802
        self.propose("jump", node, "break")

    def of_Break(self, node: ast.Break) -> None:  # noqa: N802
        self.propose("jump", node, "pass")


def _loop_variables(function: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(function):
        if isinstance(node, ast.For | ast.comprehension):
            found += [n.id for n in ast.walk(node.target) if isinstance(n, ast.Name)]
    return list(dict.fromkeys(found))
