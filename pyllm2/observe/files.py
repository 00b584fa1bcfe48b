"""A trace as a file: .npz and .safetensors hold the arrays, .jsonl is text, a line per op.

Written are the results of every record, the weights of an attention that does not return them, and
inputs that are no weight of the model and no result of another record. An array's name is
`NUMBER/NAME/RESULT`, such as `00007/layer 0 attention/out`. The records themselves are JSON:
in the array `records` of an .npz, in the metadata of a .safetensors, or the lines of a .jsonl.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm2.errors import FormatError, UsageError, shown
from pyllm2.formats.writer import atomic_write
from pyllm2.observe.arrays import read_arrays, write_arrays
from pyllm2.observe.record import Origin, Record, Trace

Array = NDArray[Any]
SUFFIXES = (".npz", ".safetensors", ".jsonl")
VERSION = 1
_FIELDS = "index op layer phase call position rows weight of seconds kept".split()


def check_suffix(path: str) -> None:
    """Raises UsageError for a name that says no format."""
    if not path.endswith(SUFFIXES):
        raise UsageError(f"{path}: expected a name that ends in .npz, .safetensors or .jsonl")


def save_trace(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write a trace; the name's suffix chooses the format. Raises FileError, UsageError."""
    name = os.fspath(path)
    check_suffix(name)
    if name.endswith(".jsonl"):
        with atomic_write(name) as file:
            file.writelines(_lines(trace))
        return
    arrays = {
        f"{r.index:05}/{r.name}/{value}": array
        for r in trace
        for value, array in _arrays(r, trace).items()
    }
    write_arrays(name, arrays, json.dumps(_head(trace) | {"records": list(map(_described, trace))}))


def save_new(trace: Trace, path: str) -> None:
    """`save_trace`, but not over a file. Raises UsageError."""
    if os.path.isfile(path) and os.path.getsize(path):
        raise UsageError(f"{path}: already exists: choose another name")
    save_trace(trace, path)


def _head(trace: Trace) -> dict[str, Any]:
    fields = "family backend tokens texts".split()
    return {"pyllm2_trace": VERSION} | {name: getattr(trace, name) for name in fields}


def _described(record: Record) -> dict[str, Any]:
    """A record without its arrays."""
    found: dict[str, Any] = {name: getattr(record, name) for name in _FIELDS}
    found["shapes"] = {name: [list(shape), dtype] for name, (shape, dtype) in record.shapes.items()}
    found["origins"] = {name: list(origin) for name, origin in record.origins.items()}
    found["numbers"] = {n: v for n, v in record.inputs.items() if isinstance(v, int | float)}
    return found


def _arrays(record: Record, trace: Trace) -> dict[str, Array]:
    """What the file has of a record; names of inputs begin with "in "."""
    found = {n: a for n, a in record.outputs.items() if isinstance(a, np.ndarray)}
    kept = {r.index for r in trace if r.kept}
    for name, value in record.inputs.items():
        if isinstance(value, np.ndarray) and not _elsewhere(record.origins.get(name), kept, trace):
            found[f"in {name}"] = value
    if record.op == "attention" and record.kept:
        found["att"] = record.weights
    return found


def _elsewhere(origin: Origin | None, kept: set[int], trace: Trace) -> bool:
    """Whether an input can be found in the model or in another record."""
    if origin is None:
        return False
    if origin.record is not None:
        return origin.record in kept
    of_cache = origin.name in ("keys", "values", "qkv")
    return not of_cache or all(r.kept for r in trace)


def _lines(trace: Trace) -> Iterator[bytes]:
    yield json.dumps(_head(trace)).encode() + b"\n"
    for record in trace:
        line = _described(record) | {"name": record.name}
        line["values"] = {n: _as_lists(a) for n, a in _arrays(record, trace).items()}
        yield json.dumps(line).encode() + b"\n"


def _as_lists(array: Array) -> Any:
    """Nested lists; NaN and infinities, which JSON has not, as strings."""

    def walk(value: Any) -> Any:
        if isinstance(value, list):
            return [walk(v) for v in value]
        return value if isinstance(value, int) or math.isfinite(value) else str(value)

    return walk(array.tolist())


# ---- reading -----------------------------------------------------------------------------------


def load_trace(path: str | os.PathLike[str]) -> Trace:
    """Read a trace that `save_trace` wrote as .npz or .safetensors.

    Inputs that are results of other records are put together again; weights of the model are not
    in the file. Raises FileError, FormatError.
    """
    name = os.fspath(path)
    arrays, text = read_arrays(name)
    try:
        head = json.loads(text) if text else {}
        version = head.get("pyllm2_trace") if isinstance(head, dict) else None
        if version != VERSION:
            found = shown(version)
            raise FormatError(name, f"pyllm2_trace = {found}: expected {VERSION}, a trace")
        records = [_record(r) for r in head["records"]]
        family, backend = str(head["family"]), str(head["backend"])
        tokens, texts = [int(i) for i in head["tokens"]], [str(t) for t in head["texts"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(name, f"records: {shown(error)}: expected those of a trace") from None
    by_index = {r.index: r for r in records}
    for key, array in arrays.items():
        number, _, rest = key.partition("/")
        record = by_index.get(int(number)) if number.isdigit() else None
        if record is None:
            raise FormatError(name, f"array {shown(key)}: no record has this number")
        value = rest.rpartition("/")[2]
        into = record.inputs if value.startswith("in ") else record.outputs
        into[value.removeprefix("in ")] = array
    for record in records:
        _join(record, by_index)
    return Trace(records, family, tokens, texts, backend)


def _record(found: dict[str, Any]) -> Record:
    record = Record(**{name: found[name] for name in _FIELDS})
    record.shapes = {
        n: (tuple(map(int, shape)), str(d)) for n, (shape, d) in found["shapes"].items()
    }
    record.origins = {n: Origin(*origin) for n, origin in found["origins"].items()}
    record.inputs = dict(found["numbers"])
    return record


def _join(record: Record, by_index: dict[int, Record]) -> None:
    """Put the inputs of a record back that are results of others: whole, or their last rows."""
    for name, origin in record.origins.items():
        made = by_index.get(origin.record) if origin.record is not None else None
        array = made.outputs.get(origin.name) if made else None
        shape = record.shapes.get(name, ((), ""))[0]
        if array is None or name in record.inputs:
            continue
        if array.size == math.prod(shape):
            record.inputs[name] = array.reshape(shape)
        elif array.shape[1:] == shape[1:] and len(array) > shape[0]:
            record.inputs[name] = array[-shape[0] :]
