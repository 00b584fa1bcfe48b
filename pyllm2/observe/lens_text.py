"""A lens for a terminal: tables, shading, attention maps in half blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pyllm2.observe import heat

CELL = 13  # columns per token
HEAD = 11  # columns for the name of a row
MOST_MAP = 24  # lines of an attention map


def lens_text(
    found: Any, width: int = 100, coloured: bool = False, layer: int | None = None
) -> str:
    """The tables, a block of tokens after the other; with `layer` its attention maps.

    coloured: shade each cell by its probability
    """
    parts = [shaded_text(found, coloured)]
    per_block = max(1, (width - HEAD) // CELL)
    T = len(found.tokens)
    for start in range(0, T, per_block):
        parts.append("\n".join(_block(found, slice(start, min(start + per_block, T)), coloured)))
    if layer is not None:
        parts.append("\n".join(_maps(found, layer, width, coloured)))
    return "\n\n".join(parts)


def shaded_text(found: Any, coloured: bool) -> str:
    """The text, each token with its probability given those before it."""
    lines = ["probability of each token, given those before it"]
    pieces = []
    for t, text in enumerate(found.texts):
        share = found.shares[-1, t - 1] if t else np.nan
        if coloured:
            pieces.append(_shade(_plain(text), share))
        else:
            pieces.append(_plain(text) if np.isnan(share) else f"{_plain(text)}[{share:.0%}]")
    lines.append("".join(pieces))
    if len(found.tokens) > 1:
        lines.append(f"loss {found.loss:.3f} nats per token, perplexity {np.exp(found.loss):.2f}")
    return "\n".join(lines)


def _block(found: Any, tokens: slice, coloured: bool) -> Iterator[str]:
    """Best next token after each layer, the last layer first; then the norms."""
    columns = range(*tokens.indices(len(found.tokens)))
    yield f"{'':<{HEAD}}" + "".join(f"{_cut(found.texts[t], CELL - 1):<{CELL}}" for t in columns)
    for row in reversed(range(len(found.norms))):
        line = f"{found.row_name(row):<{HEAD}}"
        for t in columns:
            share = float(found.best_shares[row, t, 0])
            text = f"{_cut(found.best_texts[row][t][0], CELL - 6)} {share:.0%}"
            cell = f"{text:<{CELL - 1}}"
            line += (_shade(cell, share) if coloured else cell) + " "
        yield line.rstrip()
    if tokens.stop < len(found.tokens) or tokens.stop - tokens.start > 1:
        words = []
        for t in columns:
            rank = int(found.ranks[-1, t])
            words.append("" if rank < 0 else f"#{rank + 1} {found.shares[-1, t]:.0%}")
        yield f"{'what came':<{HEAD}}" + "".join(f"{word:<{CELL}}" for word in words).rstrip()
    for row in reversed(range(len(found.norms))):
        name = "norm, " + found.row_name(row).replace("layer ", "").replace("embedding", "emb.")
        numbers = (f"{found.norms[row, t]:<{CELL}.4g}" for t in columns)
        yield f"{name:<{HEAD}}" + "".join(numbers).rstrip()


def _maps(found: Any, layer: int, width: int, coloured: bool) -> Iterator[str]:
    """What each query, a row, attends to, a map per head, as many beside each other as fit."""
    T = len(found.tokens)
    zoom = max(1, min(4, 16 // T)) if coloured else 2 if T <= MOST_MAP else 1
    columns = min(T * zoom, 2 * MOST_MAP)
    per_line = max(1, (width + 3) // (columns + 3))
    heads = found.attention[layer]
    yield f"layer {layer}: attention of each head; a row is a query, a column a key"
    for start in range(0, len(heads), per_line):
        group = range(start, min(start + per_line, len(heads)))
        yield "   ".join(f"{f'head {h}':<{columns}}"[:columns] for h in group).rstrip()
        pictures = []
        for h in group:
            enlarged = heads[h].repeat(zoom, 1)
            enlarged = enlarged.repeat(zoom, 0) if coloured else enlarged
            shown = heat.picture(enlarged, columns, 2 * MOST_MAP if coloured else MOST_MAP)
            pictures.append(
                _aligned(heat.lines_of(shown, coloured), shown.values.shape[1], columns)
            )
        for lines in zip(*pictures, strict=True):
            yield "   ".join(lines).rstrip()


def _aligned(lines: list[str], drawn: int, columns: int) -> list[str]:
    """Lines of a picture as wide as the column that it stands in."""
    if lines and "\x1b" in lines[0]:
        return [line + " " * (columns - drawn) for line in lines]
    return [f"{line:<{columns}}" for line in lines]


def _plain(text: str) -> str:
    """Without characters that would move the cursor."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _cut(text: str, most: int) -> str:
    text = _plain(text)
    return text if len(text) <= most else text[: most - 1] + "…"


def _shade(text: str, share: float) -> str:
    """Text on a background: the more probable, the brighter."""
    if np.isnan(share):
        return text
    red, green, blue = heat.colour(float(share), 1.0)
    ink = "38;2;0;0;0" if share > 0.3 else "38;2;255;255;255"
    return f"\x1b[{ink};48;2;{red};{green};{blue}m{text}\x1b[0m"
