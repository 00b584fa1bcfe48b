"""Values of a record by name: expressions of them, changes of them, conditions on them.

Expressions are Python that the user types into a debugger of the user's own run: nothing is
forbidden. Names are those of the op's arguments and results; a result that has the name of an
argument is NAME_new (AdamW's w, m and v).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyllm2.errors import UsageError
from pyllm2.observe.record import Record

FIELDS = {"layer": int, "call": int, "position": int, "op": str, "weight": str, "phase": str}


def named_values(record: Record) -> dict[str, Any]:
    """Inputs, then results, by the names that an expression has for them."""
    found = dict(record.inputs)
    for name, value in record.outputs.items():
        found[output_name(record, name)] = value
    return found


def output_name(record: Record, name: str) -> str:
    """Example: "out"; "w_new" where an argument is called w."""
    return f"{name}_new" if name in record.inputs else name


def evaluated(expression: str, record: Record, extra: Mapping[str, Any]) -> Any:
    """The value of an expression. Raises UsageError, whatever goes wrong."""
    names = {"np": np, **extra, **named_values(record)}
    return _guarded(expression, lambda: eval(_compiled(expression, "eval"), names))


def assigned(statement: str, record: Record, extra: Mapping[str, Any]) -> tuple[str, str, Any]:
    """What an assignment makes of a value: its name, "input" or "output", the new value.

    The record stays as it is. Raises UsageError.
    """
    try:
        parsed = ast.parse(statement.strip())
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"{statement.strip()}: {_words(error)}") from None
    body = parsed.body
    if len(body) != 1 or not isinstance(body[0], ast.Assign | ast.AugAssign):
        raise UsageError(f"{statement.strip()}: expected NAME = VALUE or NAME[INDEX] = VALUE")
    target: Any = body[0].targets[0] if isinstance(body[0], ast.Assign) else body[0].target
    while isinstance(target, ast.Subscript | ast.Attribute):
        target = target.value
    values = named_values(record)
    if not isinstance(target, ast.Name) or target.id not in values:
        names = ", ".join(values)
        raise UsageError(f"{statement.strip()}: expected one of the op's values: {names}")
    name, before = target.id, values[target.id]
    copies = {n: v.copy() if isinstance(v, np.ndarray) else v for n, v in values.items()}
    space = {"np": np, **extra, **copies}
    _guarded(statement, lambda: exec(_compiled(statement, "exec"), space))
    value = _like(before, space[name], statement.strip())
    outputs = {output_name(record, n): n for n in record.outputs}
    return (outputs[name], "output", value) if name in outputs else (name, "input", value)


def _like(before: Any, value: Any, statement: str) -> Any:
    """The new value with the type and shape of the old one."""
    if not isinstance(before, np.ndarray):
        return _guarded(statement, lambda: type(before)(value)) if before is not None else value
    with np.errstate(all="ignore"):
        array = _guarded(statement, lambda: np.asarray(value).astype(before.dtype))
    if array.shape == ():
        array = np.broadcast_to(array, before.shape)
    if array.shape != before.shape:
        raise UsageError(f"{statement}: shape {array.shape}, expected {before.shape}")
    return np.array(array, order="C")


def _compiled(text: str, mode: str) -> Any:
    return compile(text.strip(), "<typed>", mode)


def _guarded(text: str, action: Callable[[], Any]) -> Any:
    try:
        with np.errstate(all="ignore"):
            return action()
    except Exception as error:  # whatever the user's expression raises is an answer to it
        raise UsageError(f"{text.strip()}: {_words(error)}") from None


def _words(error: Exception) -> str:
    text = str(error.msg if isinstance(error, SyntaxError) else error).splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


@dataclass
class Condition:
    """When to stop: fields of a record, and an expression that is true of any element.

    Example: "layer=2 op=attention", "not finite", "weight=wq |out| > 10", "x.max() > 3"

    An op without the names of the expression does not match. What else goes wrong in it is in
    `error`, and the run stops there.
    """

    fields: dict[str, Any]
    expression: str
    error: str | None = None

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Raises UsageError."""
        words, fields = text.split(), {}
        while words and (match := re.fullmatch(r"(\w+)=([^=].*)", words[0])):
            name, value = match.groups()
            if name not in FIELDS:
                raise UsageError(f"{words[0]}: expected one of {', '.join(FIELDS)} before the =")
            if FIELDS[name] is int and not (value.isascii() and value.isdigit()):
                raise UsageError(f"{words[0]}: expected a whole number after {name}=")
            fields[name] = FIELDS[name](value)
            words.pop(0)
        expression = " ".join(words)
        if not expression and not fields:
            names = "=, ".join(FIELDS)
            raise UsageError(f"expected {names}=, `not finite`, or a condition such as |out| > 10")
        if expression != "not finite":
            try:
                _compiled(_python(expression) or "0", "eval")
            except (SyntaxError, ValueError) as error:
                raise UsageError(f"{expression}: {_words(error)}") from None
        return cls(fields, expression)

    def __call__(self, record: Record) -> bool:
        if any(getattr(record, name) != value for name, value in self.fields.items()):
            return False
        if not self.expression:
            return True
        if self.expression == "not finite":
            return any(_not_finite(value) for value in record.outputs.values())
        names = {"np": np, "abs": np.abs, **named_values(record)}
        try:
            with np.errstate(all="ignore"):
                return bool(np.any(eval(_compiled(_python(self.expression), "eval"), names)))
        except NameError:
            return False
        except Exception as error:
            self.error = f"{self.expression}: {_words(error)}"
            return True


def _python(expression: str) -> str:
    """Example: "|x| > 10" -> "abs(x) > 10" """
    return re.sub(r"\|([^|]+)\|", r"abs(\1)", expression)


def _not_finite(value: Any) -> bool:
    return isinstance(value, np.ndarray | float) and not bool(np.isfinite(value).all())
