"""What `step` shows, as text: where we are, the tree of a pass, the values of an op."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pyllm2.observe.record import Record, shape_words
from pyllm2.observe.step_values import output_name
from pyllm2.observe.stepper import Stepper


def heading(stepper: Stepper) -> str:
    """Example: "op 17 of 78 · token 2 of 4 'upon' · layer 1 wq matmul · numpy" """
    record = stepper.record
    parts = [f"op {record.index - first_of_pass(stepper)}"]
    if stepper.plan:
        parts[0] += f" of {len(stepper.plan)}"
    parts += [pass_words(stepper, record), record.name, stepper.computed_by[stepper.at]]
    if stepper.at in stepper.changed:
        parts.append("changed")
    if stepper.stride != "op":
        parts.append(f"by {'passes' if stepper.stride == 'pass' else stepper.stride + 's'}")
    return " · ".join(parts)


def first_of_pass(stepper: Stepper) -> int:
    """Number of the first op of the pass that is looked at."""
    n, records = stepper.at, stepper.records
    while n > 0 and records[n - 1].call == records[n].call:
        n -= 1
    return n


def pass_words(stepper: Stepper, record: Record) -> str:
    """Example: "token 2 of 4 'upon'", "tokens 1 to 4", "update 1, backward" """
    if record.phase != "forward" or record.rows == 0 or stepper.trains:
        return f"update {record.call + 1} of {stepper.run.calls}, {record.phase}"
    first, last = record.position, record.position + record.rows
    if record.rows > 1:
        return f"tokens {first + 1} to {last}"
    token = stepper.tokens[first] if first < len(stepper.tokens) else None
    before = stepper.tokens[first - 1] if first else None
    text = stepper.run.text_of(token, before) if token is not None else ""
    of = max(len(stepper.run.ids), last)
    return f"token {last} of {of} {text or token!r}".replace("\n", "\\n")


@dataclass
class Node:
    """A line of the tree: a layer, an op in it, or an op outside of all layers."""

    label: str
    depth: int
    index: int | None  # number of the record, of a layer its first; None: has not run yet
    here: bool = False
    ops: int = 0  # of a layer
    phase: str = "forward"
    layer: int | None = None

    def is_of(self, record: Record) -> bool:
        """Whether this line stands for an op, or for the layer that it is in."""
        same = (record.phase, record.layer) == (self.phase, self.layer)
        whole = self.depth == 0 and self.layer is not None
        return same and (whole or record.name.endswith(self.label))


def tree(stepper: Stepper) -> list[Node]:
    """The ops of this pass; those of the layer that we are in, of other layers one line each."""
    first = first_of_pass(stepper)
    call = stepper.records[first].call
    done = [r for r in stepper.records[first:] if r.call == call]
    ops: list[tuple[str, int | None, str, int | None]] = []
    ops += [(r.phase, r.layer, r.name, r.index) for r in done]
    ops += [(*planned, None) for planned in stepper.plan[len(done) :]]
    at = stepper.record
    nodes: list[Node] = []
    group: Any = None
    for phase, layer, name, index in ops:
        here = index == at.index
        open_ = (phase, layer) == (at.phase, at.layer)
        if layer is not None and (phase, layer) != group:
            suffix = f", {phase}" if phase != "forward" else ""
            nodes.append(Node(f"layer {layer}{suffix}", 0, index, open_))
            nodes[-1].phase, nodes[-1].layer = phase, layer
        group = phase, layer
        if layer is None:
            nodes.append(Node(name, 0, index, here, 0, phase))
        elif open_:
            label = name.removeprefix(f"layer {layer} ")
            nodes.append(Node(label, 1, index, here, 0, phase, layer))
        else:
            nodes[-1].ops += 1
    return nodes


def tree_lines(stepper: Stepper) -> list[str]:
    """The tree: ">" where we are, "-" what has run, "." what has not."""
    lines = []
    for node in tree(stepper):
        mark = ">" if node.here else "." if node.index is None or node.index > stepper.at else "-"
        ops = f" ({node.ops} ops)" if node.ops else ""
        lines.append(f"{'  ' * node.depth}{mark} {node.label}{ops}")
    return lines


@dataclass
class Value:
    """An input or result, described."""

    name: str
    value: Any
    shape: str
    numbers: str  # min, max, mean, and NaN where there are
    source: str  # where an input comes from


def values(record: Record) -> list[Value]:
    """The inputs and the results of an op."""
    found = [Value(n, v, *described(v), source_of(record, n)) for n, v in record.inputs.items()]
    for name, value in record.outputs.items():
        found.append(Value(output_name(record, name), value, *described(value), "result"))
    return found


def current_values(stepper: Stepper) -> list[Value]:
    """The values of the op; where we go by lines, first the variables that are no arguments."""
    record = stepper.record
    found = values(record)
    if stepper.stride != "line":
        return found
    variables = stepper.lines[stepper.line].variables
    new = {n: v for n, v in variables.items() if n not in record.inputs}
    return [*(Value(n, v, *described(v), "variable") for n, v in new.items()), *found]


def described(value: Any) -> tuple[str, str]:
    """Shape, and numbers of what is in it."""
    if isinstance(value, np.ndarray):
        return shape_words(value.shape, str(value.dtype)), statistics(value)
    return "", f"{value:.7g}" if isinstance(value, float) else repr(value)


def statistics(array: Any) -> str:
    """Example: "-2.15 … 2.41, mean 0.0399", with the number of NaN and infinities if there are."""
    if not array.size:
        return "empty"
    with np.errstate(all="ignore"):
        a = array.astype(np.float64)
        finite = a[np.isfinite(a)]
    nans, infinities = int(np.isnan(a).sum()), int(np.isinf(a).sum())
    words = (
        f"{finite.min():.4g} … {finite.max():.4g}, mean {finite.mean():.4g}" if finite.size else ""
    )
    for count, name in ((nans, "NaN"), (infinities, "infinite")):
        words += f"{', ' if words else ''}{count} {name}" if count else ""
    return words


def source_of(record: Record, name: str) -> str:
    """Example: "from op 3", "wq[0]", "" where nothing is known."""
    origin = record.origins.get(name)
    if origin is None:
        return ""
    if origin.record is not None:
        return f"from op {origin.record}"
    return origin.name if origin.layer is None else f"{origin.name}[{origin.layer}]"


def predictions(stepper: Stepper, count: int = 5) -> str:
    """After the last op of a pass: the most probable next tokens; "" anywhere else.

    Example: "next: 62% ',' 11% 'there'"
    """
    record = stepper.record
    is_last = record.layer is None and record.op.startswith("matmul") and "out" in record.outputs
    if record.phase != "forward" or stepper.trains or not is_last:
        return ""
    logits = np.asarray(record.outputs["out"], np.float64).reshape(-1, record.output.shape[-1])[-1]
    with np.errstate(all="ignore"):
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
    if not np.isfinite(shares).all():
        return "next: the logits are not finite"
    best = np.argsort(-shares, kind="stable")[:count]
    last = stepper.tokens[-1]
    words = (f"{shares[i]:.0%} {stepper.run.text_of(int(i), last) or int(i)!r}" for i in best)
    return "next: " + "  ".join(words).replace("\n", "\\n")


def value_lines(record: Record) -> list[str]:
    """A line per input and result."""
    return [
        f"    {v.name:<12} {v.shape:<20} {v.numbers:<44} {v.source}".rstrip()
        for v in values(record)
    ]


def shown(value: Any, most: int = 400) -> str:
    """A value of an expression as text."""
    if isinstance(value, np.ndarray):
        text = np.array2string(value, precision=5, threshold=60, edgeitems=3, max_line_width=96)
        return f"{text}  {shape_words(value.shape, str(value.dtype))}"
    text = repr(value)
    return text if len(text) <= most else text[:most] + " …"
