"""A recorded run as one HTML file, to be stepped through in a browser."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from pyllm2.observe import heat, step_text
from pyllm2.observe.html import document, escape
from pyllm2.observe.record import Record, Trace, shape_words
from pyllm2.observe.sources import documentation, package_of, source
from pyllm2.observe.spec import without_docstring
from pyllm2.observe.step_values import output_name
from pyllm2.observe.trace import CACHE

COLUMNS, ROWS = 128, 32  # cells of a picture, at most

Results = dict[tuple[int, str], Any]  # by record and name

BODY = """\
<header>
<h1>{title}</h1>
<button id="earlier">« token</button><button id="previous">‹ op</button>
<button id="following">op ›</button><button id="later">token »</button>
<span id="heading"></span>
<small>keys: n b op, [ ] token, l language, v value</small>
</header>
<nav id="ops" aria-label="ops"></nav>
<main>
<section>
<pre id="formula" class="formula"></pre>
<p id="tabs"></p>
<small id="place"></small>
<pre id="code" class="code"></pre>
</section>
<section>
<table id="values"></table>
<canvas id="map"></canvas>
<div id="said"></div>
</section>
</main>"""


def playback_page(found: Trace) -> str:
    """The whole page. Arrays are pictures of at most 128 × 32 cells; weights are left out."""
    results = {(r.index, name): a for r in found if r.kept for name, a in r.outputs.items()}
    data = {
        "ops": [_op(record, found, results) for record in found],
        "sources": {op: _sources(found.family, op) for op in {r.op for r in found}},
    }
    text = "".join(found.texts).strip() or f"{len(found.tokens)} tokens"
    title = f"{text[:60]} · {found.backend}"
    body = BODY.format(title=escape(title))
    return document(title, body, "base.css playback.css", "common.js playback.js", data)


def _sources(family: str, op: str) -> dict[str, Any]:
    package = package_of(family, op)
    found = map(without_docstring, source(family, op))
    return {
        "formula": documentation(package, op),
        "sources": [[s.language, s.place, s.text] for s in found],
    }


def _op(record: Record, found: Trace, results: Results) -> dict[str, Any]:
    label = record.name.removeprefix(f"{record.place} ")
    values = [_input(record, name, results) for name in _input_names(record)]
    values += [_result(record, name) for name in record.outputs]
    return {
        "index": record.index,
        "op": record.op,
        "name": record.name,
        "label": label,
        "layer": record.layer,
        "place": f"{record.place}, {record.phase}" if record.phase != "forward" else record.place,
        "call": record.call,
        "pass": _pass(record, found),
        "values": values,
    }


def _pass(record: Record, found: Trace) -> str:
    if any(r.phase != "forward" for r in found):
        return f"update {record.call + 1}, {record.phase}"
    first, last = record.position, record.position + record.rows
    text = found.texts[first] if first < len(found.texts) else ""
    return f"tokens {first + 1} to {last}" if record.rows > 1 else f"token {last} {text}".rstrip()


def _input_names(record: Record) -> list[str]:
    """Of a trace from a file also those whose values are not in it: the weights."""
    names = [n for n in record.shapes if not n.startswith("-> ")]
    return names + [n for n in record.inputs if n not in names]


def _input(record: Record, name: str, results: Results) -> dict[str, Any]:
    value, origin = record.inputs.get(name), record.origins.get(name)
    shape = shape_words(*record.shapes[name]) if name in record.shapes else ""
    described = {"name": name, "shape": shape, "source": step_text.source_of(record, name)}
    if not isinstance(value, np.ndarray):
        return described | {"numbers": "" if value is None else f"{value!r}"}
    if origin is not None and origin.record is not None:
        made = results.get((origin.record, origin.name))
        if isinstance(made, np.ndarray) and made.size == value.size:
            return described | {"from": [origin.record, origin.name], "dims": list(value.shape)}
    described["numbers"] = step_text.statistics(value)
    is_weight = origin is not None and origin.record is None and origin.name not in CACHE
    return described if is_weight else described | _cells(value)


def _result(record: Record, name: str) -> dict[str, Any]:
    value = record.outputs[name]
    shape, numbers = step_text.described(value)
    found = {"name": output_name(record, name), "shape": shape, "source": "result", "result": name}
    return found | {"numbers": numbers} | (_cells(value) if isinstance(value, np.ndarray) else {})


def _cells(value: Any) -> dict[str, Any]:
    """The picture of an array."""
    if not value.size or value.dtype.kind not in "fiub":
        return {}
    found = heat.picture(value, COLUMNS, ROWS)
    cells = np.where(found.chosen < 0, 0, found.values).astype("<f4")
    return {
        "cells": base64.b64encode(cells.tobytes()).decode(),
        "grid": list(found.values.shape),
        "count": int((found.chosen >= 0).sum()),
        "dims": list(value.shape),
        "scale": found.scale,
        "legend": found.legend,
    }
