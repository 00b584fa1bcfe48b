"""A lens as one HTML file."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from pyllm2.observe.html import document, escape

BODY = """\
<main>
<h1>What {name} would say, layer by layer</h1>
<nav>
<button id="previous">← token</button><button id="following">token →</button>
<span id="place"></span>
<select id="layer" aria-label="layer"></select>
<label><input type="checkbox" id="attended"> shade by attention of the head below</label>
<small>keys: ← → token, ↑ ↓ layer, [ ] head</small>
</nav>
<div id="text" aria-label="the text; shaded: probability of each token"></div>
<div id="detail"></div>
<h2>Most probable next token after each layer
<small>final norm and classifier on the stream</small></h2>
<div class="scroll"><table id="lens"></table></div>
<h2>Attention <small id="which"></small></h2>
<div class="both">
<div><canvas id="large"></canvas><p id="weight">point at a cell for its weight</p></div>
<div id="heads"></div>
</div>
<h2>Norm of the stream by layer <small>a line per token</small></h2>
<div class="both"><svg id="norms" viewBox="0 0 400 220"></svg></div>
</main>"""


def lens_page(found: Any) -> str:
    """The whole page, with the numbers in it."""
    L, NH, _, _ = found.attention.shape
    data = {
        "tokens": found.tokens,
        "texts": found.texts,
        "layers": L,
        "heads": NH,
        "best": [
            [
                [[text, _finite(share)] for text, share in zip(words, row, strict=True)]
                for words, row in zip(texts, shares, strict=True)
            ]
            for texts, shares in zip(found.best_texts, found.best_shares.tolist(), strict=True)
        ],
        "shares": [[_finite(x) for x in row] for row in found.shares.tolist()],
        "ranks": found.ranks.tolist(),
        "norms": [[_finite(x) for x in row] for row in found.norms.tolist()],
        "attention": packed(found.attention),
    }
    name = found.name.rpartition("/")[2]
    body = BODY.format(name=escape(name))
    return document(f"lens: {name}", body, "base.css lens.css", "common.js lens.js", data)


def _finite(x: float) -> float | None:
    """Three digits more than are shown; null for what JSON has not."""
    return float(f"{x:.7g}") if np.isfinite(x) else None


def packed(attention: Any) -> str:
    """Lower triangles as base64 of 16-bit numbers, 65535 is 1; NaN is 0."""
    T = attention.shape[-1]
    rows, columns = np.tril_indices(T)
    with np.errstate(all="ignore"):
        part = np.nan_to_num(attention[..., rows, columns].astype(np.float64))
    data = np.round(np.clip(part, 0, 1) * 65535).astype("<u2")
    return base64.b64encode(data.tobytes()).decode()
