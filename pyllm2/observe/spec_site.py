"""All ops of the specification: a list for a terminal, and a site with a page per op."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pyllm2.formats.new_folder import new_folder
from pyllm2.formats.writer import atomic_write
from pyllm2.observe.html import document, escape
from pyllm2.observe.spec import PACKAGES, Page, ops_of, page
from pyllm2.observe.spec_html import page_html

STYLES = "base.css spec.css"


def overview(width: int = 100) -> str:
    """All ops, a line each."""
    lines = []
    for model in PACKAGES:
        lines += [f"{model}, pyllm2/{PACKAGES[model]}/ops.py", ""]
        lines += [f"  {op:<30}{page(model, op).summary}"[:width] for op in ops_of(model)] + [""]
    return "\n".join(lines).rstrip()


def _navigation(here: Page | None) -> str:
    up = "" if here is None else "../"
    parts = [f'<nav><a href="{up}index.html">All ops</a>']
    for model in PACKAGES:
        links = "".join(
            f'<a href="{up}{model}/{op}.html"'
            f"{' aria-current=page' if here and (here.model, here.op) == (model, op) else ''}>"
            f"{op}</a>"
            for op in ops_of(model)
        )
        is_open = " open" if here is None or here.model == model else ""
        parts.append(f"<details{is_open}><summary>{model}</summary>{links}</details>")
    return "\n".join([*parts, "</nav>"])


def _related(page: Page) -> str:
    links = " ".join(f'<a href="{name}.html">{name}</a>' for name in page.related)
    return f"<p>See also: {links}</p>" if links else ""


def site_page(page: Page, shares: Mapping[str, Any] | None = None) -> str:
    """A whole page of the site."""
    body = f"{_navigation(page)}\n<main>\n{page_html(page, shares)}\n{_related(page)}\n</main>"
    return document(f"{page.op} · {page.model}", body, STYLES)


def _index() -> str:
    parts = ["<h1>The specification, op by op</h1>"]
    for model in PACKAGES:
        rows = "".join(
            f'<tr><td><a href="{model}/{op}.html"><code>{op}</code></a></td>'
            f"<td>{escape(page(model, op).summary)}</td></tr>"
            for op in ops_of(model)
        )
        parts.append(f"<h2>{model}</h2>\n<table>{rows}</table>")
    return document(
        "pyllm2: the specification",
        f"{_navigation(None)}\n<main>\n" + "\n".join(parts) + "\n</main>",
        STYLES,
    )


def write_site(
    folder: str | os.PathLike[str],
    shares: Mapping[tuple[str, str], Mapping[str, Any]] | None = None,
    replace: bool = False,
) -> int:
    """Write index.html and a page per op, MODEL/OP.html, as a new folder; the number of files.

    shares: measured ones, by (model, op)   replace: an older site may be there, and is replaced
    Raises FileError.
    """
    files = {"index.html": _index()}
    for model in PACKAGES:
        for op in ops_of(model):
            measured = (shares or {}).get((model, op))
            files[f"{model}/{op}.html"] = site_page(page(model, op), measured)
    old = ["index.html", *(f"{model}/*.html" for model in PACKAGES)] if replace else ()
    with new_folder(folder, old) as made:
        for model in PACKAGES:
            (made / model).mkdir()
        for name, text in files.items():
            with atomic_write(made / name) as file:
                file.write(text.encode())
    return len(files)
