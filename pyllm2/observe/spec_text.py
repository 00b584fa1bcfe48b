"""A page of the specification (`spec.Page`) as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

NARROWEST = 52  # columns of a source beside others


def page_text(page: Any, width: int = 100, shares: Mapping[str, Any] | None = None) -> str:
    """A page; the three sources side by side if `width` columns have room for them.

    shares: by backend, the worst share of the bound that was measured
    """
    called = ", ".join(page.originals) or "no function of its own"
    parts = [
        f"{page.name}    in {page.program}: {called}\n{'─' * width}",
        _wrapped(page.summary, width),
        textwrap.indent(page.formula, "    "),
        page.notes,
        sources_text(page.sources, width),
    ]
    if page.laws:
        lines = [_wrapped(f"{law.name}: {law.text}", width, "  ") for law in page.laws]
        parts.append("\n".join(["Laws, which every backend obeys", *lines]))
    if page.bound is not None:
        parts.append(f"Bound, {page.bound.place}\n" + textwrap.indent(page.bound.derivation, "  "))
    if shares:
        words = ", ".join(f"{name} {found.share:.3g}" for name, found in shares.items())
        parts.append(f"Largest share of the bound on drawn inputs: {words}")
    if page.related:
        parts.append(f"See also: {', '.join(page.related)}")
    return "\n\n".join(part for part in parts if part)


def sources_text(sources: Sequence[Any], width: int) -> str:
    """Sources side by side if there is room, else one below the other."""
    heads = [f"{s.language}, {s.place}" for s in sources]
    column = (width - 3 * (len(sources) - 1)) // max(len(sources), 1)
    if column < NARROWEST:
        return "\n\n".join(f"{h}\n{s.text}" for h, s in zip(heads, sources, strict=True))
    return side_by_side(
        [[h, "", *s.text.splitlines()] for h, s in zip(heads, sources, strict=True)], column
    )


def side_by_side(columns: Sequence[Sequence[str]], width: int) -> str:
    """Columns of lines, each `width` wide; longer lines are continued below, indented."""
    folded = [[part for line in lines for part in fold(line, width)] for lines in columns]
    rows = zip_longest(*folded, fillvalue="")
    return "\n".join(" │ ".join(f"{cell:<{width}}" for cell in row).rstrip() for row in rows)


def fold(line: str, width: int) -> list[str]:
    """A line of code in pieces of at most `width` columns; the rest is indented by 4 more."""
    indent = " " * min(len(line) - len(line.lstrip()) + 4, width // 2)
    return textwrap.wrap(
        line, width, subsequent_indent=indent, drop_whitespace=False, replace_whitespace=False
    ) or [""]


def _wrapped(text: str, width: int, indent: str = "") -> str:
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=2 * indent)
