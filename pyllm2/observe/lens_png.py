"""A lens as a picture, with matplotlib."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from pyllm2.errors import UsageError
from pyllm2.training.plot import require_plot, save_figure

MOST_TOKENS = 48  # columns of a table that can be read


def save_lens(found: Any, path: str | os.PathLike[str], layer: int | None = None) -> None:
    """Logit lens, norms, and the attention of a layer (None: the last).

    The suffix of `path` is the image format. Raises FileError, BackendError, UsageError.
    """
    require_plot()
    T = len(found.tokens)
    if T > MOST_TOKENS:
        raise UsageError(f"a picture of {T} tokens: expected at most {MOST_TOKENS}; try --html")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    L, NH = found.attention.shape[:2]
    layer = L - 1 if layer is None else layer
    per_line = min(NH, 8)
    lines = -(-NH // per_line)
    width = max(9.0, 2 + 0.75 * T)
    heights = [0.5 + 0.28 * (L + 1), 2.5, 1.9 * lines]
    figure = pyplot.figure(figsize=(width, sum(heights) + 1), layout="constrained")
    parts: Any = figure.subfigures(3, 1, height_ratios=heights)
    top, middle, bottom = parts
    _table(found, top.subplots())
    axes = middle.subplots()
    axes.plot(found.norms, color="0.7", lw=1)
    axes.plot(found.norms[:, -1], color="C0", lw=2)
    axes.set_xticks(range(L + 1), ["emb.", *map(str, range(L))])
    axes.set_title("norm of the stream by layer, a line per token (blue: the last)", fontsize=9)
    bottom.suptitle(f"attention of layer {layer}: rows are queries, columns keys", fontsize=9)
    for h, one in enumerate(np.ravel(bottom.subplots(lines, per_line))):
        one.set_axis_off()
        if h < NH:
            one.imshow(found.attention[layer, h], cmap="Blues", vmin=0, vmax=1)
            one.set_title(f"head {h}", fontsize=8)
    save_figure(figure, path)
    pyplot.close(figure)


def _table(found: Any, axes: Any) -> None:
    rows, T = found.best_shares.shape[:2]
    axes.imshow(found.best_shares[::-1, :, 0], cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row in range(rows):
        for t in range(T):
            share = found.best_shares[row, t, 0]
            text = _plain(found.best_texts[row][t][0])
            ink = "white" if share > 0.6 else "black"
            at = t, rows - 1 - row
            axes.text(*at, text, ha="center", va="center", fontsize=7, color=ink, parse_math=False)
    axes.set_yticks(range(rows), [found.row_name(row) for row in reversed(range(rows))], fontsize=7)
    axes.set_xticks(range(T), list(map(_plain, found.texts)), fontsize=7, parse_math=False)
    axes.xaxis.tick_top()
    axes.set_title("most probable next token after each layer", fontsize=9)


def _plain(text: str) -> str:
    """A token of at most 9 characters that every font has."""
    shown = "".join(c if c.isprintable() else "·" for c in text)
    return shown if len(shown) <= 9 else shown[:8] + "…"
