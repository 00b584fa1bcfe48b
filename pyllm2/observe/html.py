"""Pages as HTML: one file each, which needs no network and works from file://."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

PAGES = Path(__file__).parent / "pages"


def asset(name: str) -> str:
    """The text of a style sheet or script in the folder `pages`."""
    return (PAGES / name).read_text(encoding="utf-8")


def escape(text: object) -> str:
    return html.escape(str(text))


def document(title: str, body: str, styles: str, script: str = "", data: Any = None) -> str:
    """A whole page with everything in it.

    styles, script: names of files in the folder `pages`, separated by blanks
    data: what the script finds in the element with the id "data", as JSON
    """
    style = "\n".join(map(asset, styles.split()))
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>",
        body,
    ]
    if data is not None:
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        # Inside <script> only "</" and "<!--" have a meaning.
        safe = text.replace("<", "\\u003c")
        parts.append(f'<script id="data" type="application/json">{safe}</script>')
    if script:
        code = "\n".join(map(asset, script.split()))
        parts.append(f"<script>\n{code}</script>")
    return "\n".join([*parts, "</body>\n</html>\n"])
