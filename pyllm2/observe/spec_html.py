"""A page of the specification (`spec.Page`) as HTML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyllm2.observe.html import escape


def page_html(page: Any, shares: Mapping[str, Any] | None = None) -> str:
    """The inside of a page, without head and navigation."""
    called = "".join(f"<code>{escape(name)}</code> " for name in page.originals)
    parts = [
        f"<h1>{escape(page.signature)}</h1>",
        f"<p class=summary>{escape(page.summary)}</p>",
        f"<pre class=formula>{escape(page.formula)}</pre>" if page.formula else "",
        f"<pre class=notes>{escape(page.notes)}</pre>" if page.notes else "",
        f"<p>In {page.program}: {called or 'no function of its own'}</p>",
        "<div class=sources>",
    ]
    for s in page.sources:
        head = f"<h2>{s.language} <small>{escape(s.place)}</small></h2>"
        parts.append(f"<section>{head}<pre class=code>{escape(s.text)}</pre></section>")
    parts.append("</div>")
    if page.laws:
        rows = (
            f"<dt><code>{escape(law.name)}</code></dt><dd>{escape(law.text)}</dd>"
            for law in page.laws
        )
        parts += ["<h2>Laws, which every backend obeys</h2><dl>", *rows, "</dl>"]
    if page.bound is not None:
        head = f"<h2>Bound <small>{escape(page.bound.place)}</small></h2>"
        parts.append(f"{head}<pre class=notes>{escape(page.bound.derivation)}</pre>")
    if shares:
        cells = "".join(
            f"<tr><td>{name}</td><td>{found.share:.3g}</td><td>{found.ulp:.3g}</td></tr>"
            for name, found in shares.items()
        )
        head = "<tr><th>backend</th><th>share of the bound</th><th>ulp</th></tr>"
        parts.append(f"<h2>Largest error on drawn inputs</h2><table>{head}{cells}</table>")
    return "\n".join(part for part in parts if part)
